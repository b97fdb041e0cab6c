"""A TCP proxy that fails on demand: between a process and its broker, on loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

LOOPBACK = "127.0.0.1"
CHUNK = 65_536
IN_FLIGHT = 256
"""Chunks on their way in one direction; beyond, the sender waits, as on a slow network."""
PARTING = 1.0
"""Seconds for which a client that was told that its connection ends may go on writing."""


class Proxy:
    """Forwards every connection to one address; what it does to them can be changed at any time.

    `cut` ends all connections and accepts none, `black_hole` keeps them and forwards nothing, `lose_answers` forwards
    only what clients say, `delay` and `drip` are slow; `heal` forwards again. An async context manager.
    """

    def __init__(self, host: str, port: int, own_port: int = 0) -> None:
        self._upstream = (host, port)
        self._own_port = own_port
        self._open = asyncio.Event()
        self._open.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._cut = False
        self._orderly = False
        self._delay = 0.0
        self._drip: tuple[int, float] | None = None
        self._connections: dict[asyncio.Task[None], None] = {}
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self._own_port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._end_connections()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """Reset all connections, and every new one at once."""
        self._cut = True
        await self._end_connections()

    async def close_connections(self, *, orderly: bool = False) -> None:
        """End all connections once, by a reset or, `orderly`, as a server that ends; new ones work."""
        self._orderly = orderly
        try:
            await self._end_connections()
        finally:
            self._orderly = False

    def black_hole(self) -> None:
        """Forward nothing in either direction; connections stay, and new ones are accepted."""
        self._open.clear()

    def lose_answers(self) -> None:
        """Forward what clients say, and nothing of what they are answered; connections stay."""
        self._answering.clear()

    def delay(self, seconds: float) -> None:
        """Let everything take so long on its way, in each direction."""
        self._delay = seconds

    def drip(self, size: int, interval: float) -> None:
        """Forward at most `size` bytes each `interval` seconds, for each connection and direction."""
        self._drip = (size, interval)

    def heal(self) -> None:
        """Forward everything at once again."""
        self._cut, self._delay, self._drip = False, 0.0, None
        self._open.set()
        self._answering.set()

    async def _end_connections(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = None
        try:
            if self._cut:
                _reset(writer)
            else:
                await self._connect(reader, writer)
        except asyncio.CancelledError:  # ended on demand; a stream's callback would report it as an error
            if self._orderly:
                await _part(reader, writer)
            else:
                _reset(writer)
        finally:
            writer.transport.abort()
            del self._connections[task]

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            return
        try:
            directions = {
                asyncio.create_task(self._forward(reader, far_writer, self._open)),
                asyncio.create_task(self._forward(far_reader, writer, self._answering)),
            }
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        finally:
            far_writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: asyncio.Event
    ) -> None:
        """One direction, until one side ends it."""
        loop = asyncio.get_running_loop()
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)

        async def take() -> None:
            with suppress(ConnectionError):  # a reset is an end like any other
                while data := await reader.read(CHUNK):
                    await on_the_way.put((loop.time() + self._delay, data))
            await on_the_way.put((loop.time() + self._delay, b""))

        taking = asyncio.create_task(take())
        try:
            with suppress(ConnectionError):  # the other side is gone: so is this one
                while True:
                    due, data = await on_the_way.get()
                    if due > loop.time():
                        await asyncio.sleep(due - loop.time())
                    if not data:
                        return
                    await self._write(writer, data, allowed)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, allowed: asyncio.Event) -> None:
        while data:
            await self._open.wait()
            await allowed.wait()
            if self._drip is None:
                part, data, pause = data, b"", 0.0
            else:
                size, pause = self._drip
                part, data = data[:size], data[size:]
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that nothing more comes, and listen until the other side has nothing more to say either."""
    with suppress(OSError, TimeoutError):  # it is gone, or does not end: it is aborted all the same
        writer.write_eof()
        async with asyncio.timeout(PARTING):
            while await reader.read(CHUNK):
                pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let closing this connection be a reset, which the other side sees as an error."""
    with suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
