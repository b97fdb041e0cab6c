"""One connection of redis-py, and what is said on it.

redis-py spends two timeouts, a lock and four coroutines on a reply; its stream and its parser do the same with one
read. They are no public part of it: where they look different than they are known here, redis-py sends and reads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from redis import exceptions as redis_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    import hiredis as _hiredis
    from redis._parsers import hiredis as _parsers
except ImportError:
    _hiredis = _parsers = None  # type: ignore[assignment]

Argument: TypeAlias = "bytes | str | int | float"
Command: TypeAlias = "Sequence[Argument] | bytes"
"""Its parts, or the whole as it goes over the wire."""

_native = cast("Any", _hiredis)
_NOTHING_MORE: Any = getattr(cast("Any", _parsers), "NOT_ENOUGH_DATA", None)
_PUSH: Any = getattr(_native, "PushNotification", ())
_AT_ONCE = 1 << 18
"""Bytes that are parsed at once."""
_UNFIT = (redis_errors.ReadOnlyError, redis_errors.BusyLoadingError)
"""The server did not run the command, and runs no other that writes."""


class Line:
    """One connection, for one exchange at a time. It ends with the first error."""

    __slots__ = (
        "_arrived",
        "_loop",
        "_overdue",
        "_parser",
        "_stream",
        "_transport",
        "connection",
        "epoch",
        "id",
        "unfit",
    )

    def __init__(self, connection: Any, epoch: int) -> None:
        self.connection = connection
        self.epoch = epoch
        """How many faults its pool had seen when it was made."""
        self.id: int | None = None
        """Its number on the server, once asked."""
        self.unfit = False
        """The server said that it is a replica, or loads its data."""
        self._overdue = False
        self._loop = asyncio.get_running_loop()
        self._stream, self._arrived, self._transport, self._parser = _known(connection) or _UNKNOWN

    @property
    def lasting(self) -> bool:
        """Whether it may be kept for the next exchange, because `sound` can tell of it."""
        return self._stream is not None

    @property
    def sound(self) -> bool:
        """Whether nothing has happened since the last exchange: no end, no byte that nobody asked for."""
        stream = self._stream
        return not (
            self._arrived
            or stream.at_eof()
            or self._transport.is_closing()
            or stream.exception()
            or self._parser.has_data()
        )

    async def ask_id(self, patience: float) -> int:
        """The number of this connection, for `CLIENT UNBLOCK`; 0 where the server refuses to tell."""
        if self.id is None:
            (reply,) = await self.converse((("CLIENT", "ID"),), patience)
            self.id = 0 if isinstance(reply, Exception) else cast("int", reply)
        return self.id

    async def converse(self, commands: Sequence[Command], patience: float) -> list[Any]:
        """Send all, then read a reply for each: a value, or the error of that command, not raised.

        Raises TimeoutError after `patience` seconds, and what redis-py raises when there is no connection any more.
        """
        if self._stream is None:
            async with asyncio.timeout(patience):
                replies = await _by_redis_py(self.connection, commands)
            for reply in replies:
                self._judge(reply)
            return replies
        timer = self._loop.call_later(patience, self._give_up)
        try:
            pack = _native.pack_command
            self._transport.write(
                b"".join([one if type(one) is bytes else pack(tuple(one)) for one in commands])
            )
            return await self._read(len(commands))
        except OSError as error:
            if self._overdue:
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    async def _read(self, missing: int) -> list[Any]:
        stream, parser = self._stream, self._parser
        replies: list[Any] = []
        while True:
            read = await stream.read(_AT_ONCE)
            if not read:
                raise OSError("the server closed the connection")
            parser.feed(read)
            while (reply := parser.gets()) is not _NOTHING_MORE:
                if type(reply) is not bytes:
                    if isinstance(reply, _PUSH):  # nobody asked for these
                        continue
                    self._judge(reply)
                replies.append(reply)
                if len(replies) == missing:
                    return replies

    def _judge(self, reply: Any) -> None:
        """What a reply says of the server. Raises ConnectionError as redis-py does."""
        first = cast("Any", reply[0] if isinstance(reply, list) and reply else reply)
        if isinstance(first, _UNFIT):
            self.unfit = True
        elif isinstance(first, redis_errors.ConnectionError):
            raise first

    def _give_up(self) -> None:
        self._overdue = True
        self._transport.abort()


_UNKNOWN: tuple[Any, Any, Any, Any] = (None, None, None, None)


def _known(connection: Any) -> tuple[Any, Any, Any, Any] | None:
    """Its stream, the bytes that have arrived in it, its transport and its parser."""
    stream, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    arrived = getattr(stream, "_buffer", None)
    parser = getattr(getattr(connection, "_parser", None), "_reader", None)
    if (
        _NOTHING_MORE is not None
        and type(stream) is asyncio.StreamReader
        and isinstance(arrived, bytearray)
        and type(writer) is asyncio.StreamWriter
        and isinstance(parser, _native.Reader)
        and hasattr(parser, "has_data")
    ):
        return stream, arrived, writer.transport, parser
    return None


async def _by_redis_py(connection: Any, commands: Sequence[Command]) -> list[Any]:
    packed = [
        [command] if isinstance(command, bytes) else connection.pack_command(*command) for command in commands
    ]
    await connection.send_packed_command([part for parts in packed for part in parts], check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            # The line ends with its first error: what follows LOADING is still read.
            replies.append(await connection.read_response(disconnect_on_error=False))
        except (redis_errors.ResponseError, redis_errors.BusyLoadingError) as error:
            replies.append(error)
    return replies
