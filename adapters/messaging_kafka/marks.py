"""What is known of messages that are stored once: their offsets, or the batches that may have them."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from messaging.adapter import Untraceable
from messaging_kafka.exchange import Batch, Fate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.library import Place
    from messaging_kafka.producers import Producer, Producers

KNOWN_FOR = 300.0
"""Seconds for which a batch may be sent again: brokers know a producer id for longer (`producer.id.expiration.ms`)."""
KEPT_BYTES = 64 << 20
"""Of batches whose fate is unknown; the oldest are given up for more."""
MOST_KNOWN = 10_000
"""Marks whose fate is remembered when it is known."""


class Numbered(Batch):
    """A batch with a producer id and sequence numbers: however often it comes, it is stored once."""

    __slots__ = ("marks", "producer", "since", "under_way")

    def __init__(
        self, to: Place, places: Sequence[int], data: bytes, producer: Producer, marks: Sequence[str]
    ) -> None:
        super().__init__(to, places, data)
        self.producer = producer
        self.marks = marks
        """Of its records, in order."""
        self.since = 0.0
        """When its fate was unknown for the first time."""
        self.under_way = True


class Marks:
    """By the mark of a message: its fate where that is known, else the batch that may have stored it."""

    def __init__(self, producers: Producers) -> None:
        self._producers = producers
        self._known: OrderedDict[str, Fate] = OrderedDict()
        self._uncertain: dict[str, Numbered] = {}
        self._kept: OrderedDict[Numbered, None] = OrderedDict()
        """In the order in which their fates became unknown."""
        self._bytes = 0

    def fate(self, mark: str) -> Fate | None:
        """What will not change any more."""
        return self._known.get(mark)

    def batch(self, mark: str) -> Numbered | None:
        """The batch of unknown fate that has it."""
        return self._uncertain.get(mark)

    def confirm(self, batch: Numbered, offset: int) -> None:
        """It is stored."""
        self._forget(batch)
        for number, mark in enumerate(batch.marks):
            self._remember(mark, offset + number)

    def keep(self, batch: Numbered) -> None:
        """It may be stored: it can be sent again."""
        batch.doubtful = True
        if batch not in self._kept:
            batch.since = time.monotonic()
            self._kept[batch] = None
            self._bytes += len(batch.data)
            self._uncertain.update(dict.fromkeys(batch.marks, batch))
        self.expire()

    def lose(self, batch: Numbered) -> Untraceable:
        """It may be stored, and the broker could not tell it from a new one any more: it is not sent again."""
        fate = Untraceable(
            f"writing to partition {batch.to.partition} of {batch.to.topic}: it was sent, and cannot be sent again "
            f"without the danger of a second copy. Publish it again with the same id if handlers are idempotent"
        )
        self._forget(batch)
        self._producers.retire(batch.producer)
        for mark in batch.marks:
            self._remember(mark, fate)
        return fate

    def expire(self) -> None:
        """Lose what the broker may have forgotten, and what there is no room for."""
        oldest_known = time.monotonic() - KNOWN_FOR
        while self._kept:
            first = next(iter(self._kept))
            if first.since > oldest_known and (self._bytes <= KEPT_BYTES or len(self._kept) == 1):
                return
            self.lose(first)

    def _forget(self, batch: Numbered) -> None:
        if batch in self._kept:
            del self._kept[batch]
            self._bytes -= len(batch.data)
            for mark in batch.marks:
                del self._uncertain[mark]

    def _remember(self, mark: str, fate: Fate) -> None:
        self._known[mark] = fate
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
