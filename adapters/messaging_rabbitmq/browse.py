"""Reading a quorum queue from its head without consuming or reordering it.

What is read stays unacknowledged and goes back when its channel closes. RabbitMQ puts it behind what had gone back
before and was not taken again, and single messages that were got (`basic.get`) come back in no order; so a reading
consumes, and takes all there is before it gives anything back. Bodies of what nobody asked for are dropped on arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from messaging.errors import ConnectionFailed, MessagingError
from messaging_rabbitmq.arrivals import callback_of, take_arrivals
from messaging_rabbitmq.connection import close_channel, translated, when_closed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging_rabbitmq.session import Session

PART = 1000
"""Messages read at once: what one channel holds."""
SETTLE_TIMEOUT = 1.0
SETTLE_PAUSE = 0.005
"""The broker sends no event when what went back can be read again."""


class Reading:
    """The first `number` messages of a queue."""

    def __init__(self, session: Session, queue: str, number: int) -> None:
        self._session = session
        self._queue = queue
        self._left = number
        self._channels: list[AbstractChannel] = []
        self._waiting: deque[DeliveredMessage] = deque()
        self._changed = asyncio.Event()
        self._lost = False
        self._dropping = False
        self.held = 0
        """Messages that will go back: the broker assigns a part before it answers the consume."""

    async def messages(self) -> AsyncIterator[tuple[AbstractChannel, DeliveredMessage]]:
        """Each with its channel, oldest first. Raises ConnectionFailed when the connection is lost."""
        while self._left > 0:
            channel, size = await self._next_part()
            for _ in range(size):
                if not await self._arrival():
                    return
                yield channel, self._waiting.popleft()

    async def _next_part(self) -> tuple[AbstractChannel, int]:
        size = min(PART, self._left)
        self._left -= size
        channel = await self._session.consuming.channel(buffer=1024)
        self._channels.append(channel)
        when_closed(channel, self._closed)
        with translated(f"reading queue {self._queue}", self._session.settings.address):
            await channel.basic_qos(prefetch_count=size)
            take_arrivals(channel, self._put)
            await channel.basic_consume(self._queue, callback_of(self._put))
        self.held += size
        return channel, size

    def _put(self, message: DeliveredMessage) -> None:
        if not self._dropping:
            self._waiting.append(message)
            self._changed.set()

    def _closed(self) -> None:
        self._lost = True
        self._changed.set()

    async def _arrival(self) -> bool:
        """A message waits. False where another reader has the rest."""
        while not self._waiting:
            if self._lost:
                raise ConnectionFailed(f"the channel that read queue {self._queue} was lost")
            self._changed.clear()
            try:
                async with asyncio.timeout(SETTLE_TIMEOUT):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    async def end(self) -> None:
        """Give everything back, in order, and wait until it can be read again."""
        if self._lost:
            return
        self._waiting.clear()
        self._dropping = True
        # Giving back matters more than its order.
        with suppress(MessagingError, TimeoutError):
            async with asyncio.timeout(self._session.settings.operation_timeout):
                while self._left > 0:
                    await self._next_part()
        for channel in self._channels:
            await close_channel(channel)
        with suppress(MessagingError):  # what was given back is only counted
            await self._settled()

    async def _settled(self) -> None:
        deadline = asyncio.get_running_loop().time() + SETTLE_TIMEOUT
        async with self._session.consuming.throwaway(f"counting queue {self._queue}") as channel:
            while ((await channel.queue_declare(self._queue, passive=True)).message_count or 0) < self.held:
                if asyncio.get_running_loop().time() > deadline:
                    return
                await asyncio.sleep(SETTLE_PAUSE)
