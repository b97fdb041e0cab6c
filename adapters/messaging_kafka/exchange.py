"""Batches on their way to the brokers: one per partition, few requests per broker, one outcome per batch."""

from __future__ import annotations

import asyncio
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
from messaging_kafka.brokers import GONE
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
    Errors.UnknownError,  # whatever the broker met with, it may have met with it afterwards
    Errors.CorrelationIdError,
)
_UNSENT = (Errors.NodeNotReadyError, Errors.NoBrokersAvailable, Errors.StaleMetadata)


class Batch:
    """Records of one partition that go together."""

    __slots__ = ("data", "doubtful", "moved", "outcome", "places", "refused", "to")

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


class Exchange:
    """Sends batches, of which each has a partition of its own."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._link = brokers.link
        self._timeout = brokers.link.settings.confirm_timeout
        self._unanswered = Unanswered(brokers, CHANNEL)

    async def send(self, batches: Sequence[Batch]) -> None:
        """Every batch once, and once more where another broker leads. Each has an outcome then."""
        for batch in batches:
            if len(batch.data) > REQUEST_BYTES:
                batch.outcome = Errors.MessageSizeTooLargeError()
        batches = [batch for batch in batches if batch.outcome is None]
        for _ in range(2):
            try:
                await self._brokers.find_leaders(batch.to for batch in batches)
            except (KafkaError, MessagingError) as error:
                for batch in batches:
                    batch.outcome = error
                return
            requests = self._requests(batches)
            if len(requests) == 1:
                await self._send_to(*requests[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for node, some in requests:
                        tasks.create_task(self._send_to(node, some))
            batches = [batch for batch in batches if batch.moved]
            if not batches:
                return
        for batch in batches:
            batch.outcome = await self._unled(batch.to)

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

    async def _unled(self, place: Place) -> PublishError:
        try:
            if not await self._brokers.partitions([place.topic]):
                return TopicNotFound(f"Kafka has no topic {place.topic}: it was deleted")
        except MessagingError as error:
            return _unsent(error)
        return PublishError(
            f"not sent: partition {place.partition} of {place.topic} has no leader at the moment"
        )

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

    def _refuse(self, batch: Batch, code: int) -> None:
        error = InvalidRecord() if code == INVALID_RECORD else library.failure_of(code)
        assert error is not None
        batch.refused = True
        if isinstance(error, _MOVED):
            self._brokers.forget_leader(batch.to)
            batch.moved = True
            # A leader that stored it, and ceased to be the leader before the others had it, says the same.
            batch.doubtful = batch.doubtful or isinstance(error, Errors.NotLeaderForPartitionError)
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


def _unsent(error: Any) -> PublishError:
    if isinstance(error, PublishError):
        return error
    failure = PublishError(str(error))
    failure.__cause__ = error
    return failure
