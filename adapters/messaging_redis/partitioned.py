"""Members that own partitions: an ordered group.

Every read and every settlement names the lease's epoch and is refused on the server when the lease is another's. A
read that waits cannot be fenced, so it only wakes; the entries come from a script that does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from messaging.adapter import Consumer, ConsumerStatus, RawDelivery
from messaging.background import Background
from messaging.errors import Closed, ConnectionFailed, LeaseLost, MessagingError
from messaging_redis.connection import translate
from messaging_redis.consumer import stream_pairs
from messaging_redis.entries import Token, decode_copy, decode_entry
from messaging_redis.fenced import CONSUMER, FencedSettler
from messaging_redis.ownership import NEW, PENDING, Partition, Partitions, Source
from messaging_redis.positions import put_back
from messaging_redis.scripts import FENCED_ISOLATE, FENCED_READ

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import Ownership, Settled, Settlement, Subscription
    from messaging_redis.connection import Connection
    from messaging_redis.line import Argument
    from messaging_redis.topology import TopologyKeeper
    from messaging_redis.trimming import Trimmer

logger = logging.getLogger("messaging")

_REDRIVE_LOOK = 1.0
"""Seconds after which an empty redrive stream is looked at again by a member that never waits."""
_POSITIONS_LOOK = 5.0
"""Seconds after which the positions of the group are looked at again, and at once where a wake brought nothing."""


class PartitionedConsumer(Consumer):
    """A member of an ordered group."""

    lease = None

    def __init__(
        self,
        connection: Connection,
        topology: TopologyKeeper,
        trimmer: Trimmer,
        subscription: Subscription,
        ownership: Ownership,
        member: str,
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._trimmer = trimmer
        self._group = subscription.group
        self._keys = topology.group_keys(self._group)
        self._member = f"{member}.{uuid4().hex[:8]}"
        self._background = Background()
        self._settler = FencedSettler(connection, self._keys, self._where)
        self._partitions = Partitions(
            connection, self._keys, self._member, ownership, self._settler, self._background
        )
        self._ready: list[RawDelivery] = []
        self._reading: asyncio.Task[list[RawDelivery]] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._waking_for: frozenset[str] = frozenset()
        self._turn = 0
        self._woken = False
        """Something was there to read when the reader last waited."""
        self._next_look = 0.0
        self._asked = False
        """A heartbeat was sent: the server may know us, though a cancelled call never had its answer."""
        self._joined = False
        self._closed = False

    # --- receive -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        """See `Consumer.receive`. A read that a cancelled call began goes on; the next call returns what it brings."""
        if self._closed:
            raise Closed(f"this member of {self._where} is closed: make a new one")
        self._background.check()
        until = time.monotonic() + wait
        if not self._joined or self._partitions.error is not None:
            self._asked = True
            await self._partitions.beat()
            if not self._joined:
                self._joined = True
                self._background.start(self._partitions.keep(), name="messaging-redis-heartbeat")
                # Beside the heartbeat, which must not wait for it.
                self._background.start(self._tend(), name="messaging-redis-tend")
        while True:
            self._partitions.changed.clear()
            readable = self._readable(paused)
            if self._reading is None and readable and not self._ready:
                self._reading = asyncio.create_task(self._read(readable, limit), name="messaging-redis-read")
            if self._reading is not None:
                await asyncio.wait((self._reading,))
                reading, self._reading = self._reading, None
                self._ready += reading.result()
            if taken := self._take_ready(limit, paused):
                return taken
            if self._partitions.error is not None:
                raise self._partitions.error
            if (left := until - time.monotonic()) <= 0:
                return []
            if not self._partitions.changed.is_set():
                await self._wake(readable, left)

    def _readable(self, paused: Collection[int]) -> list[Partition]:
        now = time.monotonic()
        self._turn += 1
        open_ones = [
            partition
            for partition in self._partitions.owned.values()
            if not partition.draining and partition.number not in paused and partition.lease.deadline > now
        ]
        at = self._turn % len(open_ones) if open_ones else 0
        return open_ones[at:] + open_ones[:at]

    def _take_ready(self, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        taken: list[RawDelivery] = []
        left: list[RawDelivery] = []
        for delivery in self._ready:
            partition = self._partitions.owned.get(delivery.partition)
            if partition is None or partition.epoch != delivery.fence or partition.draining:
                continue  # lost, or given back with its partition: nothing is read while anything waits here
            if len(taken) < limit and delivery.partition not in paused:
                taken.append(delivery)
            else:
                left.append(delivery)
        self._ready = left
        return taken

    async def _read(self, partitions: Sequence[Partition], limit: int) -> list[RawDelivery]:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _POSITIONS_LOOK
            await put_back(self._connection, self._group, self._keys, partitions)
        pairs = [
            (partition, source)
            for partition in partitions
            for source in partition.sources
            if source.asleep_until <= now
        ]
        keys = [
            self._keys.leases,
            self._keys.failures,
            self._keys.guard,
            *(source.stream for _, source in pairs),
        ]
        arguments: list[Argument] = [self._keys.name, CONSUMER, limit]
        for partition, source in pairs:
            counted = partition.counted and not source.missed
            flag = int(counted) if source.cursor != NEW else 2 if source.wake_after else 0
            arguments += [partition.number, partition.key, source.name, source.cursor, flag]
        try:
            server_ms, *replies = await self._connection.run(FENCED_READ, keys, arguments)
        except MessagingError:
            for _, source in pairs:
                source.look_back()
            raise
        found: list[RawDelivery] = []
        for (partition, source), (state, entries, last) in zip(pairs, replies, strict=True):
            if state == b"lost":
                self._partitions.lose(partition, "another member owns the partition")
            elif state == b"nogroup":
                if source.redriven:
                    # It begins with the first redrive.
                    source.asleep_until = now + _REDRIVE_LOOK
                else:
                    await self._topology.restore(self._group)
                source.cursor, source.wake_after, source.seen, source.missed = NEW, "0-0", PENDING, False
                source.certain = False
            else:
                if source.redriven and not entries and source.cursor == NEW:
                    source.asleep_until = now + _REDRIVE_LOOK
                found += self._take_in(partition, source, entries, server_ms)
                _advance(source, state, last.decode())
        if self._woken and limit:
            self._woken = False
            if not found:
                self._next_look = 0.0
        return found

    def _take_in(
        self, partition: Partition, source: Source, entries: Sequence[Any], server_ms: int
    ) -> list[RawDelivery]:
        found: list[RawDelivery] = []
        for raw_id, fields, count, record, marked, deleted in entries:
            id = raw_id.decode()
            if deleted:
                logger.error(
                    "Entry %s of %s was deleted from Redis before it was handled",
                    id,
                    self._where,
                    extra=self._extra(),
                )
                continue
            token = Token(source.name, source.stream, id, bool(marked))
            field = token.field
            if field in partition.held:
                continue
            delivery = self._delivery(partition, source, token, fields, count, record.decode())
            if record:
                delivery.hold = max(0, int(record.split(b"|", 3)[2]) - server_ms) / 1000
            partition.held[field] = delivery
            found.append(delivery)
        return found

    def _delivery(
        self, partition: Partition, source: Source, token: Token, fields: list[bytes], count: int, record: str
    ) -> RawDelivery:
        native, failure = fields, None
        position, attempt = f"{partition.number}/{token.id}", 1
        returns = max(0, count - 1)
        if source.redriven:
            copy = decode_copy(fields, token.id)
            fields, position, failure = copy.fields, copy.origin, copy.failure
        if record:
            failed, base, _, failure = record.split("|", 3)
            attempt, returns, failure = int(failed) + 1, max(0, count - int(base)), failure or None
        message, reply_to = decode_entry(fields, topic=self._group.topic.name, position=position)
        return RawDelivery(
            message,
            partition.number,
            position,
            attempt,
            max(1, count),
            returns,
            "tripped" if token.marked else "none",
            failure,
            reply_to,
            partition.epoch,
            partition.lease,
            native,
            token,
        )

    async def _wake(self, readable: Sequence[Partition], wait: float) -> None:
        """Wait for something to read, or for a change of what is ours; at most `wait` seconds."""
        sources = [source for partition in readable for source in partition.sources]
        if any(source.cursor != NEW or not source.wake_after for source in sources):
            return
        if sources:
            names = frozenset(source.stream for source in sources)
            if self._waking is not None and (self._waking.done() or self._waking_for != names):
                await self._end_waking()
            if self._waking is None:
                self._waking_for = names
                self._waking = asyncio.create_task(
                    self._wait_for_entries(sources), name="messaging-redis-wake"
                )
        changed = asyncio.create_task(self._partitions.changed.wait())
        waits = {changed} if self._waking is None else {changed, self._waking}
        try:
            await asyncio.wait(waits, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if self._waking is not None and self._waking.done():
            waking, self._waking = self._waking, None
            waking.result()

    async def _wait_for_entries(self, sources: Sequence[Source]) -> None:
        block = self._connection.settings.block
        command: list[Argument] = ["XREAD", "COUNT", 1, "BLOCK", max(1, int(block * 1000)), "STREAMS"]
        command += [source.stream for source in sources]
        command += [source.wake_after for source in sources]
        (reply,) = await self._connection.exchange(self._keys.leases, (command,), wait=block)
        if isinstance(reply, Exception):
            raise translate(reply, "XREAD")
        woken = {key.decode() for key, _ in stream_pairs(reply)}
        self._woken = bool(woken)
        for source in sources:
            if source.stream in woken:
                source.asleep_until = 0.0

    async def _end_waking(self) -> None:
        waking, self._waking = self._waking, None
        if waking is not None:
            # It has taken nothing: ending it loses nothing.
            waking.cancel()
            await asyncio.wait((waking,))
            if not waking.cancelled():
                waking.exception()

    # --- settle ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """See `Consumer.settle`. Fenced: refused with LeaseLost when the partition has another owner."""
        return await self._settler.settle(settlements, self._partitions.owned)

    async def extend(
        self,
        deliveries: Sequence[RawDelivery],
        seconds: float,  # noqa: ARG002  the SPI's: the heartbeat extends
    ) -> Sequence[bool]:
        """Leases are the partitions', kept by the heartbeat: this only tells which still hold."""
        return [self._owner_of(delivery) is not None for delivery in deliveries]

    async def isolate(self, delivery: RawDelivery) -> bool:
        """See `Consumer.isolate`."""
        partition = self._owner_of(delivery)
        stored = 0
        if partition is not None:
            stored = await self._connection.run(
                FENCED_ISOLATE,
                [self._keys.leases, self._keys.guard],
                [partition.number, partition.key, delivery.token.field],
            )
        if not stored:
            raise LeaseLost(
                f"message {delivery.message.id} of {self._where}: partition {delivery.partition} has another owner"
            )
        delivery.token.marked = True
        delivery.guard = "alone"
        return True

    async def _tend(self) -> None:
        """Trim now and then. An error waits for the next round."""
        while True:
            try:
                await self._trimmer.trim(self._group.topic)
            except ConnectionFailed:
                pass
            except Closed:
                return
            except MessagingError as error:
                logger.warning("Trimming for %s on Redis failed: %s", self._where, error, extra=self._extra())
            await asyncio.sleep(self._connection.settings.poll)

    def _owner_of(self, delivery: RawDelivery) -> Partition | None:
        partition = self._partitions.owned.get(delivery.partition)
        return partition if partition is not None and partition.epoch == delivery.fence else None

    # --- lifecycle ---------------------------------------------------------------------------------------------

    def status(self) -> ConsumerStatus:
        """See `Consumer.status`."""
        connected = self._joined and not self._closed and self._partitions.error is None
        return ConsumerStatus(connected, frozenset(self._partitions.owned))

    async def close(self) -> None:
        """See `Consumer.close`."""
        if self._closed:
            return
        self._closed = True
        await self._background.stop()
        await self._end_waking()
        if self._reading is not None:
            reading, self._reading = self._reading, None
            await asyncio.wait((reading,), timeout=self._connection.settings.socket_timeout)
            if not reading.done():
                reading.cancel()
                await asyncio.wait((reading,))
            if not reading.cancelled():
                reading.exception()
        if not self._asked:
            return
        try:
            await self._settler.give_back(list(self._partitions.owned.values()))
            await self._partitions.leave()
        except MessagingError as error:
            logger.warning(
                "Leaving %s on Redis failed: %s. Its partitions go to others after %g s.",
                self._where,
                error,
                self._connection.settings.partition_lease,
                extra=self._extra(),
            )
        self._partitions.owned.clear()

    @property
    def _where(self) -> str:
        return f"{self._group.topic.name}/{self._group.name}"

    def _extra(self) -> dict[str, str]:
        return {"topic": self._group.topic.name, "group": self._group.name}


def _advance(source: Source, state: bytes, last: str) -> None:
    if last:
        source.seen = last
    if source.cursor == NEW:
        if last:
            source.wake_after, source.certain = last, state != b"astray"
    elif state == b"end":
        source.cursor, source.missed = NEW, False
    elif last:
        source.cursor = last
