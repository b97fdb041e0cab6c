"""Members of a group: what settling, waiting and leaving have in common, and the members that share one queue."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from contextlib import AsyncExitStack, suppress
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from messaging.adapter import (
    DONE,
    Consumer,
    ConsumerStatus,
    Done,
    Hold,
    RawDelivery,
    SettleError,
    Settlement,
)
from messaging.errors import (
    Closed,
    ConnectionFailed,
    LeaseLost,
    MessagingError,
    TopicNotFound,
    TopologyLost,
)
from messaging.lasting import this_task
from messaging.message import Ack, Reject, Release, Retry
from messaging.shielded import Underway, shielded
from messaging_rabbitmq.connection import ack_timeout_in
from messaging_rabbitmq.copies import Copies
from messaging_rabbitmq.frames import Parcel
from messaging_rabbitmq.ingress import IngressRelay
from messaging_rabbitmq.intake import Claim, Intake
from messaging_rabbitmq.properties import incoming
from messaging_rabbitmq.waits import left_of

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from aiormq.abc import DeliveredMessage

    from messaging.adapter import Ownership, Settled, Subscription
    from messaging_rabbitmq.session import Session

T = TypeVar("T")
Plan: TypeAlias = Parcel | Hold | Literal["acknowledge", "requeue", "drop"]
"""What settles a delivery: a copy and then an acknowledgement, or one of these alone."""


class Member(Consumer):
    """What every member of a group does alike."""

    def __init__(self, session: Session, subscription: Subscription, ownership: Ownership) -> None:
        self.session = session
        self.subscription = subscription
        self.group = subscription.group
        self.ownership = ownership
        self.copies = Copies(session, self.group)
        self.closed = False
        self.ack_timeout = inf
        self._arrived = asyncio.Event()
        self._joined = False
        self._loss: str | None = None
        self._settling = asyncio.Lock()
        self.underway = Underway()
        self._relay = IngressRelay(session, self.group.topic)

    # --- receive -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        self._check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        if self._loss is not None:
            raise self._take_loss()
        try:
            await self.join()
        except TopicNotFound as error:
            if await self.session.topology.recorded(self.group):
                raise TopologyLost(str(error)) from error
            raise
        self._joined = self._loss is None
        self._relay.keep_running()
        while True:
            self._arrived.clear()
            deliveries = await self.collect(limit, paused)
            if deliveries:
                return deliveries
            self._check_open()
            if self._loss is not None:
                raise self._take_loss()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                return ()

    @abstractmethod
    async def join(self) -> None:
        """Be a member: one attempt."""

    @abstractmethod
    async def collect(self, limit: int, paused: Collection[int]) -> Sequence[RawDelivery]:
        """What is here now."""

    def wake(self) -> None:
        """Something changed for `receive`."""
        self._arrived.set()

    def lose(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        """These are gone; `receive` says so once, and joins again after that."""
        if self.closed:
            return
        self.ack_timeout = min(self.ack_timeout, ack_timeout_in(reason))
        if self._joined:
            self._joined = False
            self._loss = reason
            self.wake()
        if deliveries:
            self.ownership.on_lost(deliveries, reason)

    def _take_loss(self) -> ConnectionFailed:
        reason, self._loss = self._loss, None
        return ConnectionFailed(
            f"group {self.group.name} of topic {self.group.topic.name} at RabbitMQ "
            f"{self.session.settings.address}: {reason}"
        )

    def _check_open(self) -> None:
        if self.closed:
            raise self._is_closed()

    def _is_closed(self) -> Closed:
        return Closed(f"this consumer of {self.group.topic.name}/{self.group.name} is closed")

    # --- settle ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        try:
            return await self.finish(self._settle(settlements))
        except asyncio.CancelledError:
            if not self.closed or this_task().cancelling():
                raise
            return [SettleError(self._is_closed())] * len(settlements)  # `close` waited no longer

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end even if the caller is cancelled: a copy and its acknowledgement belong together."""
        return await shielded(self.underway.start(work, name="messaging-rabbitmq-settle"))

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        async with self._settling:
            results: list[Settled] = [DONE] * len(settlements)
            parcels: list[Parcel] = []
            copied: list[int] = []
            finished: dict[Intake, list[int]] = {}
            seen: set[RawDelivery] = set()
            for index, settlement in enumerate(settlements):
                claim: Claim = settlement.delivery.token
                if claim.done or settlement.delivery in seen:
                    continue
                seen.add(settlement.delivery)
                if claim.intake.gone:
                    results[index] = self._lease_lost(settlement.delivery)
                    continue
                if isinstance(settlement.outcome, Ack):
                    finished.setdefault(claim.intake, []).append(index)
                    continue
                try:
                    plan = await self.plan(settlement)
                except MessagingError as error:
                    results[index] = SettleError(error)
                    continue
                if isinstance(plan, Parcel):
                    parcels.append(plan)
                    copied.append(index)
                elif isinstance(plan, Hold):
                    results[index] = plan
                    claim.held_until = plan.until
                elif plan == "acknowledge":
                    finished.setdefault(claim.intake, []).append(index)
                else:
                    results[index] = await self._give_back(settlement.delivery, requeue=plan == "requeue")
            for index, problem in zip(copied, await self.copies.store(parcels), strict=True):
                if problem is None:
                    finished.setdefault(settlements[index].delivery.token.intake, []).append(index)
                else:
                    results[index] = SettleError(problem)
            for intake, indexes in finished.items():
                await self._acknowledge(intake, settlements, indexes, results)
            return results

    async def _acknowledge(
        self, intake: Intake, settlements: Sequence[Settlement], indexes: list[int], results: list[Settled]
    ) -> None:
        try:
            await self.concluded([settlements[index].delivery for index in indexes])
            await intake.acknowledge([settlements[index].delivery.token.tag for index in indexes])
        except (ChannelInvalidStateError, AMQPError):
            intake.lose()
            for index in indexes:
                results[index] = self._lease_lost(settlements[index].delivery)
            return
        for index in indexes:
            settlements[index].delivery.token.done = True

    async def _give_back(self, delivery: RawDelivery, *, requeue: bool) -> Done | SettleError:
        claim: Claim = delivery.token
        try:
            await claim.intake.give_back(claim.tag, requeue=requeue)
        except (ChannelInvalidStateError, AMQPError):
            claim.intake.lose()
            return self._lease_lost(delivery)
        claim.done = True
        return DONE

    @abstractmethod
    async def plan(self, settlement: Settlement) -> Plan:
        """How to settle a delivery whose outcome is not Ack."""

    async def concluded(self, deliveries: Collection[RawDelivery]) -> None:
        """These are about to be acknowledged."""

    def hold(self, after: float) -> Hold:
        return Hold(self.session.clock.monotonic() + after)

    def _lease_lost(self, delivery: RawDelivery) -> SettleError:
        return SettleError(
            LeaseLost(
                f"message {delivery.message.id} of {self.group.topic.name}/{self.group.name} went back to RabbitMQ "
                f"with the channel that delivered it: it is delivered again"
            )
        )

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:  # noqa: ARG002
        return [not delivery.token.intake.gone for delivery in deliveries]

    # --- leave -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """See `Consumer.close`. What is being settled is waited for as long as a confirm; then it comes again."""
        if self.closed:
            return
        self.closed = True
        self.wake()
        async with AsyncExitStack() as parts:  # each is ended, though the end of another is cut off
            parts.push_async_callback(self.leave)
            parts.push_async_callback(self.underway.end, self.session.settings.confirm_timeout)
            await self._relay.close()

    @abstractmethod
    async def leave(self) -> None:
        """Give back what is not settled, in order."""


class SharedConsumer(Member):
    """A member that shares one queue with the others of its group, in no order."""

    def __init__(self, session: Session, subscription: Subscription, ownership: Ownership) -> None:
        super().__init__(session, subscription, ownership)
        self._intake: Intake | None = None
        self._suspects: Intake | None = None
        self._adopted = self.group.native is not None
        self._early: list[RawDelivery] = []
        """Came before their time, and no tier may be made for the rest: they wait here."""
        self._alarm: asyncio.TimerHandle | None = None
        """Wakes `receive` for the first of them."""

    async def join(self) -> None:
        if self._is_member():
            return
        await self._abandon()
        names = self.session.names
        self._intake = await self._open(names.queue(self.group), self.subscription.prefetch)
        if not self._adopted:
            self._suspects = await self._open(names.suspects(self.group), 1)

    def _is_member(self) -> bool:
        intakes = [self._intake] if self._adopted else [self._intake, self._suspects]
        return all(intake is not None and not intake.gone for intake in intakes)

    async def _open(self, queue: str, prefetch: int) -> Intake:
        intake = Intake(queue, arrived=self.wake, lost=self._intake_lost)
        await intake.open(self.session.consuming, prefetch)
        return intake

    async def _abandon(self) -> None:
        """Drop what is left of a membership of which a part broke."""
        for intake in (self._intake, self._suspects):
            if intake is not None:
                if left := intake.forsake():
                    self.ownership.on_lost(left, "the member joins its group again")
                await intake.close()
        self._intake = self._suspects = None

    def _intake_lost(self, intake: Intake, reason: str) -> None:
        self.lose(intake.forsake(), reason)

    async def collect(self, limit: int, paused: Collection[int]) -> Sequence[RawDelivery]:  # noqa: ARG002
        deliveries = self._now_due(limit)
        early: list[tuple[RawDelivery, float]] = []
        """Came out of a delay tier before their time, each with what is left: the next tier is due."""
        now, member = self.session.clock.monotonic(), self.session.member
        for intake in (self._suspects, self._intake):
            if intake is None or intake.gone:
                continue
            waiting = intake.waiting
            while waiting and len(deliveries) < limit:
                original = waiting.popleft()
                delivery = self._received(intake, original)
                left = left_of(original, now=now, member=member)
                if left > 0:
                    early.append((delivery, left))
                else:
                    deliveries.append(delivery)
        if early:
            _ = self.underway.start(self._step(early), name="messaging-rabbitmq-step")
        return deliveries

    def _now_due(self, limit: int) -> list[RawDelivery]:
        """Of those that wait here, so many whose time has come."""
        self._cancel_alarm()
        if not self._early:
            return []
        now = self.session.clock.monotonic()
        waiting = [one for one in self._early if not one.token.intake.gone]
        due = [one for one in waiting if one.token.held_until <= now][:limit]
        self._early = [one for one in waiting if one not in due]
        if len(due) < limit and self._early:
            soonest = min(one.token.held_until for one in self._early)
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, soonest - now), self.wake)
        return due

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _received(self, intake: Intake, original: DeliveredMessage) -> RawDelivery:
        tag = original.delivery_tag or 0
        delivery = incoming(
            original,
            topic=self.group.topic.name,
            position=f"{intake.epoch}/{tag}",
            partitions=self.group.topic.partitions,
        )
        return intake.hand_out(delivery, tag)

    async def _step(self, early: Sequence[tuple[RawDelivery, float]]) -> None:
        """Send what came too early into its next tier; what cannot be sent goes back to the queue."""
        now = self.session.clock.monotonic()
        parcels: list[Parcel] = []
        copied: list[RawDelivery] = []
        settled: list[tuple[RawDelivery, bool]] = []
        for delivery, left in early:
            if delivery.token.intake.gone:
                continue
            try:
                parcel = await self.copies.released(delivery, left)
            except MessagingError:
                settled.append((delivery, False))
                continue
            if parcel is None:  # given back, it would come again at once, with as much left
                delivery.token.held_until = now + left
                self._early.append(delivery)
                self.wake()
            else:
                parcels.append(parcel)
                copied.append(delivery)
        errors = await self.copies.store(parcels)
        settled += [(delivery, error is None) for delivery, error in zip(copied, errors, strict=True)]
        # An acknowledgement of all before a tag must not overtake the return of one of them.
        async with self._settling:
            for delivery, stored in settled:
                claim: Claim = delivery.token
                with suppress(ChannelInvalidStateError, AMQPError):  # a lost channel has given it back
                    if stored:
                        await claim.intake.acknowledge([claim.tag])
                    else:
                        await claim.intake.give_back(claim.tag)

    async def plan(self, settlement: Settlement) -> Plan:
        delivery, outcome = settlement.delivery, settlement.outcome
        if self._adopted:
            return self._adopted_plan(settlement)
        if isinstance(outcome, Reject):
            return await self.copies.dead(delivery, settlement.failure)
        if isinstance(outcome, Retry):
            parcel = await self.copies.failed(delivery, settlement.after, settlement.failure)
        elif isinstance(outcome, Release) and (settlement.after > 0 or delivery.guard != "none"):
            # A copy starts uncounted: a message that is given back has not killed its process.
            parcel = await self.copies.released(delivery, settlement.after)
        else:
            return "requeue"
        return parcel or self.hold(settlement.after)

    def _adopted_plan(self, settlement: Settlement) -> Plan:
        if isinstance(settlement.outcome, Reject):
            return "drop"
        if isinstance(settlement.outcome, Release) and not settlement.after:
            return "requeue"
        return self.hold(settlement.after)

    async def isolate(self, delivery: RawDelivery) -> bool:
        if self._adopted:
            return True
        await self.finish(self._isolate(delivery))
        return False

    async def _isolate(self, delivery: RawDelivery) -> None:
        claim: Claim = delivery.token
        if claim.done or claim.intake.gone:
            raise LeaseLost(f"message {delivery.message.id} went back to RabbitMQ before it was isolated")
        error = (await self.copies.store([self.copies.alone(delivery)]))[0]
        claim.done = True
        try:
            if error is None:
                await claim.intake.acknowledge([claim.tag])
                return
            await claim.intake.give_back(claim.tag)
        except (ChannelInvalidStateError, AMQPError) as lost:
            raise LeaseLost(f"message {delivery.message.id} went back to RabbitMQ while isolated") from lost
        raise ConnectionFailed(f"message {delivery.message.id} could not be isolated: {error}") from error

    def status(self) -> ConsumerStatus:
        return ConsumerStatus(connected=self._is_member(), full=self._full())

    def _full(self) -> Collection[int]:
        """The partitions of what is held here for its delay, where the channel's limit lets nothing more in."""
        intake, now = self._intake, self.session.clock.monotonic()
        if intake is None or intake.gone:
            return ()
        ours = intake.handed_out()
        if len(ours) < intake.prefetch or any(one.token.held_until <= now for one in ours):
            return ()
        return {one.partition for one in ours}

    async def leave(self) -> None:
        self._cancel_alarm()
        suspects = self._suspects
        async with AsyncExitStack() as intakes:
            for intake in (suspects, self._intake):
                if intake is not None:
                    intakes.push_async_callback(intake.close)
            if suspects is not None and not suspects.gone:
                # This process lives: what it gives back is no longer suspect of killing it.
                while suspects.waiting:
                    self._received(suspects, suspects.waiting.popleft())
                await self._settle([Settlement(one, Release()) for one in suspects.handed_out()])
