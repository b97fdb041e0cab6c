"""Publishing with confirms: many at once on one channel, one fate for each message."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiormq.exceptions import DeliveryError
from aiormq.exceptions import PublishError as Returned

from messaging.errors import ConnectionFailed, MessagingError, PublishError, PublishUncertain
from messaging_rabbitmq.connection import translated, when_closed
from messaging_rabbitmq.frames import fail_unconfirmed, forget, hand_over

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel

    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.properties import Parcel
    from messaging_rabbitmq.settings import RabbitMQSettings

Fate: TypeAlias = Literal["stored", "unrouted"] | PublishError
"""`unrouted`: confirmed, but no queue took it."""


class Slots:
    """Bounds what is handed over and not confirmed; who waits is served in order."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = number
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, wanted: int) -> None:
        if not self._waiting and self._free >= wanted:
            self._free -= wanted
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            await turn
        except asyncio.CancelledError:
            granted = turn.done() and not turn.cancelled()
            self.give_back(wanted if granted else 0)
            raise

    def give_back(self, number: int = 1) -> None:
        self._free += number
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif wanted <= self._free:
                self._waiting.popleft()
                self._free -= wanted
                turn.set_result(None)
            else:
                return


class Batch:
    """What was handed over together. Its places are free again when all of it is confirmed, or its channel gone."""

    __slots__ = ("_channel", "_left", "_parcels", "_slots", "over")

    def __init__(
        self,
        slots: Slots,
        channel: AbstractChannel,
        parcels: Sequence[Parcel],
        futures: Sequence[asyncio.Future[Any]],
    ) -> None:
        self._slots = slots
        self._channel = channel
        self._parcels = parcels
        self._left = len(futures)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for future in futures:
            future.add_done_callback(self._one_done)

    def _one_done(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # whoever waited may be gone: a failure that nobody reads is no news
        self._left -= 1
        if self._left == 0:
            self._slots.give_back(len(self._parcels))
            forget(self._channel, self._parcels)
            if not self.over.done():
                self.over.set_result(None)


class Publisher:
    """One confirmed channel on the connection for publishing.

    The futures of confirms are never cancelled: a message returned to a cancelled one would break aiormq's channel.
    A place is free again only when its confirm came or the channel is gone, so that a broker that confirms nothing
    cannot fill the memory.
    """

    def __init__(self, link: Link, settings: RabbitMQSettings) -> None:
        self._link = link
        self._timeout = settings.confirm_timeout
        self._slots = Slots(settings.outstanding)
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    async def send(self, parcels: Sequence[Parcel]) -> list[Fate]:
        """Store each, in order; one fate each. Cancelling leaves the fates unknown and the channel whole."""
        if not parcels:
            return []
        chunk = max(1, self._slots.number // 2)
        if len(parcels) <= chunk:
            return await self._send(parcels)
        fates: list[Fate] = []
        for start in range(0, len(parcels), chunk):
            fates += await self._send(parcels[start : start + chunk])
        return fates

    async def _send(self, parcels: Sequence[Parcel]) -> list[Fate]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.take(len(parcels))
        except TimeoutError:
            return [
                PublishError(
                    f"not handed to RabbitMQ at {self._link.address} within {self._timeout:g} s: "
                    f"{self._slots.number} earlier messages wait for their confirms"
                )
            ] * len(parcels)
        handed_over = False
        try:
            channel = await self._ready()
            with translated("publishing", self._link.address):
                futures = await hand_over(channel, parcels)
            handed_over = True
        except ConnectionFailed as error:
            return [_not_sent(error)] * len(parcels)
        finally:
            if not handed_over:
                self._slots.give_back(len(parcels))
        batch = Batch(self._slots, channel, parcels, futures)
        if not batch.over.done():
            # Unlike `wait_for`, `wait` cancels nothing.
            await asyncio.wait((batch.over,), timeout=max(0.0, deadline - loop.time()))
        return [self._fate(future) for future in futures]

    async def _ready(self) -> AbstractChannel:
        if self._channel is not None:
            return self._channel
        async with self._opening:
            if self._channel is None:
                channel = await self._link.channel(confirms=True, buffer=1024)
                self._channel = channel
                when_closed(channel, lambda: self._gone(channel))
        return self._channel

    def _gone(self, channel: AbstractChannel) -> None:
        if self._channel is channel:
            self._channel = None
        fail_unconfirmed(channel, ConnectionFailed("the channel was closed"))

    def _fate(self, future: asyncio.Future[Any]) -> Fate:
        if not future.done():
            return PublishUncertain(
                f"RabbitMQ at {self._link.address} did not confirm within {self._timeout:g} s: it may be short of "
                f"memory or disk, or a queue has no leader. It may or may not have the message."
            )
        error = ConnectionFailed("cancelled") if future.cancelled() else future.exception()
        if error is None:
            return "stored"
        if isinstance(error, Returned):
            return "unrouted"
        if isinstance(error, DeliveryError):
            return _caused(
                PublishUncertain(
                    f"RabbitMQ at {self._link.address} refused the message (basic.nack): a queue is full or has no "
                    f"leader. Other queues of the topic may have it."
                ),
                error,
            )
        return _caused(
            PublishUncertain(
                f"the connection to RabbitMQ at {self._link.address} was lost before the confirm came: "
                f"it may or may not have the message"
            ),
            error,
        )


def _not_sent(error: MessagingError) -> PublishError:
    return _caused(PublishError(f"not published: {error}"), error)


def _caused(error: PublishError, cause: BaseException) -> PublishError:
    error.__cause__ = cause
    return error
