"""HTTP, as much of it as asking a server needs."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import parse_qs, urlsplit


def endpoint(url: str) -> str:
    """Where the URL of an SQS adapter leads: its `endpoint_url`, else AWS in its region."""
    parts = urlsplit(url)
    given = parse_qs(parts.query).get("endpoint_url")
    return given[0] if given else f"https://sqs.{parts.hostname}.amazonaws.com"


def get(address: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Ask for a page; returns the status and at most 64 KiB of the page.

    :raises OSError: no answer within `timeout` seconds, or none of HTTP
    """
    parts = urlsplit(address)
    secure = parts.scheme == "https"
    connection = (HTTPSConnection if secure else HTTPConnection)(parts.netloc, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(65_536)
    except HTTPException as error:
        raise ConnectionError(f"no answer of HTTP: {error!r}") from None
    finally:
        connection.close()
