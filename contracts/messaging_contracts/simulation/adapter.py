"""An adapter around another that fails as the SPI allows it to: before or after the deed, in part, late.

It breaks no promise of the SPI itself: what goes wrong above it is a defect of the portable layer.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import DONE, Adapter, Consumer, SettleError
from messaging.errors import ConnectionFailed, PublishError, PublishUncertain
from messaging.message import Release
from messaging_contracts.faults import Published, Struck
from messaging_contracts.simulation.faults import LATENCIES
from messaging_contracts.simulation.inbox import FaultyInbox
from messaging_contracts.simulation.letters import FaultyDeadLetters
from messaging_contracts.simulation.loop import due_of
from messaging_memory.group import HANDED_OVER, LEASE_ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence

    from messaging.adapter import (
        AdapterContext,
        BrokerHealth,
        Capabilities,
        ConsumerStatus,
        DeadLetterStore,
        GroupInfo,
        GroupSpec,
        Outgoing,
        Ownership,
        RawDelivery,
        ReplyInbox,
        Settled,
        Settlement,
        Subscription,
        Topology,
    )
    from messaging.message import Message, Receipt
    from messaging_contracts.simulation.faults import Faults
    from messaging_contracts.simulation.loop import ProcessClock
    from messaging_contracts.simulation.requested import Requested


MARGIN = 2.0
"""Virtual seconds, beside a lease, within which what a fault brings about has happened."""


class FaultyAdapter(Adapter):
    """One process's connection. `cut` loses it, `lapse` ends all leases that the process holds."""

    name: ClassVar[str] = "faulty"

    def __init__(
        self,
        inner: Adapter,
        faults: Faults,
        clock: ProcessClock,
        member: str,
        *,
        window: int,
        cut: Callable[[], None],
        lapse: Callable[[], None],
        drained: Callable[[], bool],
        unstored: Callable[[], Collection[str]],
        in_hand: Collection[str],
        requested: Requested,
        problem: Callable[[str], object],
    ) -> None:
        """`drained` is whether the process leaves and may interrupt what it runs, `unstored` what the store was not
        told the end of, `in_hand` what it works on by hand, which nobody can interrupt. `problem` is told what no
        checker sees.
        """
        self.inner = inner
        self.faults = faults
        self.clock = clock
        self.member = member
        self.window = window
        self.cut = cut
        self.lapse = lapse
        self.drained = drained
        self.unstored = unstored
        self.in_hand = in_hand
        self.requested = requested
        self.problem = problem
        self.inboxes: list[FaultyInbox] = []
        self.consumers: list[FaultyConsumer] = []
        self.redriven = 0
        """Dead letters that were really put back."""
        self.purged: list[str] = []
        """Those that were really removed, by the ids of their messages."""
        self._hit_at = -inf
        self._held_up = 0
        """Calls that an injected delay holds up now."""

    def hit(self) -> None:
        """A fault that was injected hits this process now: it may lose what it has, within a lease."""
        self._hit_at = self.clock.monotonic()

    @property
    def struck(self) -> bool:
        """Whether what is lost now may be lost through a fault that was injected, and not by the library's doing."""
        if self.clock.frozen or self._held_up:
            return True
        since = max(self._hit_at, self.clock.thawed_at, self.faults.upheaved_at)
        return self.clock.monotonic() <= since + self.faults.lease + MARGIN

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> Adapter:
        raise NotImplementedError("it is put around an adapter")

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def native(self) -> Any:
        return self.inner.native

    async def there(self) -> None:
        """The way to the broker. What hits the connection may hit it here."""
        await self.clock.awake()
        if self.faults.strikes("cut"):
            self.hit()
            self.cut()
        if self.faults.strikes("lapse"):
            self.hit()
            self.lapse()
        await self._on_the_way()

    async def back(self) -> None:
        """The way back."""
        await self._on_the_way()
        await self.clock.awake()

    async def _on_the_way(self) -> None:
        delay = self.faults.delay()
        injected = delay > max(LATENCIES)
        self._held_up += injected
        try:
            await self.faults.pass_time(self.clock, delay)
        finally:
            self._held_up -= injected
            if injected:
                self.hit()

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def declare(self, topology: Topology) -> None:
        await self.there()
        if self.faults.strikes("declare_fails"):
            raise ConnectionFailed("simulated: not declared")
        await self.inner.declare(topology)
        await self.back()

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        self.requested.sending(messages)
        await self.there()
        faults = self.faults
        if faults.strikes("publish_refused"):
            return [PublishError("simulated: refused") for _ in messages]
        if faults.strikes("publish_partly"):
            results = await self._partly(messages)
        else:
            if faults.strikes("publish_twice"):
                await self._twice(messages)
            results = await self.inner.publish(messages)
        await self.back()
        if faults.strikes("publish_raises"):
            raise ConnectionFailed("simulated: the connection was lost")
        if faults.strikes("publish_uncertain"):
            return [PublishUncertain("simulated: no confirmation") for _ in messages]
        self.requested.sent(messages, results, self.member)
        return results

    async def _twice(self, messages: Sequence[Outgoing]) -> None:
        """A client that sends again what it has sent. Not of a part: order would break within the batch."""
        for outgoing in messages:
            if outgoing.once is not None:
                continue  # the broker stores it once
            message = outgoing.message
            self.faults.recorder.record(
                Published(
                    at=self.clock.monotonic(),
                    fate="sent",
                    id=self.requested.name(message.id),
                    due=due_of(message.not_before),
                    expires=due_of(message.expires_at),
                )
            )
        await self.inner.publish(messages)

    async def _partly(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """Some are refused, some vanish or arrive without a word; of an ordered partition, with all behind them (7)."""
        kept: list[Outgoing] = []
        failed: dict[int, PublishError] = {}
        silent: set[int] = set()
        broken: set[tuple[str, int]] = set()
        for number, (outgoing, hit) in enumerate(zip(messages, self.faults.some(len(messages)), strict=True)):
            lane = (outgoing.topic.name, outgoing.partition)
            if outgoing.topic.ordered and lane in broken:
                failed[number] = PublishError("simulated: behind one that failed")
                continue
            if hit:
                broken.add(lane)
                how = self.faults.random.choice(("refused", "vanished", "silent"))
                if how == "refused":
                    failed[number] = PublishError("simulated: refused")
                elif how == "vanished":
                    failed[number] = PublishUncertain("simulated: vanished")
                else:
                    silent.add(number)
            if number not in failed:
                kept.append(outgoing)
        stored = iter(await self.inner.publish(kept))
        results: list[Receipt | PublishError] = []
        for number in range(len(messages)):
            result = failed.get(number) or next(stored)
            results.append(PublishUncertain("simulated: silent") if number in silent else result)
        return results

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        watching = _Watching(self, ownership)
        consumer = FaultyConsumer(self, self.inner.consumer(subscription, watching), subscription)
        watching.consumer = consumer
        self.consumers.append(consumer)
        return consumer

    async def reply_inbox(self) -> ReplyInbox:
        await self.there()
        inbox = FaultyInbox(self, await self.inner.reply_inbox())
        self.inboxes.append(inbox)
        await self.back()
        return inbox

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        await self.there()
        if self.faults.strikes("reply_fails"):
            raise ConnectionFailed("simulated: no reply was sent")
        if self.faults.strikes("reply_refused"):
            return [PublishError("simulated: refused") for _ in replies]
        if self.faults.strikes("reply_twice"):
            await self.inner.reply(replies)
        results = await self.inner.reply(replies)
        await self.back()
        if self.faults.strikes("reply_unknown"):
            raise ConnectionFailed("simulated: nobody knows whether the replies were sent")
        return results

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        return FaultyDeadLetters(self, self.inner.dead_letters(group), group)

    async def groups(self) -> Sequence[GroupInfo]:
        await self.there()
        if self.faults.strikes("groups_fail"):
            raise ConnectionFailed("simulated: nothing is known of the groups")
        return await self.inner.groups()

    async def delete_group(self, group: GroupSpec) -> None:
        await self.inner.delete_group(group)

    async def health(self) -> BrokerHealth:
        return await self.inner.health()


class _Watching:
    """Between a consumer and its dispatcher: records what was really lost, and tells it late, or never.

    A dispatcher that is not told learns it when it settles or extends.
    """

    consumer: FaultyConsumer

    def __init__(self, adapter: FaultyAdapter, told: Ownership) -> None:
        self._adapter = adapter
        self._told = told

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        # At once: later it might be about an ownership that is gone, and would take what belongs to the next.
        self.consumer.withdraw(partitions)
        with self.consumer.handing_over(partitions, deadline):
            await self._told.on_revoke(partitions, deadline)
        await self._adapter.there()

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        faults, clock, consumer = self._adapter.faults, self._adapter.clock, self.consumer

        def tell() -> None:
            consumer.lost(deliveries, reason)
            self._told.on_lost(deliveries, reason)

        if reason == LEASE_ENDED and faults.strikes("slow"):
            # A broker need not tell of a lease that ended: the member learns it when it settles or extends.
            consumer.lost(deliveries, reason, lasts=faults.lease)
        elif clock.frozen:
            consumer.lost(deliveries, reason)
            clock.call_later(0.0, tell)
        else:
            tell()


class FaultyConsumer(Consumer):
    """See `FaultyAdapter`."""

    def __init__(self, adapter: FaultyAdapter, inner: Consumer, subscription: Subscription) -> None:
        self._adapter = adapter
        self._faults = adapter.faults
        self._inner = inner
        self._ordered = subscription.group.ordered
        self._arrived: list[RawDelivery] = []
        self._given: dict[RawDelivery, None] = {}
        """Handed over, and neither settled nor lost."""
        self._doubtful: set[str] = set()
        self.isolating: str | None = None
        """What is marked to run alone, or being marked, and not settled: a crash now looks as if it had run."""
        self._hand_overs: list[tuple[Collection[int], float]] = []
        """The partitions of each that is under way, and when what runs in them is interrupted."""
        self.lease = inner.lease
        self.window = adapter.window

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        await self._adapter.there()
        if self._faults.strikes("receive_fails"):
            raise ConnectionFailed("simulated: nothing was received")
        if not self._arrived:
            received = list(await self._inner.receive(limit, wait, paused))
            if not self._ordered and not self._faults.calm:
                self._faults.random.shuffle(received)
            # Kept here while they are on their way: cancelling loses nothing.
            self._arrived = received
        await self._adapter.back()
        batch, self._arrived = self._arrived[:limit], self._arrived[limit:]
        self._given.update(dict.fromkeys(batch))
        return batch

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        try:
            await self._adapter.there()
        except asyncio.CancelledError:
            if self._adapter.struck:  # it took so long that the member has left meanwhile
                self._doubtful.update(one.delivery.message.id for one in settlements)
            raise
        released = [one.delivery for one in settlements if isinstance(one.outcome, Release)]
        self._strike("interrupted", [one.message.id for one in released if self._interrupted(one)])
        if self._faults.strikes("settle_refused"):
            return [self._unsettled(one) for one in settlements]
        if self._faults.strikes("settle_partly"):
            hit = self._faults.some(len(settlements))
            taken = [one for one, failed in zip(settlements, hit, strict=True) if not failed]
            answers = iter(await self._inner.settle(taken))
            results = [
                self._unsettled(one) if failed else next(answers)
                for one, failed in zip(settlements, hit, strict=True)
            ]
        else:
            results = list(await self._inner.settle(settlements))
        for one, result in zip(settlements, results, strict=True):
            if not isinstance(result, SettleError):
                if result is DONE:
                    self._given.pop(one.delivery, None)
                self._doubtful.discard(one.delivery.message.id)
                if one.delivery.message.id == self.isolating:
                    self.isolating = None
        await self._adapter.back()
        if self._faults.strikes("settle_unknown"):
            return [SettleError(ConnectionFailed("simulated: no answer")) for _ in settlements]
        return results

    def _interrupted(self, delivery: RawDelivery) -> bool:
        """Whether the library may have interrupted it: its member leaves, or its partition's hand-over is due."""
        now = self._adapter.clock.monotonic()
        return self._adapter.drained() or any(
            delivery.partition in partitions and due <= now for partitions, due in self._hand_overs
        )

    def _unsettled(self, settlement: Settlement) -> Settled:
        self._doubtful.add(settlement.delivery.message.id)
        return SettleError(ConnectionFailed("simulated: not settled"))

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        await self._adapter.there()
        if self._faults.strikes("extend_fails"):
            self._adapter.hit()
            raise ConnectionFailed("simulated: not extended")
        # What is on its way is this adapter's to keep, also while nobody receives any more (15).
        results = await self._inner.extend([*deliveries, *self._arrived], seconds)
        await self._adapter.back()
        return results[: len(deliveries)]

    async def isolate(self, delivery: RawDelivery) -> bool:
        await self._adapter.there()
        if self._faults.strikes("isolate_fails"):
            raise ConnectionFailed("simulated: not marked")
        self.isolating = delivery.message.id
        marked = await self._inner.isolate(delivery)
        await self._adapter.back()
        if self._faults.strikes("isolate_fails"):
            raise ConnectionFailed("simulated: nobody knows whether it is marked")
        return marked

    def status(self) -> ConsumerStatus:
        return self._inner.status()

    async def close(self) -> None:
        await self._adapter.clock.awake()
        unsettled = {*self._doubtful, *self._adapter.unstored()}
        if self._adapter.struck:  # what held up one settlement held up all behind it
            unsettled.update(one.message.id for one in self._given)
        self._strike("closed unsettled", sorted(unsettled))
        await self._inner.close()

    @contextmanager
    def handing_over(self, partitions: Collection[int], deadline: float) -> Generator[None]:
        """While these are handed over; several hand-overs may be under way."""
        mine = (partitions, deadline)
        self._hand_overs.append(mine)
        try:
            yield
        finally:
            self._hand_overs.remove(mine)

    def withdraw(self, partitions: Collection[int]) -> None:
        """What is on its way from these partitions does not arrive any more; it goes back with them."""
        self._arrived = [one for one in self._arrived if one.partition not in partitions]

    def lost(self, deliveries: Collection[RawDelivery], reason: str, *, lasts: float = 0.0) -> None:
        """The broker took these: a cause for what is handled again, if a fault was injected that may be behind it.

        `lasts`: until the member must have noticed.
        """
        gone = set(deliveries)
        for delivery in deliveries:
            self._given.pop(delivery, None)
        self._arrived = [delivery for delivery in self._arrived if delivery not in gone]
        ids = [delivery.message.id for delivery in deliveries]
        if reason == HANDED_OVER:
            # What was handled was interrupted or settled by then, unless its settlement failed: else there is no cause.
            known = {*self._doubtful, *self._adapter.in_hand}
            ids = ids if "stuck" in self._faults.rates else [id for id in ids if id in known]
        if self._adapter.struck or reason == HANDED_OVER:
            self._strike(reason, ids, lasts)

    def _strike(self, kind: str, ids: Sequence[str], lasts: float = 0.0) -> None:
        if ids:
            at, member, name = (
                self._adapter.clock.monotonic(),
                self._adapter.member,
                self._adapter.requested.name,
            )
            self._faults.recorder.record(
                Struck(at=at, kind=kind, member=member, until=at + lasts, ids=tuple(map(name, ids)))
            )
