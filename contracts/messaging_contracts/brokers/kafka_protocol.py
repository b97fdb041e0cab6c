"""Kafka's protocol, as much of it as asking a server needs, so that no client library has to be there."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from messaging_contracts.brokers import secure
from messaging_contracts.brokers.broker import NotReady

if TYPE_CHECKING:
    from typing import BinaryIO

PORT = 9092
# (key, version) of the requests
METADATA, HANDSHAKE, API_VERSIONS, AUTHENTICATE = (3, 1), (17, 1), (18, 3), (36, 0)
CLIENT = "messaging"
# The highest metadata.version that a release knows tells the release; a broker has no other word for it.
RELEASES = {
    1: "older than 3.7",
    15: "3.7",
    20: "3.8",
    21: "3.9",
    22: "4.0",
    26: "4.1",
    28: "4.2 or newer",
}


def ask(url: str, timeout: float) -> str:
    """Ask the first server of the URL for its release, with the URL's credentials, and whether it serves.

    Credentials are proven for the mechanism PLAIN; with another one the server's word that it answers is enough.

    :raises PermissionError: the credentials are refused
    :raises NotReady: there is no controller yet, or no broker that takes part
    :raises OSError: no answer of Kafka's within `timeout` seconds
    """
    parts = urlsplit(url)
    address = urlsplit("//" + parts.netloc.rpartition("@")[2].split(",")[0])
    host = address.hostname or "localhost"
    mechanism = parse_qs(parts.query).get("sasl_mechanism", ["PLAIN"])[0]
    with ExitStack() as opened:
        wire = opened.enter_context(socket.create_connection((host, address.port or PORT), timeout))
        if parts.scheme.endswith("+ssl"):
            wire = opened.enter_context(secure.context(url).wrap_socket(wire, server_hostname=host))
        connection = _Connection(wire, opened.enter_context(wire.makefile("rb")))
        release = _release(
            connection.call(API_VERSIONS, _compact(CLIENT) + _compact("1") + b"\0", tags=b"\0")
        )
        if parts.username and mechanism != "PLAIN":
            return release
        if parts.username:
            _authenticate(connection, unquote(parts.username), unquote(parts.password or ""))
        _check(connection.call(METADATA, struct.pack(">i", 0)))
    return release


def brokers_of(url: str, timeout: float) -> int:
    """How many brokers the first server of the URL knows that live; it asks for no credentials.

    :raises OSError: no answer of Kafka's within `timeout` seconds
    """
    address = urlsplit("//" + urlsplit(url).netloc.split(",")[0])
    with (
        socket.create_connection((address.hostname, address.port or PORT), timeout) as wire,
        wire.makefile("rb") as reader,
    ):
        (brokers,) = struct.unpack_from(">i", _Connection(wire, reader).call(METADATA, struct.pack(">i", 0)))
    return int(brokers)


class _Connection:
    def __init__(self, wire: socket.socket, reader: BinaryIO) -> None:
        self._wire = wire
        self._reader = reader

    def call(self, request: tuple[int, int], body: bytes, tags: bytes = b"") -> bytes:
        """Send one request and return its answer's body. `tags` is the end of a header of version 2."""
        message = struct.pack(">hhi", *request, 1) + _text(CLIENT) + tags + body
        self._wire.sendall(struct.pack(">i", len(message)) + message)
        (size,) = struct.unpack(">i", self._read(4))
        if not 4 <= size <= 1_000_000:
            raise ConnectionError("this is not Kafka")
        return self._read(size)[4:]

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise ConnectionError(
                "it closed the connection, as it does without credentials or TLS it asks for"
            )
        return data


def _authenticate(connection: _Connection, user: str, password: str) -> None:
    (error,) = struct.unpack_from(">h", connection.call(HANDSHAKE, _text("PLAIN")))
    if error:
        raise PermissionError("the server does not offer PLAIN")
    token = f"\0{user}\0{password}".encode()
    (error,) = struct.unpack_from(">h", connection.call(AUTHENTICATE, struct.pack(">i", len(token)) + token))
    if error:
        raise PermissionError("Kafka refuses the credentials")


def _release(answer: bytes) -> str:
    """Read the features that an ApiVersions answer ends with."""
    (error,) = struct.unpack_from(">h", answer)
    if error:
        raise NotReady(f"ApiVersions is answered with error {error}")
    level = 0
    # Fields without a place of their own follow behind the list; the name is all that has to be found.
    name = _compact("metadata.version")
    found = answer.find(name)
    if found >= 0:
        (level,) = struct.unpack_from(">h", answer, found + len(name) + 2)  # behind its lowest level
    return next((release for first, release in reversed(RELEASES.items()) if first <= level), "unknown")


def _check(answer: bytes) -> None:
    (brokers,) = struct.unpack_from(">i", answer)
    position = 4
    for _ in range(brokers):
        position += 4  # its id
        for behind in (4, 0):  # the host, with a port behind it, and the rack
            (size,) = struct.unpack_from(">h", answer, position)
            position += 2 + max(size, 0) + behind
    (controller,) = struct.unpack_from(">i", answer, position)
    if not brokers or controller < 0:
        raise NotReady("it has no controller yet")


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _compact(text: str) -> bytes:
    """A short text as flexible versions write it."""
    return bytes([len(text) + 1]) + text.encode()
