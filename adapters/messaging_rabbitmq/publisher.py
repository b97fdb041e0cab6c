"""Publishing with confirms: many at once on one channel, one fate for each message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, TypeAlias

from messaging.errors import ConnectionFailed, MessagingError, PublishError, PublishUncertain
from messaging.slots import Slots
from messaging_rabbitmq.confirms import Batch
from messaging_rabbitmq.connection import when_closed
from messaging_rabbitmq.outlet import outlet_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from messaging_rabbitmq.confirms import Word
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.outlet import Outlet
    from messaging_rabbitmq.settings import RabbitMQSettings

Fate: TypeAlias = Literal["stored", "unrouted"] | PublishError
"""`unrouted`: confirmed, but no queue took it."""


class Publisher:
    """One confirmed channel on the connection for publishing.

    A place is free again only when its confirm came or the channel is gone, so that a broker that reads or confirms
    nothing holds no more in memory than `outstanding` messages, each up to `max_message_bytes`.
    """

    def __init__(self, link: Link, settings: RabbitMQSettings) -> None:
        self._link = link
        self._timeout = settings.confirm_timeout
        self._slots = Slots(settings.outstanding)
        self.most = max(1, settings.outstanding // 2)
        """Parcels that are handed over together, or none of them; of more, some may be without those before them."""
        self._outlet: Outlet | None = None
        self._opening = asyncio.Lock()

    def send(self, parcels: Sequence[Parcel]) -> Coroutine[None, None, list[Fate]]:
        """Store each, in order; one fate each. Cancelling leaves the fates unknown and the channel whole."""
        return self._send(parcels) if 0 < len(parcels) <= self.most else self._send_chunks(parcels)

    async def _send_chunks(self, parcels: Sequence[Parcel]) -> list[Fate]:
        fates: list[Fate] = []
        for start in range(0, len(parcels), self.most):
            fates += await self._send(parcels[start : start + self.most])
        return fates

    async def _send(self, parcels: Sequence[Parcel]) -> list[Fate]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        if not self._slots.take_now(len(parcels)):
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
        batch = Batch(parcels, self._slots.give_back)
        handed_over = False
        try:
            outlet = self._outlet or await self._open()
            handed_over = outlet.hand_over(batch)
        except ConnectionFailed as error:
            return [_not_sent(error)] * len(parcels)
        finally:
            if not handed_over:
                self._slots.give_back(len(parcels))
        if not handed_over:
            return [
                _not_sent(ConnectionFailed(f"RabbitMQ at {self._link.address} closed the channel"))
            ] * len(parcels)
        timer = loop.call_at(deadline, batch.let_go)
        try:
            await batch.over
        finally:
            timer.cancel()
        return ["stored" if word == "stored" else self._fate(word) for word in batch.words]

    async def _open(self) -> Outlet:
        async with self._opening:
            if self._outlet is None:
                channel = await self._link.channel(confirms=True, buffer=1024)
                self._outlet = outlet = outlet_of(channel)
                when_closed(channel, lambda: self._gone(outlet))
        return self._outlet

    def _gone(self, outlet: Outlet) -> None:
        if self._outlet is outlet:
            self._outlet = None
        outlet.lose(ConnectionFailed("the channel was closed"))

    def _fate(self, word: Word) -> Fate:
        if word is None:
            return PublishUncertain(
                f"RabbitMQ at {self._link.address} did not confirm within {self._timeout:g} s: it may be short of "
                f"memory or disk, or a queue has no leader. It may or may not have the message."
            )
        if word == "refused":
            return _caused(
                PublishUncertain(
                    f"RabbitMQ at {self._link.address} refused the message (basic.nack): a queue is full or has no "
                    f"leader. Other queues of the topic may have it."
                ),
                PublishError("basic.nack"),
            )
        if isinstance(word, Exception):
            return _caused(
                PublishUncertain(
                    f"the connection to RabbitMQ at {self._link.address} was lost before the confirm came: "
                    f"it may or may not have the message"
                ),
                word,
            )
        return word


def _not_sent(error: MessagingError) -> PublishError:
    return _caused(PublishError(f"not published: {error}"), error)


def _caused(error: PublishError, cause: BaseException) -> PublishError:
    error.__cause__ = cause
    return error
