"""Writing what is stored once, however often it is sent: the same bytes go again, and the broker knows them (7, 20).

A batch whose fate is unknown is kept, with its producer id and numbers, until it is confirmed, or the broker has lost
track of that producer id. Nothing else waits for it: what is written beside it has another producer id.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from messaging.errors import MessagingError, PublishError, PublishUncertain
from messaging_kafka.exchange import ONE_REFUSED, Exchange, Fate, fate_of
from messaging_kafka.library import Errors, Place
from messaging_kafka.marks import Marks, Numbered
from messaging_kafka.producers import Producers
from messaging_kafka.writer import CODECS, NOT_SENT, build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.brokers import Brokers
    from messaging_kafka.records import Parcel

RENEWALS = 2
"""Times that one call takes another producer id for the same records."""

_LOST_TRACK = (
    Errors.OutOfOrderSequenceNumber,
    Errors.DuplicateSequenceNumber,
    Errors.InvalidProducerEpoch,
    Errors.UnknownProducerId,
)
"""The broker has not stored the batch now, and does not know whether it did so before."""


class _Queue:
    """What a call has left to write to one partition."""

    __slots__ = ("again", "fresh", "renewals", "single")

    def __init__(self) -> None:
        self.again: deque[Numbered] = deque()
        """Batches of former calls, first of all."""
        self.fresh: list[int] = []
        """Places of parcels that were never sent."""
        self.single = False
        self.renewals = 0


class _Call:
    """Parcels to write, and what is known of each."""

    def __init__(self, parcels: Sequence[Parcel], marks: Sequence[str], known: Marks) -> None:
        self.parcels = parcels
        self.marks = marks
        self.fates: list[Fate] = [NOT_SENT] * len(parcels)
        self.queues: dict[Place, _Queue] = {}
        self._places = {mark: at for at, mark in enumerate(marks)}
        for at, mark in enumerate(marks):
            fate, batch = known.fate(mark), known.batch(mark)
            if fate is not None:
                self.fates[at] = fate
            elif batch is None:
                self._queue(Place(parcels[at].topic, parcels[at].partition)).fresh.append(at)
            elif batch.under_way:
                self.fates[at] = PublishUncertain("it is under way")
            elif batch not in (again := self._queue(batch.to).again):
                again.append(batch)

    def _queue(self, place: Place) -> _Queue:
        return self.queues.setdefault(place, _Queue())

    def tell(self, batch: Numbered, fate: Fate) -> None:
        """What became of a batch; after a failed one nothing more is written to its partition."""
        for number, mark in enumerate(batch.marks):
            at = self._places.get(mark)
            if at is not None:
                self.fates[at] = fate + number if isinstance(fate, int) else fate
        queue = self.queues[batch.to]
        if not isinstance(fate, int):
            waiting, queue.again, queue.fresh = queue.again, deque(), []
            for other in waiting:
                for mark in other.marks:
                    if (at := self._places.get(mark)) is not None:
                        self.fates[at] = PublishUncertain(f"not sent again: {fate}")
        if not queue.again and not queue.fresh:
            del self.queues[batch.to]

    def refuse(self, place: Place, error: Exception) -> None:
        """There is no producer id for what was never sent."""
        for at in self.queues.pop(place).fresh:
            self.fates[at] = PublishError(str(error))


class OnceWriter:
    """Writes parcels that have marks. One per adapter."""

    def __init__(self, brokers: Brokers) -> None:
        self._address = brokers.link.settings.address
        self._codec = CODECS[brokers.link.settings.compression]
        self._exchange = Exchange(brokers)
        self._producers = Producers(brokers.link)
        self._marks = Marks(self._producers)
        self._unmarked = count()

    async def write(self, parcels: Sequence[Parcel], marks: Sequence[str | None]) -> list[Fate]:
        """One fate each, in order, as `Writer.write`. What is stored already has the offset that it got then.

        PublishUncertain: write it again with the same mark, within five minutes. Untraceable: that would not help.
        """
        self._marks.expire()
        call = _Call(parcels, [mark or f"none {next(self._unmarked)}" for mark in marks], self._marks)
        while call.queues:
            batches = await self._next(call)
            try:
                await self._exchange.send(batches)
            finally:
                fates = [self._settle(batch) for batch in batches]
            for batch, settled in zip(batches, fates, strict=True):
                fate = self._anew(call.queues[batch.to], batch) if settled is None else settled
                if fate is not None:
                    call.tell(batch, fate)
        return call.fates

    async def _next(self, call: _Call) -> list[Numbered]:
        """A batch of each queue. Where no producer id can be had, the queue ends."""
        batches: list[Numbered] = []
        try:
            for place, queue in list(call.queues.items()):
                if queue.again:
                    batch = queue.again.popleft()
                    batch.outcome, batch.under_way = None, True
                    batches.append(batch)
                    continue
                try:
                    batches.append(await self._fresh(call, place, queue))
                except MessagingError as error:
                    call.refuse(place, error)
        except BaseException:  # cancelled, too, it gives the numbers back that nobody has seen
            for batch in batches:
                batch.under_way = False
                if not batch.doubtful:
                    batch.producer.give_back(batch.to, 0)
            raise
        return batches

    async def _fresh(self, call: _Call, place: Place, queue: _Queue) -> Numbered:
        producer, sequence = await self._producers.take(place)
        waiting = queue.fresh[:1] if queue.single else queue.fresh
        numbers = producer.id, producer.epoch, sequence
        data, taken = build(call.parcels, waiting, self._codec, numbers)
        chosen, queue.fresh = queue.fresh[:taken], queue.fresh[taken:]
        return Numbered(place, chosen, data, producer, [call.marks[at] for at in chosen])

    def _settle(self, batch: Numbered) -> Fate | None:
        """What became of it; None where it is not stored, and may be sent anew."""
        batch.under_way = False
        outcome = batch.outcome
        if isinstance(outcome, int):
            batch.producer.give_back(batch.to, len(batch.marks))
            self._marks.confirm(batch, outcome)
            return outcome
        if outcome is None:
            self._marks.keep(batch)
            return PublishUncertain("its sending was broken off")
        lost_track = isinstance(outcome, _LOST_TRACK)
        if lost_track and batch.doubtful:
            return self._marks.lose(batch)
        fate = fate_of(batch, self._address)
        if isinstance(fate, PublishUncertain):
            self._marks.keep(batch)
            return fate
        if batch.refused:
            self._producers.retire(batch.producer)
        else:
            batch.producer.give_back(batch.to, 0)
        anew = lost_track or (isinstance(outcome, ONE_REFUSED) and len(batch.marks) > 1)
        return None if anew else fate

    def _anew(self, queue: _Queue, batch: Numbered) -> Fate | None:
        """Let its records go once more: with another producer id, and one by one if one may be refused for all."""
        assert isinstance(batch.outcome, Exception)
        if isinstance(batch.outcome, ONE_REFUSED):
            queue.single = True
        elif queue.renewals < RENEWALS:
            queue.renewals += 1
        else:
            return fate_of(batch, self._address)
        queue.fresh = [*batch.places, *queue.fresh]
        return None
