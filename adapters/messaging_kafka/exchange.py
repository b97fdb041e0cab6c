"""Batches on their way to the brokers: one per partition, few requests per broker, one outcome per batch."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.errors import (
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    MessagingError,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging_kafka import library
from messaging_kafka.brokers import GONE, LOOK_AGAIN
from messaging_kafka.connection import translate
from messaging_kafka.library import Errors, KafkaError, Place
from messaging_kafka.produce import Produce
from messaging_kafka.unanswered import Unanswered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.brokers import Brokers

Fate: TypeAlias = "int | PublishError"
"""The offset of a record that is stored, or why it is not."""

REQUEST_BYTES = 90 << 20
"""Of the batches in a request: brokers close a connection on which a longer one comes (`socket.request.max.bytes`)."""
CHANNEL = "write"
ELECTED_WITHIN = 5.0
"""Seconds for which a partition that has lost its leader is waited for: another is elected within them."""
LOOK_SELDOM = 0.2
"""Seconds between looks for a leader that takes longer."""
DOUBTS = 2
"""Brokers that may have stored a batch and ceased to lead: it is not sent to a third."""
INVALID_RECORD = 87
TOO_LARGE = (Errors.MessageSizeTooLargeError, Errors.RecordListTooLargeError)


class InvalidRecord(Errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types, and no name for it
    """A record of the batch has no key, and its topic is compacted."""


ONE_REFUSED = (*TOO_LARGE, InvalidRecord)
"""Outcomes that one record may have for all of its batch: they go one by one then."""

_MOVED = (*GONE, Errors.NotLeaderForPartitionError, Errors.LeaderNotAvailableError)
_UNKNOWN_FATE = (
    Errors.RequestTimedOutError,
    Errors.NotEnoughReplicasAfterAppendError,
    Errors.KafkaStorageError,  # the disk may have failed behind the batch
    Errors.UnknownError,  # whatever the broker met with, it may have met with it afterwards
    Errors.CorrelationIdError,
)
_UNSENT = (Errors.NodeNotReadyError, Errors.NoBrokersAvailable, Errors.StaleMetadata)


class Batch:
    """Records of one partition that go together."""

    __slots__ = (
        "blamed",
        "contested",
        "data",
        "doubtful",
        "doubts",
        "moved",
        "outcome",
        "places",
        "promised",
        "refused",
        "to",
        "unsent",
    )

    def __init__(self, to: Place, places: Sequence[int], data: bytes) -> None:
        self.to = to
        self.places = places
        """Where its records are among the parcels of the call."""
        self.data = data
        self.outcome: int | Exception | None = None
        """The offset of its first record, or why it is not stored; None as long as nothing is known."""
        self.moved = False
        self.refused = False
        """A broker had it and gave it back."""
        self.doubtful = False
        """It may be stored, whatever was said of it last."""
        self.begin()

    def begin(self) -> None:
        """It is about to be sent, perhaps once more."""
        self.doubts = 0
        """Brokers that may have stored it, and ceased to lead."""
        self.contested = False
        """Who was named as the leader did not take it: the next one must say itself that it leads."""
        self.promised: tuple[int, int] | None = None
        """Who said so last, and in which epoch."""
        self.blamed: tuple[int, int] | None = None
        """Who had said so, and then did not take it: that counts as a doubt."""
        self.unsent: Exception | None = None
        """Why it could not be sent to who leads."""


class Exchange:
    """Sends batches, of which each has a partition of its own."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._link = brokers.link
        self._timeout = brokers.link.settings.confirm_timeout
        self._unanswered = Unanswered(brokers, CHANNEL)
        self._unled: dict[Place, float] = {}
        """Since when partitions have no leader that takes anything, in monotonic seconds."""

    async def send(self, batches: Sequence[Batch]) -> None:
        """Every batch to who leads, and to another who leads in its place. Each has an outcome then.

        Where a partition has just lost its leader, the next one is waited for.
        """
        for batch in batches:
            batch.begin()
            if len(batch.data) > REQUEST_BYTES:
                batch.outcome = Errors.MessageSizeTooLargeError()
        batches = [batch for batch in batches if batch.outcome is None]
        pause = LOOK_AGAIN
        while True:
            try:
                await self._find_leaders(batches)
            except (KafkaError, MessagingError) as error:
                for batch in batches:
                    batch.outcome = error
                return
            requests = self._requests([batch for batch in batches if batch.outcome is None])
            if len(requests) == 1:
                await self._send_to(*requests[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for node, some in requests:
                        tasks.create_task(self._send_to(node, some))
            batches = [
                batch for batch in batches if batch.moved and batch.outcome is None and self._waits(batch)
            ]
            if not batches:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SELDOM)

    async def _find_leaders(self, batches: Sequence[Batch]) -> None:
        """Look for leaders that are not known. What is for a partition that is not there has its outcome."""
        await self._brokers.find_leaders(batch.to for batch in batches)
        absent = [batch for batch in batches if not self._brokers.knows(batch.to)]
        if absent:  # by a broker that may be behind
            there = await self._brokers.partitions({batch.to.topic for batch in absent})
            for batch in absent:
                if batch.to.topic not in there:
                    batch.outcome = TopicNotFound(f"Kafka has no topic {batch.to.topic}: it was deleted")
                elif not self._brokers.knows(batch.to):
                    batch.outcome = _without_leader(batch.to)
        contested = [batch for batch in batches if batch.contested]
        if contested:
            leading = await self._brokers.ask_leaders([batch.to for batch in contested])
            for batch in contested:
                self._promise(batch, leading.get(batch.to))

    def _promise(self, batch: Batch, leader: tuple[int, int] | None) -> None:
        """It may go to this one, which says that it leads in this epoch; not to a third that may have stored it.

        One that led in the epoch before it was asked for the last time, and still does, cannot have ceased to lead
        in between: it had not begun to yet, and has not stored it.
        """
        if leader is None:
            return
        if leader == batch.blamed:
            batch.doubts, batch.blamed = batch.doubts - 1, None
        batch.promised = leader
        if batch.doubts >= DOUBTS:
            batch.outcome = batch.outcome or _without_leader(batch.to)

    def _waits(self, batch: Batch) -> bool:
        """Whether another leader may take it soon; else it has its outcome."""
        now = time.monotonic()
        if now - self._unled.setdefault(batch.to, now) < ELECTED_WITHIN:
            return True
        batch.outcome = batch.unsent or _without_leader(batch.to)
        return False

    def _requests(self, batches: Sequence[Batch]) -> list[tuple[int, list[Batch]]]:
        """What goes to each leader, in requests that a broker takes. A batch without a leader has moved."""
        requests: list[tuple[int, list[Batch]]] = []
        filling: dict[int, list[Batch]] = {}
        sizes: Counter[int] = Counter()
        for batch in batches:
            node = self._brokers.leader(batch.to)
            batch.moved = node is None
            if node is None:
                continue
            sizes[node] += len(batch.data)
            if node not in filling or sizes[node] > REQUEST_BYTES:
                filling[node], sizes[node] = [], len(batch.data)
                requests.append((node, filling[node]))
            filling[node].append(batch)
        return requests

    async def _send_to(self, node: int, batches: Sequence[Batch]) -> None:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for batch in batches:
            topics.setdefault(batch.to.topic, []).append((batch.to.partition, batch.data))
        request = Produce(int(self._timeout * 1000), list(topics.items()))
        self._unanswered.begin(request, node, [batch.to for batch in batches])
        try:
            response = await self._link.send(request, node=node, channel=CHANNEL, within=self._timeout)
        except (KafkaError, MessagingError) as error:
            for batch in batches:
                self._brokers.forget_leader(batch.to)
                if isinstance(error, _UNSENT):
                    batch.moved, batch.unsent, batch.contested = True, error, True
                else:
                    batch.outcome = error
            return
        finally:
            self._unanswered.end(request)
        by_place = {batch.to: batch for batch in batches}
        for topic, partitions in response.topics:
            for partition, code, offset in partitions:
                batch = by_place[Place(topic, partition)]
                if code:
                    self._refuse(batch, code)
                else:
                    batch.outcome = offset
                if self._unled and not batch.moved:
                    self._unled.pop(batch.to, None)

    def _refuse(self, batch: Batch, code: int) -> None:
        error = InvalidRecord() if code == INVALID_RECORD else library.failure_of(code)
        assert error is not None
        batch.refused = True
        if isinstance(error, _MOVED):
            self._brokers.forget_leader(batch.to)
            batch.moved, batch.unsent, batch.contested = True, None, True
            # A leader that stored it, and ceased to be the leader before the others had it, says the same.
            if isinstance(error, Errors.NotLeaderForPartitionError):
                batch.doubtful = True
                batch.doubts += 1
                batch.blamed = batch.promised
        else:
            batch.outcome = error


def fate_of(batch: Batch, address: str) -> PublishError:
    """What is told of a batch that is not known to be stored: PublishUncertain where the broker may have it."""
    assert isinstance(batch.outcome, Exception)
    fate = _said_by(batch.outcome, batch.to, address)
    if batch.doubtful and not isinstance(fate, PublishUncertain):
        return PublishUncertain(
            f"its broker ceased to lead partition {batch.to.partition} and may have stored it; then: {fate}"
        )
    return fate


def _said_by(error: Exception, to: Place, address: str) -> PublishError:
    if isinstance(error, (MessagingError, *_UNSENT)):
        return _unsent(translate(error, f"writing to {to.topic}", address))
    if isinstance(error, TOO_LARGE):
        return MessageTooLarge(f"not stored: topic {to.topic} on Kafka takes no message of this size")
    if isinstance(error, InvalidRecord):
        return InvalidMessage(
            f"not stored: topic {to.topic} on Kafka is compacted (cleanup.policy) and takes no message without a key. "
            f"Give it one, or let the topic delete by age"
        )
    what = f"writing to partition {to.partition} of {to.topic}"
    failure = translate(error, what, address)
    sent = isinstance(error, _UNKNOWN_FATE) or (
        isinstance(error, Errors.KafkaConnectionError) and isinstance(failure, ConnectionFailed)
    )
    fate: PublishError = PublishUncertain(str(failure)) if sent else _unsent(failure)
    fate.__cause__ = error
    return fate


def _without_leader(place: Place) -> PublishError:
    return PublishError(f"not sent: partition {place.partition} of {place.topic} has no leader at the moment")


def _unsent(error: Any) -> PublishError:
    if isinstance(error, PublishError):
        return error
    failure = PublishError(str(error))
    failure.__cause__ = error
    return failure
