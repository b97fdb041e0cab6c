"""One connection of redis-py, and what is said on it.

redis-py spends two timeouts, a lock and four coroutines on a reply. Once it has made a connection, what arrives there
goes straight to its parser, and from there to who waits. Transport and parser are no public part of it: where they look
different than they are known here, redis-py sends and reads.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from redis import exceptions as redis_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

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
_UNFIT = (redis_errors.ReadOnlyError, redis_errors.BusyLoadingError)
"""The server did not run the command, and runs no other that writes."""


class Line(asyncio.Protocol):
    """One connection, for one exchange at a time. It ends with the first error."""

    __slots__ = (
        "_alarm",
        "_alarm_at",
        "_before",
        "_due",
        "_loop",
        "_missing",
        "_over",
        "_parser",
        "_patience",
        "_replies",
        "_transport",
        "_waiter",
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
        self._over = False
        """It ended, or something came that nobody asked for."""
        self._waiter: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        """What came for who waits; empty when nobody does: they may be large, and a line idle for hours."""
        self._missing = 0
        self._due = self._alarm_at = self._patience = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        """One for many exchanges: a timer for each costs as much as the rest of it."""
        self._loop = asyncio.get_running_loop()
        self._transport, self._parser = _known(connection) or _UNKNOWN
        if self._transport is not None:
            self._before: asyncio.BaseProtocol = self._transport.get_protocol()
            self._transport.set_protocol(self)

    @property
    def lasting(self) -> bool:
        """Whether it may be kept for the next exchange, because `sound` can tell of it."""
        return self._transport is not None

    @property
    def sound(self) -> bool:
        """Whether nothing has happened since the last exchange: no end, no byte that nobody asked for."""
        return not (self._over or self._transport.is_closing())

    async def ask_id(self, patience: float) -> int:
        """The number of this connection, for `CLIENT UNBLOCK`; 0 where the server refuses to tell."""
        if self.id is None:
            (reply,) = await self.converse((("CLIENT", "ID"),), patience)
            self.id = 0 if isinstance(reply, Exception) else cast("int", reply)
        return self.id

    def converse(self, commands: Sequence[Command], patience: float) -> Awaitable[list[Any]]:
        """Send all, then read a reply for each: a value, or the error of that command, not raised.

        Awaited, it raises TimeoutError after `patience` seconds in which nothing came, and what redis-py raises when
        there is no connection any more. Cancelled, it leaves a line that must be ended.
        """
        if self._transport is None:
            return self._by_redis_py(commands, patience)
        if self._over:
            raise OSError(_CLOSED)
        pack = _native.pack_command
        packed = [one if type(one) is bytes else pack(tuple(one)) for one in commands]
        self._missing = len(packed)
        self._waiter = waiter = self._loop.create_future()
        self._patience = patience
        self._due = due = time.monotonic() + patience
        if self._alarm is None or due < self._alarm_at:
            self._set_alarm(due, patience)
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        return waiter

    async def _by_redis_py(self, commands: Sequence[Command], patience: float) -> list[Any]:
        async with asyncio.timeout(patience):
            replies = await _by_redis_py(self.connection, commands)
        for reply in replies:
            self._judge(reply)
        return replies

    # --- called by the transport and the loop --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came, and answer who waits when it is all that was asked for."""
        waiter = self._waiter
        if waiter is None or waiter.done():  # nobody asked for it, or who did was cancelled
            self._over = True
            return
        parser, replies = self._parser, self._replies
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not _NOTHING_MORE:
                if type(reply) is not bytes:
                    if isinstance(reply, _PUSH):  # nobody asked for these
                        continue
                    self._judge(reply)
                replies.append(reply)
                if len(replies) == self._missing:
                    self._over = parser.has_data()
                    self._waiter, self._replies = None, []
                    waiter.set_result(replies)
                    return
            # Much may be on its way over a slow network: asked for again, it would be as late again.
            self._due = time.monotonic() + self._patience
        except Exception as error:  # whatever it is, who waits must learn of it
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits, and redis-py, who may wait for the end."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._fail(exc if isinstance(exc, OSError) else OSError(_CLOSED))
        self._before.connection_lost(exc)

    def eof_received(self) -> None:
        """The server sends no more: the transport closes, but not before all is written."""
        self._fail(OSError(_CLOSED))

    def _on_alarm(self) -> None:
        self._alarm = None
        rest = self._due - time.monotonic()
        if self._waiter is None:
            return
        if rest > 0:
            self._set_alarm(self._due, rest)
        else:
            self._fail(TimeoutError())
            self._transport.abort()

    def _set_alarm(self, at: float, after: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_later(after, self._on_alarm)

    def _fail(self, error: Exception) -> None:
        self._over = True
        waiter, self._waiter, self._replies = self._waiter, None, []
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _judge(self, reply: Any) -> None:
        """What a reply says of the server. Raises ConnectionError as redis-py does."""
        first = cast("Any", reply[0] if isinstance(reply, list) and reply else reply)
        if isinstance(first, _UNFIT):
            self.unfit = True
        elif isinstance(first, redis_errors.ConnectionError):
            raise first


_CLOSED = "the server closed the connection"
_UNKNOWN: tuple[Any, Any] = (None, None)


def _known(connection: Any) -> tuple[Any, Any] | None:
    """Its transport and its parser, while nothing has come that was not read."""
    stream, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    arrived = getattr(stream, "_buffer", None)
    parser: Any = getattr(getattr(connection, "_parser", None), "_reader", None)
    if (
        _NOTHING_MORE is not None
        and type(stream) is asyncio.StreamReader
        and isinstance(arrived, bytearray)
        and type(writer) is asyncio.StreamWriter
        and isinstance(parser, _native.Reader)
        and hasattr(parser, "has_data")
        and not (arrived or stream.at_eof() or writer.transport.is_closing() or parser.has_data())
    ):
        return writer.transport, parser
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
