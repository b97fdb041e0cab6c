"""HTTP, as much of it as asking a server needs."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from messaging_contracts.brokers import secure

if TYPE_CHECKING:
    from collections.abc import Mapping


def endpoint(url: str) -> str:
    """Where the URL of an SQS adapter leads: its `endpoint_url`, else AWS in its region."""
    parts = urlsplit(url)
    given = parse_qs(parts.query).get("endpoint_url")
    return given[0] if given else f"https://sqs.{parts.hostname}.amazonaws.com"


def get(url: str, path: str, timeout: float, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Ask for a page where the URL of an SQS adapter leads; returns the status and at most 64 KiB of the page.

    :raises OSError: no answer within `timeout` seconds, or none of HTTP
    """
    parts = urlsplit(endpoint(url))
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(
            parts.netloc, timeout=timeout, context=secure.context(url)
        )
    else:
        connection = HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(65_536)
    except HTTPException as error:
        raise ConnectionError(f"no answer of HTTP: {error!r}") from None
    finally:
        connection.close()
