"""The socket below aiormq: what is written in one tick goes out in one system call, and what comes for some channels
is taken here.

aiormq reads a frame in four steps, gives it to the channel's task by a queue and makes a task for each message. For
channels that carry messages that is most of what a message costs, so a `Tap` takes its frames as they come; all
others go to aiormq, which opens, closes and watches over everything, in a form that it can read. Both ends are public:
a `TransportFactory` makes the reader and the writer.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, SupportsIndex

from aiormq.connection import TransportFactory
from pamqp.commands import Connection
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal

from messaging_rabbitmq.amqp import (
    AROUND_FRAME,
    BODY,
    CLOSE,
    CLOSE_OK,
    END,
    FRAME,
    HEADER,
    HEARTBEAT,
    METHOD,
)
from messaging_rabbitmq.mending import mended

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from yarl import URL

_KINDS: Final = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
_CLOSED: Final = frozenset({CLOSE, CLOSE_OK})
"""The number of the channel may then belong to another."""
_SIGN = bytes((HEARTBEAT, 0, 0, 0, 0, 0, 0, END))
SIGNS = 1.0
"""Seconds between the heartbeats that aiormq gets in place of what is taken."""


class Tap(Protocol):
    """Takes frames of one channel before aiormq sees them."""

    closed: bool
    """The channel is closed: nothing may be written to it any more."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Whether it takes this frame, whose payload is `data[start:end]`. Raises nothing."""
        ...


class FrameReader(asyncio.StreamReader):
    """Gives each frame to the tap of its channel, or to aiormq; keeps what came last, and tells that something came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.last: bytes = b""
        self.came: Callable[[], None] | None = None
        self.taps: dict[int, Tap] = {}
        self._pieces: list[bytes] = []
        """Of a frame that has not come as a whole."""
        self._size = 0
        self._needed = AROUND_FRAME
        self._no_frames = False
        """The peer speaks something else: aiormq says what is wrong with it."""
        self._signed = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        if self.came is not None:
            self.came()
        self.last = whole = bytes(data)
        pieces = self._pieces
        if pieces:
            pieces.append(whole)
            self._size += len(whole)
            if self._size < self._needed:
                return
            whole = b"".join(pieces)
            pieces.clear()
        if self._no_frames:
            super().feed_data(whole)
        else:
            self._share_out(whole)

    def _share_out(self, data: bytes) -> None:
        taps, size = self.taps, len(data)
        at = passed = 0
        self._needed = AROUND_FRAME
        while size - at >= AROUND_FRAME:
            kind, channel, length = FRAME.unpack_from(data, at)
            if kind not in _KINDS:
                self._no_frames = True
                at = size
                break
            end = at + length + AROUND_FRAME
            if end > size:
                self._needed = end - at
                break
            tap = taps.get(channel)
            if tap is not None and kind == METHOD and data[at + 7 : at + 11] in _CLOSED:
                tap.closed = True
                del taps[channel]
            elif tap is not None and tap.take(kind, data, at + 7, end - 1):
                if at > passed:
                    super().feed_data(data[passed:at])
                passed = end
                self._show_life()
            elif (anew := mended(kind, channel, data, at, end)) is not None:
                if at > passed:
                    super().feed_data(data[passed:at])
                passed = end
                super().feed_data(anew)
            at = end
        if at > passed:
            super().feed_data(data[passed:at] if passed or at < size else data)
        if at < size:
            self._pieces.append(data[at:])
            self._size = size - at

    def _show_life(self) -> None:
        """Aiormq takes a connection for dead of which it sees no frame; this is called only between frames."""
        now = time.monotonic()
        if now - self._signed > SIGNS:
            self._signed = now
            super().feed_data(_SIGN)

    def feed_eof(self) -> None:
        for piece in self._pieces:
            super().feed_data(piece)
        self._pieces.clear()
        super().feed_eof()


class BatchingWriter(asyncio.StreamWriter):
    """Sends what is written within one tick of the loop in one system call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered: list[bytes] = []
        self._loop_of_writer = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop_of_writer.call_soon(self.flush)
        self._gathered.append(bytes(data))

    def write_now(self, data: bytes) -> None:
        """Behind what was written before, without waiting for the end of the tick."""
        self._gathered.append(data)
        self.flush()

    def flush(self) -> None:
        """Hand over what was gathered."""
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            if not self.transport.is_closing():
                super().write(b"".join(gathered))

    async def drain(self) -> None:
        self.flush()
        await super().drain()

    def write_eof(self) -> None:
        self.flush()
        super().write_eof()

    def close(self) -> None:
        self.flush()
        super().close()


class Wire(TransportFactory):
    """The socket of one connection, which it opens with a `FrameReader` and a `BatchingWriter`."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.transport: asyncio.Transport | None = None
        """To cut off a dead peer."""
        self._reader: FrameReader | None = None
        self._writer: BatchingWriter | None = None

    def tell(self, came: Callable[[], None]) -> None:
        """Call this for everything that comes from now on."""
        assert self._reader is not None
        self._reader.came = came

    def tap(self, channel: int, tap: Tap) -> None:
        """From now on it takes what it wants of this channel, until the channel is closed."""
        assert self._reader is not None
        self._reader.taps[channel] = tap

    def write(self, frames: bytes, *, more: bool = False) -> bool:
        """Send these, with `more` at the end of the tick, with what comes until then.

        False when the connection is known to be lost, of which its channels tell.
        """
        writer = self._writer
        assert writer is not None
        if writer.is_closing():
            return False
        if more:
            writer.write(frames)
        else:
            writer.write_now(frames)
        return True

    def farewell(self) -> Connection.Close | None:
        """The frame by which the broker refused the connection: aiormq loses it when it came in place of another."""
        try:
            _, _, frame = unmarshal(self._reader.last if self._reader else b"")
        except PAMQPException:
            return None
        return frame if isinstance(frame, Connection.Close) else None

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert url.host is not None
        assert url.port is not None
        loop = asyncio.get_running_loop()
        self._reader = reader = FrameReader(loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _protocol = await loop.create_connection(
            lambda: protocol, url.host, url.port, ssl=self._context
        )
        self.transport = transport
        self._writer = BatchingWriter(transport, protocol, reader, loop)
        return reader, self._writer
