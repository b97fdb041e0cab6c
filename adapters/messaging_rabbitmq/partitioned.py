"""Members of an ordered group: each owns some partitions, and consumes the queue of each on a channel of its own.

Order is kept because a queue has one active consumer, a failed message is held in the process, and whatever is not
settled goes back by closing the channel, which keeps its order; nothing is ever returned one by one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from messaging.adapter import ConsumerStatus, RawDelivery, Settlement
from messaging.clock import check_cancelled
from messaging.errors import ConfigurationError, LeaseLost, MessagingError, TopicNotFound
from messaging.message import Reject, Retry
from messaging.shielded import shielded
from messaging_rabbitmq.connection import translated
from messaging_rabbitmq.consumer import Member, Plan
from messaging_rabbitmq.guard import Marks
from messaging_rabbitmq.intake import Claim, Intake
from messaging_rabbitmq.ownership import TAKING, TICK, Seat, new_fence
from messaging_rabbitmq.properties import incoming

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aiormq.abc import DeliveredMessage

    from messaging.adapter import Ownership, Subscription
    from messaging_rabbitmq.session import Session

logger = logging.getLogger("messaging")

LEAVE_TIMEOUT = 3.0
WINDOW = 128
"""Messages of one partition that may be in the process, parked ones included. The same for all members, now and
later, or larger: what went back to a quorum queue goes behind what had gone back before and was not taken again,
so a new owner that takes less than the former one had would change the order (seen on RabbitMQ 3.10).
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What this member knows of a message that failed here."""

    attempt: int
    failure: str | None
    due: float
    """When it may be handled again, by the monotonic clock."""


@dataclass(slots=True, eq=False)
class Owned:
    """A partition that this member owns."""

    partition: int
    intake: Intake
    marks: Marks
    fence: int
    taken: bool = False
    """What comes while it is being taken waits: a member that leaves then has not held it."""
    revoking: bool = False


class PartitionedConsumer(Member):
    """A member that owns partitions, and gives surplus ones to members that join."""

    def __init__(self, session: Session, subscription: Subscription, ownership: Ownership) -> None:
        super().__init__(session, subscription, ownership)
        self.window = WINDOW
        self._seat: Seat | None = None
        self._owned: dict[int, Owned] = {}
        self._balancer: asyncio.Task[None] | None = None
        self._handing_over: asyncio.Task[None] | None = None
        self._fatal: MessagingError | None = None
        self._recorded: dict[tuple[int, str], Recorded] = {}
        """What failed here: held by the member, so a crash forgets it (2)."""
        self._turn = 0

    # --- join --------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        self._check_fatal()
        if self._is_member():
            return
        await self._abandon()
        seat = Seat(self.session, self.group)
        self._seat = seat
        taken = False
        try:
            await seat.take()
            taken = True
        finally:
            if not taken:
                await self._abandon()
        self._joined = True
        self._arrived.clear()
        self._balancer = asyncio.create_task(self._balance(seat), name=f"rabbitmq-balance-{self.group.name}")
        self._balancer.add_done_callback(lambda _: self.wake())
        # Until it has its first partition, or its share: on a slow or failing network that does not wait for the last.
        await self._arrived.wait()
        self._check_fatal()

    def _check_fatal(self) -> None:
        if self._fatal is not None:
            error, self._fatal, self._loss = self._fatal, None, None
            raise error

    def _is_member(self) -> bool:
        return (
            self._seat is not None
            and not self._seat.gone.is_set()
            and self._balancer is not None
            and not self._balancer.done()
            and not any(owned.intake.gone for owned in self._owned.values())
        )

    async def _abandon(self) -> None:
        """Drop what is left of a membership whose connection, or one of whose channels, broke."""
        await self._stop_balancing()
        left = [one for owned in self._owned.values() for one in owned.intake.forsake()]
        if left and not self.closed:
            self.ownership.on_lost(left, "the member joins its group again")
        for owned in tuple(self._owned.values()):
            await self._close(owned, graceful=False)
        if self._seat is not None:
            await self._seat.leave()
            self._seat = None

    # --- balance -----------------------------------------------------------------------------------------------

    async def _balance(self, seat: Seat) -> None:
        try:
            while True:
                check_cancelled()
                share = await seat.share(len(self._owned))
                surplus = len(self._owned) - share
                if surplus > 0:
                    await self._give_up(list(self._owned)[-surplus:])
                elif surplus < 0:
                    await self._claim(seat, -surplus)
                self.wake()
                try:
                    async with asyncio.timeout(TICK):
                        await seat.gone.wait()
                except TimeoutError:
                    pass
                else:
                    self._lose_all("it is no longer a member: its channel was closed")
                    return
        except MessagingError as error:
            if isinstance(error, TopicNotFound | ConfigurationError):
                self._fatal = error
            self._lose_all(str(error))

    def _lose_all(self, reason: str) -> None:
        self.lose([one for owned in self._owned.values() for one in owned.intake.forsake()], reason)

    async def _claim(self, seat: Seat, wanted: int) -> None:
        async with aclosing(seat.claim(self._owned, wanted)) as claims:
            async for partition in claims:
                await self._take(partition)

    async def _take(self, partition: int) -> None:
        marks = Marks(self.session, self.group, partition)
        queue = self.session.names.queue(self.group, partition)
        intake = Intake(queue, arrived=self.wake, lost=self._intake_lost)
        owned = Owned(partition, intake, marks, new_fence())
        self._owned[partition] = owned
        try:
            with translated(f"taking partition {partition}", self.session.settings.address):
                async with asyncio.timeout(TAKING):
                    await marks.read()
                    await intake.open(self.session.consuming, self.window)
        except BaseException:  # cancelled, too, it is not read half opened
            intake.gone = True
            raise
        owned.taken = True
        self.wake()

    def _intake_lost(self, intake: Intake, reason: str) -> None:
        if any(owned.intake is intake for owned in self._owned.values()):
            self.lose(intake.forsake(), reason)

    async def _give_up(self, partitions: Sequence[int]) -> None:
        """Hand partitions over: finish what runs, then close their channels, which keeps the order of the rest."""
        surplus = [self._owned[partition] for partition in partitions]
        for owned in surplus:
            owned.revoking = True
        await self.ownership.on_revoke(
            partitions, self.session.clock.monotonic() + self.session.settings.revoke_timeout
        )
        # Once begun it is finished, even by a member that leaves meanwhile: a lock left behind would keep others out.
        self._handing_over = asyncio.create_task(self._hand_over(surplus))
        await shielded(self._handing_over)
        logger.info(
            "Gave up partitions %s of %s/%s to other members",
            sorted(partitions),
            self.group.topic.name,
            self.group.name,
            extra={"topic": self.group.topic.name, "group": self.group.name},
        )

    async def _hand_over(self, surplus: Sequence[Owned]) -> None:
        async with self._settling:
            for owned in surplus:
                await self._close(owned, graceful=True)

    async def _stop_balancing(self) -> None:
        if self._balancer is not None:
            self._balancer.cancel()
            await asyncio.wait([self._balancer])
            self._balancer = None
        if self._handing_over is not None:
            await asyncio.wait([self._handing_over])
            self._handing_over = None

    async def _close(self, owned: Owned, *, graceful: bool) -> None:
        # Forgotten first: a partition that is being closed on purpose is no sign of a broken membership.
        del self._owned[owned.partition]
        await owned.marks.close(graceful=graceful)
        await owned.intake.close()
        if graceful:
            for key in [key for key in self._recorded if key[0] == owned.partition]:
                del self._recorded[key]
        if self._seat is not None:
            try:
                await self._seat.unlock(owned.partition)
            except MessagingError as error:
                logger.info("Partition %d is given up with its connection: %s", owned.partition, error)

    # --- receive -----------------------------------------------------------------------------------------------

    async def collect(self, limit: int, paused: Collection[int]) -> Sequence[RawDelivery]:
        deliveries: list[RawDelivery] = []
        self._turn += 1
        ready = [
            owned
            for owned in self._owned.values()
            if owned.taken
            and owned.intake.waiting
            and not owned.intake.gone
            and not owned.revoking
            and owned.partition not in paused
        ]
        for index in range(len(ready)):
            owned = ready[(self._turn + index) % len(ready)]
            # A fair part for each, so that one busy partition does not starve the others.
            part = max(1, (limit - len(deliveries)) // (len(ready) - index))
            while owned.intake.waiting and part and len(deliveries) < limit:
                deliveries.append(self._received(owned, owned.intake.waiting.popleft()))
                part -= 1
        return deliveries

    def _received(self, owned: Owned, original: DeliveredMessage) -> RawDelivery:
        tag = original.delivery_tag or 0
        delivery = incoming(
            original,
            topic=self.group.topic.name,
            position=f"{owned.intake.epoch}/{tag}",
            partitions=self.group.topic.partitions,
            partition=owned.partition,
        )
        delivery.fence = owned.fence
        delivery.guard = owned.marks.guard_of(delivery.message.id)
        key = (owned.partition, delivery.message.id)
        if (recorded := self._recorded.get(key)) is not None:
            if original.redelivered:
                delivery.attempt, delivery.failure = recorded.attempt, recorded.failure
                delivery.deliveries = max(delivery.deliveries, delivery.attempt)
                delivery.hold = max(0.0, recorded.due - self.session.clock.monotonic())
            else:
                del self._recorded[key]
        return owned.intake.hand_out(delivery, tag)

    # --- settle ------------------------------------------------------------------------------------------------

    async def plan(self, settlement: Settlement) -> Plan:
        """Only a dead letter leaves its place in the queue; all else is held here, so that its key waits."""
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(outcome, Reject):
            return await self.copies.dead(delivery, settlement.failure)
        held = self.hold(settlement.after)
        if isinstance(outcome, Retry):
            self._recorded[delivery.partition, delivery.message.id] = Recorded(
                delivery.attempt + 1, settlement.failure, held.until
            )
        await self._unmark(delivery)
        return held

    async def concluded(self, deliveries: Collection[RawDelivery]) -> None:
        for delivery in deliveries:
            self._recorded.pop((delivery.partition, delivery.message.id), None)
            await self._unmark(delivery)

    async def _unmark(self, delivery: RawDelivery) -> None:
        owned = self._owned.get(delivery.partition)
        if owned is not None and owned.intake is delivery.token.intake:
            await owned.marks.remove(delivery.message.id)

    async def isolate(self, delivery: RawDelivery) -> bool:
        await self.finish(self._isolate(delivery))
        return True

    async def _isolate(self, delivery: RawDelivery) -> None:
        claim: Claim = delivery.token
        owned = self._owned.get(delivery.partition)
        if claim.done or claim.intake.gone or owned is None or owned.intake is not claim.intake:
            raise LeaseLost(f"message {delivery.message.id} went back to RabbitMQ before it was isolated")
        try:
            await owned.marks.add(delivery.message.id)
        except MessagingError as error:
            # The dispatcher forgets it, so its successors must not pass: the whole membership starts again.
            self._lose_all(str(error))
            raise

    # --- leave -------------------------------------------------------------------------------------------------

    def status(self) -> ConsumerStatus:
        connected = self._seat is not None and not self._seat.gone.is_set()
        return ConsumerStatus(connected=connected, partitions=tuple(self._owned) if connected else ())

    async def leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self._stop_balancing()
                for owned in tuple(self._owned.values()):
                    await self._close(owned, graceful=not owned.intake.gone)
                if self._seat is not None:
                    await self._seat.leave()
        except (TimeoutError, asyncio.CancelledError) as error:
            # A lock that could not be deleted would keep others from the partition: it goes with the connection.
            self.session.consuming.abort()
            if not isinstance(error, TimeoutError):
                raise
        finally:
            if self._seat is not None:
                self._seat.forget()
                self._seat = None
