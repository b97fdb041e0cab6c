"""Redis' protocol, as much of it as asking a server needs, so that no client library has to be there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, unquote, urlsplit

from messaging_contracts.brokers import secure

if TYPE_CHECKING:
    from types import TracebackType

Reply = str | int | None | list["Reply"]


class ReplyError(Exception):
    """The server answered with an error. `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class Connection:
    """One authenticated connection to one server.

    :raises PermissionError: the server refuses the credentials
    :raises OSError: the server does not answer within `timeout` seconds
    """

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        self._socket = _connect(url, parts, timeout)
        try:
            self._file = self._socket.makefile("rb")
            self._authenticate(parts)
        except BaseException:  # interrupted, too, it leaves no socket open
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        self._socket.close()

    def call(self, *words: str | int) -> Reply:
        """Send one command and return its reply.

        :raises ReplyError: the server answered with an error
        """
        parts = [str(word).encode() for word in words]
        frame = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(frame)
        return self._read()

    def _authenticate(self, parts: SplitResult) -> None:
        if not parts.password:
            return
        words = [unquote(word) for word in (parts.username, parts.password) if word]
        try:
            self.call("AUTH", *words)
        except ReplyError as error:
            raise PermissionError(f"Redis refuses the credentials: {error.code}") from None

    def _read(self) -> Reply:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        match kind:
            case b"+":
                return rest
            case b"-":
                raise ReplyError(rest)
            case b":":
                return int(rest)
            case b"$" if rest == "-1":
                return None
            case b"$":
                return self._file.read(int(rest) + 2)[:-2].decode(errors="replace")
            case b"*":
                return [self._read() for _ in range(int(rest))]
            case _:
                raise ConnectionError(f"this is not Redis: it answered {line[:20]!r}")


def _connect(url: str, parts: SplitResult, timeout: float) -> socket.socket:
    if parts.scheme == "unix":
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(timeout)
        plain.connect(parts.path)
        return plain
    # A cluster's or sentinel's URL lists several; the first is asked.
    address = urlsplit("//" + parts.netloc.rpartition("@")[2].split(",")[0])
    host = address.hostname or "localhost"
    plain = socket.create_connection((host, address.port or 6379), timeout)
    if not parts.scheme.startswith("rediss"):
        return plain
    return secure.context(url).wrap_socket(plain, server_hostname=host)
