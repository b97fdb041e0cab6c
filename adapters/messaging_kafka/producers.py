"""Producer ids: by id, epoch and a sequence number in each partition a broker knows a batch that comes again.

A sequence number stands for one batch for ever: given again to another one, the broker would take that for the first,
and confirm what it never stored. So a number is free again only if its batch never left the process. Whatever else
goes wrong retires the producer id, and the next batch begins with a new one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from messaging_kafka import library
from messaging_kafka.brokers import LOOK_AGAIN
from messaging_kafka.connection import check
from messaging_kafka.library import Errors

if TYPE_CHECKING:
    from messaging_kafka.connection import Link
    from messaging_kafka.library import Place

SEQUENCES = 2**31
"""After so many records of a producer id in a partition, its numbers begin anew."""
NO_TIMEOUT = -1
"""Kafka protocol, "InitProducerId": of a producer without transactions."""
_NOT_YET = (
    Errors.GroupLoadInProgressError,
    Errors.GroupCoordinatorNotAvailableError,
    Errors.NotCoordinatorForGroupError,
)


class Producer:
    """One producer id. It has one batch under way in a partition."""

    __slots__ = ("_busy", "_next", "epoch", "id")

    def __init__(self, id: int, epoch: int) -> None:
        self.id = id
        self.epoch = epoch
        self._next: dict[Place, int] = {}
        self._busy: set[Place] = set()

    def take(self, place: Place) -> int | None:
        """The number of the next record there; None while a batch is under way."""
        if place in self._busy:
            return None
        self._busy.add(place)
        return self._next.get(place, 0)

    def give_back(self, place: Place, stored: int) -> None:
        """So many records were stored there, none if the batch never left this process."""
        self._busy.discard(place)
        if stored:
            self._next[place] = (self._next.get(place, 0) + stored) % SEQUENCES


class Producers:
    """The producer ids of one adapter: as many as there are batches under way in one partition."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._producers: list[Producer] = []
        self._asking = asyncio.Lock()

    async def take(self, place: Place) -> tuple[Producer, int]:
        """A producer id that is free in this partition, and its number there. Raises our errors."""
        found = self._find(place)
        while found is None:
            async with self._asking:
                found = self._find(place)
                if found is None:
                    self._producers.append(await self._ask())
                    found = self._find(place)
        return found

    def _find(self, place: Place) -> tuple[Producer, int] | None:
        for producer in self._producers:
            sequence = producer.take(place)
            if sequence is not None:
                return producer, sequence
        return None

    def retire(self, producer: Producer) -> None:
        """Begin nothing more with it."""
        if producer in self._producers:
            self._producers.remove(producer)

    async def _ask(self) -> Producer:
        until = time.monotonic() + self._link.settings.operation_timeout
        with self._link.translated("asking for a producer id"):
            while True:
                response = await self._link.send(library.InitProducerId(None, NO_TIMEOUT))
                try:
                    check(response.error_code)
                except _NOT_YET:  # a broker that just started has none yet
                    if time.monotonic() >= until:
                        raise
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    return Producer(response.producer_id, response.producer_epoch)
