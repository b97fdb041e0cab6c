"""TLS as the URL of an adapter asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from messaging.errors import ConfigurationError
from messaging.tls import client_context
from messaging_contracts.brokers.broker import BrokerUnavailable

if TYPE_CHECKING:
    import ssl


def context(url: str) -> ssl.SSLContext:
    """A context with the files that the URL's options `ca`, `cert` and `key` name.

    :raises BrokerUnavailable: one of them cannot be used
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    try:
        return client_context(
            parts.netloc.rpartition("@")[2],
            ca=options.get("ca"),
            cert=options.get("cert"),
            key=options.get("key"),
            check_hostname=options.get("check_hostname", "true") not in {"false", "0", "no", "off"},
        )
    except ConfigurationError as error:
        raise BrokerUnavailable(str(error)) from None
