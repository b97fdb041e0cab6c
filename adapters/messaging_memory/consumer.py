"""A member of a group: waits without polling, and forwards what it is told to its group."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from messaging.adapter import Consumer, ConsumerStatus, SettleError
from messaging.clock import timeout
from messaging.errors import Closed, ConnectionFailed, LeaseLost
from messaging_memory.group import Member, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from messaging.adapter import Ownership, RawDelivery, Settled, Settlement, Subscription
    from messaging_memory.broker import Connection
    from messaging_memory.topology import TopologyKeeper

BATCH = 256
"""Messages handed over at once, as many as are published at once: with fewer, publishers run ahead of the handlers, and
what waits is in no cache any more; more only stay longer in the garbage collector's way.
"""
HAND_OVER_GRACE = 10.0
"""Seconds beyond the deadline of a hand-over after which the partitions are taken all the same."""

logger = logging.getLogger("messaging")


class MemoryConsumer(Consumer):
    """See `messaging.adapter.Consumer`."""

    def __init__(
        self,
        connection: Connection,
        topology: TopologyKeeper,
        subscription: Subscription,
        ownership: Ownership,
        *,
        lease: float,
    ) -> None:
        self.lease = lease
        self._lease = lease
        self._connection = connection
        self._clock = connection.broker.clock
        self._topology = topology
        self._subscription = subscription
        self._ownership = ownership
        self._member: Member | None = None
        self._revocations: set[asyncio.Task[None]] = set()
        self._closed = False

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        # Suspends once before it takes anything: other tasks get their turn, a cancellation costs nothing.
        await asyncio.sleep(0)
        member = self._joined()
        member.paused = paused
        member.seen = self._clock.monotonic()
        batch = self._take(member, limit)
        if batch or wait <= 0 or limit <= 0:
            return batch
        return await self._wait(member, limit, wait)

    async def _wait(self, member: Member, limit: int, wait: float) -> Sequence[RawDelivery]:
        group = member.group
        over = False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            nonlocal over
            over = True
            if not waiter.done():
                waiter.set_result(None)

        timer = self._clock.call_later(wait, end)
        try:
            while True:
                member.waiter = waiter
                group.waiting[member] = None
                await waiter
                if member.gone is not None:
                    self._joined()  # raises what ended the membership, or joins again
                    return []
                batch = self._take(member, limit)
                if batch or over:
                    return batch
                waiter = asyncio.get_running_loop().create_future()
        finally:
            timer.cancel()
            member.waiter = None
            group.waiting.pop(member, None)
            member.seen = self._clock.monotonic()
            if member.gone is None:
                group.watch(member.seen + self._lease)
            if group.waiting:  # a wake-up that this call did not use up belongs to the next
                group.wake(1)

    def _take(self, member: Member, limit: int) -> Sequence[RawDelivery]:
        member.group.topic.expire(self._clock.time())
        batch = member.group.take(member, min(limit, BATCH))
        if batch:
            self._connection.broker.touch()
        return batch

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        member = self._member
        self._connection.broker.touch()
        if member is None or member.gone is not None:
            return [self._refused(settlement.delivery) for settlement in settlements]
        member.seen = self._clock.monotonic()
        return member.group.settle(member, settlements)

    def _refused(self, delivery: RawDelivery) -> Settled:
        if not self._connection.alive and delivery.token is not None:
            return SettleError(
                ConnectionFailed(
                    f"message {delivery.message.id} of topic {delivery.message.topic} was not settled: the "
                    f"connection to the memory broker is lost; it will be handled again"
                )
            )
        return refused(delivery)

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        member = self._member
        self._connection.broker.touch()
        if member is None or member.gone is not None:
            return [False] * len(deliveries)
        member.seen = self._clock.monotonic()
        return member.group.extend(member, deliveries, seconds)

    async def isolate(self, delivery: RawDelivery) -> bool:
        member = self._member
        self._connection.broker.touch()
        if not self._connection.alive:
            raise ConnectionFailed(
                f"message {delivery.message.id} was not marked to run alone: the connection to the memory "
                f"broker is lost; it will be handled again"
            )
        if member is None or not member.group.isolate(member, delivery):
            raise LeaseLost(
                f"message {delivery.message.id} was not marked to run alone: it is no longer this member's; it "
                f"will be handled again"
            )
        return True

    def status(self) -> ConsumerStatus:
        member = self._member
        if member is None or member.gone is not None:
            return ConsumerStatus(connected=False)
        return ConsumerStatus(
            connected=True, partitions=set(member.partitions) if member.group.ordered else None
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        revocations = list(self._revocations)
        for task in revocations:
            task.cancel()
        if self._member is not None:
            self._connection.end(self._member, Closed("the consumer was closed"), told=False)
            self._connection.broker.touch()
        if revocations:
            await asyncio.wait(revocations)

    def _joined(self) -> Member:
        """The membership; a lost connection is reported once, and the next call makes one attempt to join."""
        if self._closed:
            raise Closed("this consumer is closed: ask the adapter for a new one")
        member = self._member
        if member is not None and member.gone is not None:
            self._member = None
            self._connection.members.pop(member, None)
            if not isinstance(member.gone, LeaseLost):
                raise member.gone
        if self._member is None:
            self._connection.ensure()
            self._member = self._join()
        return self._member

    def _join(self) -> Member:
        spec = self._subscription.group
        group = self._topology.group(spec)
        member = Member(
            group, topic=spec.topic.name, lease=self._lease, ownership=self._ownership, revoke=self._revoke
        )
        self._connection.members[member] = None
        group.join(member)
        return member

    def _revoke(self, partitions: Collection[int], done: Callable[[], object]) -> None:
        task = asyncio.get_running_loop().create_task(self._hand_over(partitions, done))
        self._revocations.add(task)
        task.add_done_callback(self._revocations.discard)

    async def _hand_over(self, partitions: Collection[int], done: Callable[[], object]) -> None:
        """What runs may finish, for as long as a lease lasts; then the partitions go, whatever still runs."""
        group = self._subscription.group
        extra = {"topic": group.topic.name, "group": group.name, "partitions": sorted(partitions)}
        try:
            async with timeout(self._clock, self._lease + HAND_OVER_GRACE):
                await self._ownership.on_revoke(partitions, self._clock.monotonic() + self._lease)
        except TimeoutError:
            logger.warning("partitions were taken before their member had finished", extra=extra)
        except Exception:
            logger.exception(
                "a member failed to hand over its partitions; they are taken from it", extra=extra
            )
        done()
        self._connection.broker.touch()
