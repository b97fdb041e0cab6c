"""Members that share all partitions of a topic: an unordered group.

A delivery is ours while its idle time on the server is below our lease. Retries with a delay wait in a sorted set by
due time; any member moves the due ones onto the group's retry stream, which all members read beside the partitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from messaging.adapter import Consumer, ConsumerStatus, Lease, RawDelivery
from messaging.background import Background
from messaging.errors import Closed, ConnectionFailed, LeaseLost, MessagingError
from messaging_redis.connection import Interrupted, code_of, translate
from messaging_redis.entries import Token, decode_copy, decode_entry
from messaging_redis.scripts import EXTEND, ISOLATE, LEAVE, MOVE, RECOVER, TAKE, TAKE_OVER
from messaging_redis.settling import RETRY, SharedSettler

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import Settled, Settlement, Subscription
    from messaging_redis.connection import Connection
    from messaging_redis.line import Argument
    from messaging_redis.topology import TopologyKeeper
    from messaging_redis.trimming import Trimmer

logger = logging.getLogger("messaging")

_CHUNK = 128
_MOVED_AT_ONCE = 128
_PRESENT = 3.0
"""How many polls a member may miss before it no longer counts as present."""
_LOOK_FOR_DEAD_MEMBERS = 60.0
_UNBLOCK_AGAIN = 0.1


class SharedConsumer(Consumer):
    """A member of an unordered group."""

    def __init__(
        self,
        connection: Connection,
        topology: TopologyKeeper,
        trimmer: Trimmer,
        subscription: Subscription,
        member: str,
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._trimmer = trimmer
        self._subscription = subscription
        self._group = subscription.group
        self._keys = topology.group_keys(self._group)
        settings = connection.settings
        self.lease = settings.lease
        self._block = min(settings.block, settings.lease / 4)
        self._poll = settings.poll
        # The name ends with our lease, so that members with another lease respect it.
        self._name = f"{member}.{uuid4().hex[:8]}~{int(settings.lease * 1000)}"
        keys = self._keys
        self._streams: dict[str, str] = {RETRY: keys.retry} | {
            f"m{p}": key for p, key in enumerate(keys.topic.streams)
        }
        self._partitions = {f"m{p}": p for p in range(len(keys.topic.streams))}
        self._sources: list[str] = list(self._streams)
        self._names = {stream.encode(): source for source, stream in self._streams.items()}
        self._settler = SharedSettler(
            connection, keys, self._streams, consumer=self._name, where=self._where, delayed=self._put_aside
        )
        self._held = self._settler.held
        self._ready: list[RawDelivery] = []
        self._reading: asyncio.Task[list[RawDelivery]] | None = None
        self._background = Background()
        self._due = asyncio.Event()
        self._soonest = inf
        self._next_take_over = 0.0
        self._next_reaping = 0.0
        self._recover = False
        self._more = False
        """The last read brought much of what was asked for: there is more, as it seems."""
        self._waiting: int | None = None
        """The connection on which a read waits on the server."""
        self._joined = False
        self._connected = False
        self._closed = False

    # --- receive -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        """See `Consumer.receive`. A read that a cancelled call began goes on; the next call returns what it brings."""
        if self._closed:
            raise Closed(f"this member of {self._where} is closed: make a new one")
        self._background.check()
        until = time.monotonic() + wait
        if not self._joined:
            await self._join()
        while True:
            if taken := self._take_ready(limit, paused):
                return taken
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(limit), name="messaging-redis-read")
            done, _ = await asyncio.wait((self._reading,), timeout=max(0.0, until - time.monotonic()))
            if not done:
                return []
            reading, self._reading = self._reading, None
            try:
                self._ready += reading.result()
            except ConnectionFailed:
                self._connected = False
                raise
            self._connected = True
            if not self._ready and time.monotonic() >= until:
                return []

    def _take_ready(self, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        if not self._ready:
            return []
        now = time.monotonic()
        taken: list[RawDelivery] = []
        left: list[RawDelivery] = []
        for delivery in self._ready:
            if delivery.lease.deadline <= now:
                self._settler.forget(delivery)
            elif len(taken) < limit and delivery.partition not in paused:
                taken.append(delivery)
            else:
                left.append(delivery)
        self._ready = left
        return taken

    async def _join(self) -> None:
        if self._group.native is not None:
            await self._topology.ensure_retry_stream(self._keys)
        # Of nothing: on a slow network the first lease might end while its connection is made.
        await self._connection.run(
            EXTEND, list(self._streams.values()), [self._keys.name, self._name, 0], use="leases"
        )
        self._joined = True
        self._background.start(self._tend(), name="messaging-redis-tend")

    async def _read(self, limit: int) -> list[RawDelivery]:
        if not self._more:  # else the server reads while what the former read brought is handled
            await asyncio.sleep(0)  # what the former read brought is handled, and answered, first
        try:
            if self._recover:
                recovered = await self._recover_lost(limit)
                if recovered:
                    return recovered
            now = time.monotonic()
            if now >= self._next_take_over:
                self._next_take_over = now + self._connection.settings.lease / 4
                if taken := await self._take_over(limit):
                    self._next_take_over = now
                    return taken
            return await self._read_new(limit)
        except Interrupted:
            # The server may have given us what never arrived here.
            self._recover = True
            raise

    async def _read_new(self, limit: int) -> list[RawDelivery]:
        lease = self._new_lease()
        self._sources.append(self._sources.pop(0))
        sources: list[str] = list(self._sources)
        if limit < len(sources):
            # COUNT is per stream: only a script takes no more than asked for in all.
            keys = [self._streams[source] for source in sources]
            reply = await self._call(TAKE.call(keys, [self._keys.name, self._name, limit]))
            taken = [
                delivery
                for at, entries in reply or ()
                for delivery in self._first(sources[int(at)], entries, lease)
            ]
            if taken or reply is None:
                return taken
        count = max(1, limit // len(sources))
        command: list[Argument] = ["XREADGROUP", "GROUP", self._keys.name, self._name, "COUNT", count]
        command += ["BLOCK", max(1, int(self._block * 1000)), "STREAMS"]
        command += [self._streams[source] for source in sources]
        command += [">"] * len(sources)
        reply = await self._call(command, wait=self._block)
        found = [
            delivery
            for key, entries in stream_pairs(reply)
            for delivery in self._first(self._names[key], entries, lease)
        ]
        self._more = 2 * len(found) >= limit
        if len(found) > limit:
            await self._settler.give_back(found[limit:])
        return found[:limit]

    async def _call(self, command: Sequence[Argument], *, wait: float | None = None) -> Any:
        if wait is None:
            (reply,) = await self._connection.exchange(self._keys.retry, (command,))
        else:
            reply = await self._connection.wait_for(self._keys.retry, command, wait, self._begun)
            self._waiting = None
        if isinstance(reply, Exception):
            if code_of(reply) == "NOGROUP":
                await self._topology.restore(self._group)
                return None
            raise translate(reply, str(command[0]))
        return reply

    def _begun(self, connection: int) -> None:
        if self._closed:  # meanwhile: nobody would end the wait
            raise Closed(f"this member of {self._where} is closed")
        self._waiting = connection

    async def _take_over(self, limit: int) -> list[RawDelivery]:
        """Entries whose owner has shown no life for its lease; counted, so that a killer is found (3)."""
        now, lease = time.monotonic(), self._new_lease()
        for delivery in list(self._held):
            if delivery.lease.deadline <= now:
                del self._held[delivery]
        sources: list[str] = list(self._streams)
        keys = [self._keys.guard, *(self._streams[source] for source in sources)]
        arguments: list[Argument] = [
            self._keys.name,
            self._name,
            int(self._connection.settings.lease * 1000),
            limit,
        ]
        reply = await self._call(TAKE_OVER.call(keys, [*arguments, *sources]))
        return [
            self._delivery(sources[int(at)], id, fields, count, bool(marked), lease)
            for at, id, fields, count, marked in reply or ()
        ]

    async def _recover_lost(self, limit: int) -> list[RawDelivery]:
        lease = self._new_lease()
        sources: list[str] = list(self._streams)
        keys = [self._keys.guard, *(self._streams[source] for source in sources)]
        held = [delivery.token.field for delivery in self._held]
        arguments: list[Argument] = [self._keys.name, self._name, limit, *sources, "", *held]
        reply = await self._call(RECOVER.call(keys, arguments))
        if reply is None or len(reply) < limit:
            self._recover = False
        return [
            self._delivery(sources[int(at)], id, fields, count, False, lease)
            for at, id, fields, count, _ in reply or ()
        ]

    def _new_lease(self) -> Lease:
        """Of all that one command hands to us, from when it is sent."""
        return Lease(time.monotonic() + self._connection.settings.lease)

    def _first(self, source: str, entries: Sequence[Any], lease: Lease) -> list[RawDelivery]:
        """The first hand-over of new entries, as `_delivery` makes it: the fast path for those of a partition."""
        if source == RETRY:
            return [self._delivery(source, id, fields, 1, False, lease) for id, fields in entries]
        partition, stream, topic = self._partitions[source], self._streams[source], self._group.topic.name
        found: list[RawDelivery] = []
        for raw_id, fields in entries:
            id = raw_id.decode()
            position = f"{partition}/{id}"
            message, reply_to = decode_entry(fields, topic=topic, position=position)
            delivery = RawDelivery(
                message,
                partition,
                position,
                1,
                1,
                0,
                "none",
                None,
                reply_to,
                0,
                lease,
                fields,
                Token(source, stream, id),
            )
            found.append(delivery)
        self._held.update(dict.fromkeys(found))
        return found

    def _delivery(
        self, source: str, raw_id: bytes, fields: list[bytes], count: int, marked: bool, lease: Lease
    ) -> RawDelivery:
        id = raw_id.decode()
        topic, failure = self._group.topic.name, None
        if source == RETRY:
            copy = decode_copy(fields, id)
            fields, failure = copy.fields, copy.failure
            partition, position, attempt = copy.partition, copy.origin, copy.failures + 1
            deliveries, returns = copy.deliveries + count, copy.returns + count - 1
        else:
            partition = self._partitions[source]
            position, attempt, deliveries, returns = f"{partition}/{id}", 1, count, count - 1
        message, reply_to = decode_entry(fields, topic=topic, position=position)
        token = Token(source, self._streams[source], id, marked)
        delivery = RawDelivery(
            message,
            partition,
            position,
            attempt,
            deliveries,
            returns,
            "tripped" if marked else "none",
            failure,
            reply_to,
            0,
            lease,
            fields,
            token,
        )
        self._held[delivery] = None
        return delivery

    # --- settle ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """See `Consumer.settle`."""
        return await self._settler.settle(settlements)

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        """See `Consumer.extend`. A lease never gets longer than this member's own."""
        sources = list(self._streams)
        longest = self._connection.settings.lease
        kept: list[bool] = []
        for start in range(0, len(deliveries), _CHUNK):
            part = deliveries[start : start + _CHUNK]
            # A new one: the former is shared with others, which may not be extended.
            lease = Lease(time.monotonic() + min(seconds, longest))
            arguments: list[Argument] = [self._keys.name, self._name, max(0, int((longest - seconds) * 1000))]
            for delivery in part:
                arguments += [1 + sources.index(delivery.token.source), delivery.token.id]
            replies = await self._connection.run(
                EXTEND, list(self._streams.values()), arguments, use="leases"
            )
            for delivery, reply in zip(part, replies, strict=True):
                # What was settled meanwhile is not lost: its settlement answers for it.
                ours = bool(reply) or delivery.token.settled
                if ours:
                    delivery.lease = lease
                else:
                    self._settler.forget(delivery)
                kept.append(ours)
        return kept

    async def isolate(self, delivery: RawDelivery) -> bool:
        """See `Consumer.isolate`."""
        token: Token = delivery.token
        stored = await self._connection.run(
            ISOLATE, [self._keys.guard, token.stream], [self._keys.name, self._name, token.id, token.field]
        )
        if not stored:
            self._settler.forget(delivery)
            raise LeaseLost(f"message {delivery.message.id} of {self._where} has another owner on Redis")
        token.marked = True
        delivery.guard = "alone"
        return True

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Move due retries, show presence, trim. An error waits for the next round: `receive` reports it."""
        while True:
            wait = self._poll
            self._soonest = inf
            try:
                moved, next_due, foreign = await self._connection.run(
                    MOVE,
                    [self._keys.delayed, self._keys.retry, self._keys.members],
                    [self._name, int(max(self._poll * _PRESENT, 1.0) * 1000), _MOVED_AT_ONCE],
                )
                if foreign:
                    logger.error(
                        "%d entries among the delayed retries of %s were put there by another program, and removed",
                        *(foreign, self._where),
                        extra=self._extra(),
                    )
                if moved >= _MOVED_AT_ONCE:
                    continue
                if next_due >= 0:
                    # One millisecond more: what is due now is not yet due for a clock that was cut off.
                    wait = min(wait, (next_due + 1) / 1000)
                await self._trimmer.trim(self._group.topic)
                await self._reap()
            except ConnectionFailed:
                pass
            except Closed:
                return
            except MessagingError as error:
                logger.warning(
                    "Looking after %s on Redis failed: %s", self._where, error, extra=self._extra()
                )
            await self._until_due(time.monotonic() + wait)

    def _put_aside(self, after: float) -> None:
        """A retry of this member is due in `after` seconds."""
        self._soonest = min(self._soonest, time.monotonic() + after)
        self._due.set()

    async def _until_due(self, due: float) -> None:
        """Wait until `due`, or until the first retry that this member has put aside meanwhile."""
        while (wait := min(due, self._soonest) - time.monotonic()) > 0:
            self._due.clear()
            with contextlib.suppress(TimeoutError):  # it is due
                async with asyncio.timeout(wait):
                    await self._due.wait()

    async def _reap(self) -> None:
        """Forget the consumers of members that died long ago and own nothing."""
        now = time.monotonic()
        if now < self._next_reaping or self._group.native is not None:
            return
        self._next_reaping = now + _LOOK_FOR_DEAD_MEMBERS
        streams = list(self._streams.values())
        await self._connection.run(LEAVE, [self._keys.members, *streams], [self._keys.name, self._name, 1])

    def status(self) -> ConsumerStatus:
        """See `Consumer.status`."""
        return ConsumerStatus(connected=self._connected and not self._closed)

    async def close(self) -> None:
        """See `Consumer.close`."""
        if self._closed:
            return
        self._closed = True
        await self._background.stop()
        await self._end_reading()
        if not self._joined:
            return
        try:
            await self._settler.give_back(list(self._held))
            streams = list(self._streams.values())
            await self._connection.run(
                LEAVE, [self._keys.members, *streams], [self._keys.name, self._name, 0]
            )
        except MessagingError as error:
            logger.warning(
                "Leaving %s on Redis failed: %s. What was not settled is delivered again after %g s.",
                self._where,
                error,
                self.lease,
                extra=self._extra(),
            )

    async def _end_reading(self) -> None:
        """What is read is let finish: a cancelled read may leave entries with nobody."""
        reading, self._reading = self._reading, None
        if reading is None:
            return
        end = time.monotonic() + self._block + self._connection.settings.socket_timeout
        while not reading.done() and (left := end - time.monotonic()) > 0:
            if self._waiting is not None:
                with contextlib.suppress(MessagingError):  # then the read ends after its longest wait
                    await self._connection.unblock(self._keys.retry, self._waiting)
            # Again then: the server may not have begun the read when it was to end it.
            await asyncio.wait((reading,), timeout=min(left, _UNBLOCK_AGAIN))
        if not reading.done():
            reading.cancel()
            await asyncio.wait((reading,))
        if not reading.cancelled():
            reading.exception()

    @property
    def _where(self) -> str:
        return f"{self._group.topic.name}/{self._group.name}"

    def _extra(self) -> dict[str, str]:
        return {"topic": self._group.topic.name, "group": self._group.name}


def stream_pairs(reply: Any) -> list[tuple[bytes, list[Any]]]:
    """The streams of a read and their entries: a map, or a list of pairs from an older protocol."""
    if not reply:
        return []
    pairs = reply.items() if hasattr(reply, "items") else reply
    return [(key, entries) for key, entries in pairs]
