"""AMQP 0-9-1's handshake, so that readiness and version of a server can be asked without a client library."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from messaging_contracts.brokers import secure

if TYPE_CHECKING:
    from typing import BinaryIO

PROTOCOL = b"AMQP\x00\x00\x09\x01"
PORTS = {False: 5672, True: 5671}  # by whether TLS is used
FRAME_END = b"\xce"
# (class, method) of AMQP 0-9-1, chapter "connection"
START, START_OK = (10, 10), (10, 11)
TUNE, TUNE_OK = (10, 30), (10, 31)
OPEN, OPEN_OK = (10, 40), (10, 41)
CLOSE, CLOSE_OK = (10, 50), (10, 51)
ACCESS_REFUSED, NOT_ALLOWED = 403, 530


def handshake(url: str, timeout: float) -> str:
    """Open a connection with the URL's credentials and virtual host, close it, and return the server's
    version.

    :raises PermissionError: credentials or virtual host are refused
    :raises OSError: no AMQP answer within `timeout` seconds
    """
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    over_tls = parts.scheme == "amqps"
    with ExitStack() as opened:
        wire = opened.enter_context(socket.create_connection((host, parts.port or PORTS[over_tls]), timeout))
        if over_tls:
            wire = opened.enter_context(secure.context(url).wrap_socket(wire, server_hostname=host))
        reader = opened.enter_context(wire.makefile("rb"))
        wire.sendall(PROTOCOL)
        version = _version(_expect(reader, START))
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        wire.sendall(
            _method(START_OK, PROPERTIES + _short("PLAIN") + _plain(user, password) + _short("en_US"))
        )
        wire.sendall(_method(TUNE_OK, _expect(reader, TUNE)[:8]))
        virtual_host = unquote(parts.path[1:]) or "/"
        wire.sendall(_method(OPEN, _short(virtual_host) + _short("") + b"\0"))
        _expect(reader, OPEN_OK)
        wire.sendall(_method(CLOSE, struct.pack(">H", 200) + _short("") + b"\0\0\0\0"))
        _expect(reader, CLOSE_OK)
    return version


def _expect(reader: BinaryIO, wanted: tuple[int, int]) -> bytes:
    """Read one method's arguments."""
    while True:
        header = reader.read(7)
        if len(header) < 7:
            raise ConnectionError("the server closed the connection during the handshake")
        if header.startswith(b"AMQP"):
            raise ConnectionError("the server speaks another version of AMQP")
        kind, _, size = struct.unpack(">BHI", header)
        payload = reader.read(size + 1)
        if kind == 8:  # a heartbeat
            continue
        if kind != 1 or payload[-1:] != FRAME_END:
            raise ConnectionError("this is not AMQP 0-9-1")
        method = struct.unpack(">HH", payload[:4])
        arguments = payload[4:-1]
        if method == wanted:
            return arguments
        if method == CLOSE:
            (code,) = struct.unpack(">H", arguments[:2])
            text = arguments[3 : 3 + arguments[2]].decode(errors="replace")
            refused = code in (ACCESS_REFUSED, NOT_ALLOWED)
            raise PermissionError(text) if refused else ConnectionError(text)
        raise ConnectionError(f"unexpected method {method} in the handshake")


def _version(start: bytes) -> str:
    """The field `version` of the server's properties; text fields and nested tables are all that has to be
    read.
    """
    position = 6
    end = position + struct.unpack(">I", start[2:6])[0]
    while position < end:
        length = start[position]
        name = start[position + 1 : position + 1 + length]
        position += 1 + length
        kind = start[position : position + 1]
        position += 1
        if kind in b"SF":
            (size,) = struct.unpack(">I", start[position : position + 4])
            value = start[position + 4 : position + 4 + size]
            position += 4 + size
            if name == b"version":
                return value.decode()
        elif kind == b"t":
            position += 1
        else:
            break
    return "unknown"


def _method(method: tuple[int, int], arguments: bytes) -> bytes:
    payload = struct.pack(">HH", *method) + arguments
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + FRAME_END


def _short(text: str) -> bytes:
    return bytes([len(text.encode())]) + text.encode()


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _plain(user: str, password: str) -> bytes:
    return _long(b"\0%s\0%s" % (user.encode(), password.encode()))


# Asks for a reason when credentials are refused, instead of a closed socket.
PROPERTIES = _long(b"\x0ccapabilitiesF" + _long(b"\x1cauthentication_failure_closet\x01"))
