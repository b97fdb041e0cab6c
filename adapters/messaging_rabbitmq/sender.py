"""Sending with confirms: many at once, one fate for each parcel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, TypeAlias

from messaging.errors import ConnectionFailed, PublishError, PublishUncertain
from messaging_rabbitmq.confirms import Batch
from messaging_rabbitmq.ports import TOGETHER, Ports

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from messaging_rabbitmq.confirms import Word
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.settings import RabbitMQSettings

Fate: TypeAlias = Literal["stored", "unrouted"] | PublishError
"""`unrouted`: confirmed, but no queue took it."""


class Sender:
    """Confirmed channels on the connection for publishing (`Ports`).

    A place is free again only when its confirm came or the channel is gone, so that a broker that reads or confirms
    nothing holds no more in memory than `outstanding` messages, each up to `max_message_bytes`.
    """

    def __init__(self, link: Link, settings: RabbitMQSettings) -> None:
        self._link = link
        self._timeout = settings.confirm_timeout
        self.ports = Ports(link, settings.outstanding)
        self.most = min(TOGETHER, max(1, settings.outstanding // 2))
        """Parcels that are handed over together, or none of them; of more, some may be without those before them."""

    def send(
        self, parcels: Sequence[Parcel], lane: str | None = None, *, spread: bool = False
    ) -> Coroutine[None, None, list[Fate]]:
        """Store each, in order; one fate each. Cancelling leaves the fates unknown and the channels whole.

        The order is kept within a lane (`Ports`) that is not spread: without `lane`, within an exchange, or past the
        exchanges a queue. What a lane waits for holds up no other.
        """
        if lane and 0 < len(parcels) <= self.most:
            return self._send(parcels, lane, spread=spread)
        return (
            self._send_chunks(parcels, lane, spread=spread)
            if lane
            else self._send_apart(parcels, spread=spread)
        )

    async def _send_chunks(self, parcels: Sequence[Parcel], lane: str, *, spread: bool) -> list[Fate]:
        fates: list[Fate] = []
        for start in range(0, len(parcels), self.most):
            fates += await self._send(parcels[start : start + self.most], lane, spread=spread)
        return fates

    async def _send_apart(self, parcels: Sequence[Parcel], *, spread: bool) -> list[Fate]:
        lanes: dict[str, list[int]] = {}
        for at, parcel in enumerate(parcels):
            lanes.setdefault(parcel.exchange or parcel.routing_key, []).append(at)
        if len(lanes) == 1:
            return await self._send_chunks(parcels, *lanes, spread=spread)
        sending = [
            self._send_chunks([parcels[at] for at in places], lane, spread=spread)
            for lane, places in lanes.items()
        ]
        fates: list[Fate] = ["stored"] * len(parcels)
        for places, sent in zip(lanes.values(), await asyncio.gather(*sending), strict=True):
            for at, fate in zip(places, sent, strict=True):
                fates[at] = fate
        return fates

    async def _send(self, parcels: Sequence[Parcel], lane: str, *, spread: bool) -> list[Fate]:
        loop = asyncio.get_running_loop()
        batch = Batch(parcels, lane=lane, spread=spread)
        timer = loop.call_at(loop.time() + self._timeout, batch.let_go)
        self.ports.send(batch)
        try:
            await batch.over
        finally:
            timer.cancel()
            if batch.parcels:
                self.ports.withdraw(batch)
        if batch.parcels:
            return [self._unsent(batch.unsent)] * len(parcels)
        return ["stored" if word == "stored" else self._fate(word) for word in batch.words]

    def _unsent(self, error: Exception | None) -> PublishError:
        if error is None:
            return PublishError(
                f"not handed to RabbitMQ at {self._link.address} within {self._timeout:g} s: "
                f"{self.ports.unconfirmed} earlier messages wait for their confirms"
            )
        if not isinstance(error, ConnectionFailed):
            raise error
        return _caused(PublishError(f"not published: {error}"), error)

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


def _caused(error: PublishError, cause: BaseException) -> PublishError:
    error.__cause__ = cause
    return error
