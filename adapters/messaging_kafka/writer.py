"""Writing to partitions: a batch per partition, one request per broker, one fate per record. Nothing is sent twice.

Every batch is confirmed by all replicas that are in sync. A partition has one batch of a call under way; after a failed
one nothing more of the call is written there (7). What another broker leads now was not written: it is asked once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.errors import (
    ConnectionFailed,
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
from messaging_kafka.records import COPY_ROOM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.brokers import Brokers
    from messaging_kafka.records import Parcel

Fate: TypeAlias = "int | PublishError"
"""The offset of a record that is stored, or why it is not."""

BATCH_BYTES = 512 << 10
"""Of a batch with several records; a single record may be larger."""
REQUEST_BYTES = 90 << 20
"""Of a batch: brokers close the connection on which a longer request comes (`socket.request.max.bytes`)."""
ALL_IN_SYNC = -1
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
CHANNEL = "write"

_MOVED = (*GONE, Errors.NotLeaderForPartitionError, Errors.LeaderNotAvailableError)
_UNKNOWN_FATE = (Errors.RequestTimedOutError, Errors.NotEnoughReplicasAfterAppendError)
_TOO_LARGE = (Errors.MessageSizeTooLargeError, Errors.RecordListTooLargeError)
_UNSENT = (Errors.NodeNotReadyError, Errors.NoBrokersAvailable, Errors.StaleMetadata)
_NOT_SENT = PublishError("not sent: an earlier message of the same partition failed")


class _Batch:
    """Records of one partition that go together."""

    __slots__ = ("data", "moved", "places", "to")

    def __init__(self, to: Place, places: list[int], data: bytes) -> None:
        self.to = to
        self.places = places
        """Where its records are among the parcels of the call."""
        self.data = data
        self.moved = False


class Writer:
    """Writes parcels. One per adapter."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._link = brokers.link
        settings = brokers.link.settings
        self._codec = CODECS[settings.compression]
        self._timeout = settings.confirm_timeout

    async def write_copies(self, parcels: Sequence[Parcel]) -> list[Fate]:
        """As `write`, each for itself: none fails for another, and what is too large as it is goes compressed.

        Another program may have sent it compressed. MessageTooLarge where even that does not fit.
        """
        most = self._link.settings.max_message_bytes + COPY_ROOM
        fates: list[Fate] = [_NOT_SENT] * len(parcels)
        waiting: list[int] = [at for at, parcel in enumerate(parcels) if parcel.size <= most]
        large = [at for at, parcel in enumerate(parcels) if parcel.size > most]
        while waiting:
            for at, fate in zip(waiting, await self.write([parcels[at] for at in waiting]), strict=True):
                fates[at] = fate
            refused = [at for at in waiting if isinstance(fates[at], MessageTooLarge)]
            large += refused
            # What lay behind one that was refused was not sent.
            waiting = [at for at in waiting if fates[at] is _NOT_SENT] if refused else []
        for at in large:
            (fates[at],) = await self.write([parcels[at]], squeezed=True)
        return fates

    async def write(self, parcels: Sequence[Parcel], *, squeezed: bool = False) -> list[Fate]:
        """One fate each, in order. Cancelling leaves the fates open and the connection whole.

        `squeezed`: compressed, whatever the settings say.
        """
        fates: list[Fate] = [_NOT_SENT] * len(parcels)
        waiting: dict[Place, list[int]] = {}
        for at, parcel in enumerate(parcels):
            place = Place(parcel.topic, parcel.partition)
            queue = waiting.get(place)
            if queue is None:
                waiting[place] = [at]
            else:
                queue.append(at)
        single: set[Place] = set()
        while waiting:
            if squeezed:
                batches = [
                    await asyncio.to_thread(self._batch, place, queue, parcels, squeezed=True)
                    for place, queue in waiting.items()
                ]
            else:
                batches = [
                    self._batch(place, queue, parcels, single=place in single)
                    for place, queue in waiting.items()
                ]
            await self._send(batches, fates, single)
            for batch in batches:
                queue = waiting[batch.to][len(batch.places) :]
                first = fates[batch.places[0]]
                if first is _AGAIN:
                    continue
                if not queue or isinstance(first, PublishError):
                    del waiting[batch.to]
                else:
                    waiting[batch.to] = queue
        return fates

    def _batch(
        self,
        to: Place,
        queue: list[int],
        parcels: Sequence[Parcel],
        *,
        single: bool = False,
        squeezed: bool = False,
    ) -> _Batch:
        codec = self._codec or (CODECS["gzip"] if squeezed else 0)
        builder = library.BatchBuilder(2, codec, 0, -1, -1, -1, BATCH_BYTES)
        now = int(time.time() * 1000)
        taken = 0
        for at in queue:
            parcel = parcels[at]
            if builder.append(taken, now, parcel.key, parcel.value, parcel.headers) is None:
                break
            taken += 1
            if single:
                break
        return _Batch(to, queue[:taken], bytes(builder.build()))

    async def _send(self, batches: list[_Batch], fates: list[Fate], single: set[Place]) -> None:
        """Every batch once, and once more where another broker leads."""
        large = [batch for batch in batches if len(batch.data) > REQUEST_BYTES]
        self._fail(large, fates, Errors.MessageSizeTooLargeError())
        batches = [batch for batch in batches if len(batch.data) <= REQUEST_BYTES]
        for _ in range(2):
            try:
                await self._brokers.find_leaders(batch.to for batch in batches)
            except (KafkaError, MessagingError) as error:
                self._fail(batches, fates, error)
                return
            by_node: dict[int, list[_Batch]] = {}
            for batch in batches:
                batch.moved = False
                node = self._brokers.leader(batch.to)
                if node is None:
                    batch.moved = True
                else:
                    by_node.setdefault(node, []).append(batch)
            if len(by_node) == 1:
                ((node, only),) = by_node.items()
                await self._exchange(node, only, fates, single)
            else:
                async with asyncio.TaskGroup() as tasks:
                    for node, some in by_node.items():
                        tasks.create_task(self._exchange(node, some, fates, single))
            batches = [batch for batch in batches if batch.moved]
            if not batches:
                return
        for batch in batches:
            fate = await self._unled(batch.to)
            for at in batch.places:
                fates[at] = fate

    async def _unled(self, place: Place) -> PublishError:
        try:
            if not await self._brokers.partitions([place.topic]):
                return TopicNotFound(f"Kafka has no topic {place.topic}: it was deleted")
        except MessagingError as error:
            return _unsent(error)
        return PublishError(
            f"not sent: partition {place.partition} of {place.topic} has no leader at the moment"
        )

    async def _exchange(
        self, node: int, batches: list[_Batch], fates: list[Fate], single: set[Place]
    ) -> None:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for batch in batches:
            topics.setdefault(batch.to.topic, []).append((batch.to.partition, batch.data))
        request = library.Produce(None, ALL_IN_SYNC, int(self._timeout * 1000), list(topics.items()))
        try:
            response = await self._link.send(request, node=node, channel=CHANNEL, within=self._timeout)
        except (KafkaError, MessagingError) as error:
            for batch in batches:
                self._brokers.forget_leader(batch.to)
            self._fail(batches, fates, error)
            return
        by_place = {batch.to: batch for batch in batches}
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                batch = by_place[Place(topic, partition)]
                if code:
                    self._refused(batch, code, fates, single)
                else:
                    for number, at in enumerate(batch.places):
                        fates[at] = offset + number

    def _refused(self, batch: _Batch, code: int, fates: list[Fate], single: set[Place]) -> None:
        error = library.failure_of(code)
        assert error is not None
        if isinstance(error, _MOVED):
            self._brokers.forget_leader(batch.to)
            batch.moved = True
        elif isinstance(error, _TOO_LARGE) and len(batch.places) > 1:
            # The topic takes less than it said: one by one, so that only what is too large fails.
            single.add(batch.to)
            for at in batch.places:
                fates[at] = _AGAIN
        else:
            self._fail([batch], fates, error)

    def _fail(self, batches: list[_Batch], fates: list[Fate], error: Exception) -> None:
        for batch in batches:
            fate = self._fate(batch.to, error)
            for at in batch.places:
                fates[at] = fate

    def _fate(self, to: Place, error: Exception) -> PublishError:
        address = self._link.settings.address
        if isinstance(error, (MessagingError, *_UNSENT)):
            return _unsent(translate(error, f"writing to {to.topic}", address))
        if isinstance(error, _TOO_LARGE):
            return MessageTooLarge(f"not stored: topic {to.topic} on Kafka takes no message of this size")
        what = f"writing to partition {to.partition} of {to.topic}"
        failure = translate(error, what, address)
        sent = isinstance(error, _UNKNOWN_FATE) or (
            isinstance(error, Errors.KafkaConnectionError) and isinstance(failure, ConnectionFailed)
        )
        fate: PublishError = PublishUncertain(str(failure)) if sent else _unsent(failure)
        fate.__cause__ = error
        return fate


_AGAIN = PublishError("to be sent again")


def _unsent(error: Any) -> PublishError:
    if isinstance(error, PublishError):
        return error
    failure = PublishError(str(error))
    failure.__cause__ = error
    return failure
