"""A group of a topic: who its members are, what they hold, and what came back.

The base of the two kinds of groups: in `shared.py` members share all partitions, in `ownership.py` each partition
has one owner. Leases are checked by one timer per group, not by one per message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from messaging.adapter import DONE, GroupInfo, Hold, Lease, RawDelivery, SettleError
from messaging.errors import LeaseLost
from messaging.message import Ack, Reject, Retry
from messaging_memory.record import Record, message_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable, Sequence

    from messaging.adapter import Ownership, Settled, Settlement, TopicSpec
    from messaging.clock import Clock, Timer
    from messaging.errors import MessagingError
    from messaging_memory.log import TopicLog
    from messaging_memory.record import Row

HANDED_OVER = "the partition was handed over"
LEASE_ENDED = "the lease ended before they were settled"
"""Why a member has lost what it held."""


class Entry:
    """What the broker knows of a message that was handed over before, or redriven."""

    __slots__ = ("attempt", "deliveries", "due", "failure", "marked", "record", "returns")

    def __init__(self, record: Record, *, deliveries: int = 1, failure: str | None = None) -> None:
        self.record = record
        self.attempt = 1
        """1 plus the recorded failures."""
        self.deliveries = deliveries
        """Hand-overs so far."""
        self.returns = 0
        self.marked = False
        """Handed over to be run alone (3)."""
        self.failure = failure
        self.due = 0.0
        """Not to be handled before, in `Clock.monotonic` seconds: its member may leave while it holds it."""


class DeadLetter:
    """A dead letter of a group; the record keeps where it came from."""

    __slots__ = ("failure", "number", "record")

    def __init__(self, number: int, record: Record, failure: str | None) -> None:
        self.number = number
        self.record = record
        self.failure = failure


class Member:
    """One consumer's place in a group, from one join to the next."""

    __slots__ = (
        "gone",
        "group",
        "held",
        "lease",
        "ownership",
        "partitions",
        "paused",
        "revoke",
        "revoking",
        "seen",
        "topic",
        "waiter",
    )

    def __init__(
        self,
        group: Group,
        *,
        topic: str,
        lease: float,
        ownership: Ownership,
        revoke: Callable[[Collection[int], Callable[[], object]], object],
    ) -> None:
        self.group = group
        self.topic = topic
        """The topic's portable name, as the member's messages say it."""
        self.lease = lease
        self.ownership = ownership
        self.revoke = revoke
        """Asks the consumer to hand partitions over, and to make the given call when it has."""
        self.held: dict[RawDelivery, Entry | None] = {}
        """What it received and did not settle, in order; None for a first hand-over without any failure."""
        self.partitions: set[int] = set()
        self.revoking: set[int] = set()
        self.paused: Collection[int] = ()
        self.waiter: asyncio.Future[None] | None = None
        self.seen = 0.0
        self.gone: MessagingError | None = None
        """Why it is no longer a member."""


def _entry_of(delivery: RawDelivery) -> Entry:
    """Of a first hand-over, of which nothing was kept so far."""
    return Entry(Record(delivery.native, delivery.partition, delivery.token))


def refused(delivery: RawDelivery) -> Settled:
    """The answer for a delivery that the member does not hold: settled before, or no longer its own."""
    if delivery.token is None:
        return DONE
    return SettleError(
        LeaseLost(
            f"message {delivery.message.id} of topic {delivery.message.topic} is no longer this member's: the "
            f"memory broker took it back; it will be handled again"
        )
    )


class Group(ABC):
    """One group. All of it runs on one event loop and never waits."""

    def __init__(
        self, topic: TopicLog, name: str, *, ordered: bool, cursors: list[int], clock: Clock
    ) -> None:
        self.topic = topic
        self.name = name
        self.ordered = ordered
        self.cursors = cursors
        """The offset that is read next, of each partition."""
        self.members: list[Member] = []
        self.waiting: dict[Member, None] = {}
        self.dead: dict[int, DeadLetter] = {}
        self.lost = 0
        """Messages that the topic's retention took before the group read them."""
        self.finished: set[int] = set()
        """Partitions of a former generation that are handled."""
        self.clock = clock
        self._numbers = count(1)
        self._timer: Timer | None = None
        self._timer_at = inf

    # What the two kinds do in their own way

    @abstractmethod
    def take(self, member: Member, limit: int) -> list[RawDelivery]:
        """Hand over what is there for this member now."""

    @abstractmethod
    def ready_for(self, member: Member) -> bool:
        """Whether `take` would hand something over."""

    @abstractmethod
    def redrive(self, record: Record, failure: str | None) -> None:
        """Put a message at the tail of this group alone."""

    @abstractmethod
    def _put_back(self, entries: Sequence[Entry]) -> None:
        """These wait to be handed over again."""

    @abstractmethod
    def _retry(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        """The failure is recorded in `entry`: keep a delayed copy, or let the member hold it."""

    @abstractmethod
    def _release(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled: ...

    @abstractmethod
    def _lapse(self, member: Member, deliveries: Sequence[RawDelivery]) -> None:
        """The leases of these have ended."""

    @abstractmethod
    def _waiting_entries(self) -> Iterable[Entry]:
        """What waits to be handed over again."""

    @abstractmethod
    def resume(self) -> None:
        """There are connections again: go on with what waits for its time."""

    # Members

    def join(self, member: Member) -> None:
        member.seen = self.clock.monotonic()
        self.members.append(member)
        self.watch(member.seen + member.lease)

    def leave(self, member: Member, reason: MessagingError, *, counted: bool = False) -> list[RawDelivery]:
        """End a membership; what it held goes back, in order. Returns what it held."""
        if member.gone is not None:
            return []
        member.gone = reason
        self.members.remove(member)
        deliveries = list(member.held)
        self._put_back(self._returned(member, deliveries, counted=counted))
        self.waiting.pop(member, None)
        if member.waiter is not None and not member.waiter.done():
            member.waiter.set_result(None)
        self.wake()
        return deliveries

    def wake(self, limit: float = inf) -> None:
        """Let waiting members that would get something look again, `limit` of them at most."""
        for member in list(self.waiting):
            if self.ready_for(member):
                del self.waiting[member]
                if member.waiter is not None and not member.waiter.done():
                    member.waiter.set_result(None)
                    limit -= 1
                if limit <= 0:
                    return

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, inf

    # Settling

    def settle(self, member: Member, settlements: Sequence[Settlement]) -> list[Settled]:
        held = member.held
        results: list[Settled] = []
        for settlement in settlements:
            delivery = settlement.delivery
            if delivery not in held:
                results.append(refused(delivery))
            elif settlement.outcome.__class__ is Ack:
                del held[delivery]
                delivery.token = None
                results.append(DONE)
            else:
                results.append(self._settle_other(member, settlement))
        return results

    def _settle_other(self, member: Member, settlement: Settlement) -> Settled:
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(outcome, Ack):
            del member.held[delivery]
            delivery.token = None
            return DONE
        entry = member.held[delivery] or _entry_of(delivery)
        if isinstance(outcome, Reject):
            number = next(self._numbers)
            self.dead[number] = DeadLetter(number, entry.record, settlement.failure)
            del member.held[delivery]
            delivery.token = None
            return DONE
        if isinstance(outcome, Retry):
            entry.attempt = delivery.attempt + 1
            entry.failure = settlement.failure
            entry.returns = 0
            entry.marked = False
            return self._retry(delivery, entry, settlement.after, member)
        # Only a message that is lost with its member may trip the guard, not one that was given back.
        entry.marked = False
        return self._release(delivery, entry, settlement.after, member)

    def extend(self, member: Member, deliveries: Sequence[RawDelivery], seconds: float) -> list[bool]:
        deadline = self.clock.monotonic() + seconds
        lease = Lease(deadline)
        held = member.held
        results: list[bool] = []
        for delivery in deliveries:
            if kept := delivery in held:
                delivery.lease = lease
            results.append(kept)
        self.watch(deadline)
        return results

    def isolate(self, member: Member, delivery: RawDelivery) -> bool:
        """Mark the message: if it comes back from a lost member now, the guard trips."""
        if delivery not in member.held:
            return False
        entry = member.held[delivery] or _entry_of(delivery)
        entry.marked = True
        member.held[delivery] = entry
        delivery.guard = "alone"
        return True

    # Leases

    def lapse(self, member: Member) -> None:
        """End the leases of all that this member holds and is not handing over."""
        if ended := [one for one in member.held if one.partition not in member.revoking]:
            self._lapse(member, ended)
            self.wake()

    def watch(self, deadline: float) -> None:
        """Look at the leases at `deadline`, or before."""
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.clock.call_later(deadline - self.clock.monotonic(), self._look_at_leases)

    def _look_at_leases(self) -> None:
        self._timer, self._timer_at = None, inf
        now = self.clock.monotonic()
        for member in list(self.members):
            if ended := self._ended(member, now):
                self._lapse(member, ended)
            elif not member.held and member.waiter is None and member.seen + member.lease <= now:
                self.leave(
                    member, LeaseLost(f"a member of group {self.name} did nothing for {member.lease} s")
                )
        self.wake()
        deadline = inf
        for member in self.members:
            if member.held:
                deadlines = (
                    delivery.lease.deadline
                    for delivery in member.held
                    if delivery.partition not in member.revoking
                )
                deadline = min(deadline, min(deadlines, default=now + member.lease))
            elif member.waiter is None:
                deadline = min(deadline, member.seen + member.lease)
            else:
                deadline = min(deadline, now + member.lease)
        if deadline < inf:
            self.watch(deadline)

    def _ended(self, member: Member, now: float) -> list[RawDelivery]:
        """Without what is being handed over: that has a deadline of its own."""
        return [
            delivery
            for delivery in member.held
            if delivery.lease.deadline <= now and delivery.partition not in member.revoking
        ]

    def _returned(self, member: Member, deliveries: Iterable[RawDelivery], *, counted: bool) -> list[Entry]:
        """Take these from the member; `counted` when the member was lost with them (2, 3)."""
        entries: list[Entry] = []
        for delivery in deliveries:
            entry = member.held.pop(delivery) or _entry_of(delivery)
            if counted:
                entry.returns += 1
            else:
                entry.marked = False
            entries.append(entry)
        return entries

    # Handing over

    def _read(self, number: int, stop: int) -> list[tuple[int, Row]]:
        """Take what the log of this partition has before the offset `stop`, with the offsets."""
        cursor = self.cursors[number]
        rows = self.topic.partitions[number].read(cursor, stop)
        self.cursors[number] = cursor + len(rows)
        return list(enumerate(rows, cursor))

    def _first(
        self, member: Member, number: int, rows: Sequence[tuple[int, Row]], fence: int, lease: Lease
    ) -> list[RawDelivery]:
        """The first hand-over of messages from the log of this partition: the fast path."""
        topic, place = member.topic, self.topic.partitions[number].place
        batch = [
            RawDelivery(
                message_of(row, topic, position := f"{place}{offset}"),
                number,
                position,
                1,
                1,
                0,
                "none",
                None,
                row[3],
                fence,
                lease,
                row,
                offset,
            )
            for offset, row in rows
        ]
        member.held.update(dict.fromkeys(batch))
        return batch

    def _again(self, member: Member, entry: Entry, fence: int, lease: Lease) -> RawDelivery:
        entry.deliveries += 1
        record = entry.record
        delivery = RawDelivery(
            message=message_of(record.row, member.topic, record.position),
            partition=record.partition,
            position=record.position,
            attempt=entry.attempt,
            deliveries=entry.deliveries,
            returns=entry.returns,
            guard="tripped" if entry.marked else "none",
            failure=entry.failure,
            reply_to=record.reply_to,
            fence=fence,
            lease=lease,
            native=record.row,
            token=record.offset,
        )
        member.held[delivery] = entry
        return delivery

    def _new_lease(self, member: Member) -> Lease:
        deadline = self.clock.monotonic() + member.lease
        self.watch(deadline)
        return Lease(deadline)

    def _hold(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        member.held[delivery] = entry
        entry.due = self.clock.monotonic() + after
        return Hold(entry.due)

    # What is told to operators

    def info(self, topic: TopicSpec) -> GroupInfo:
        """Lag counts what waits to be handed over, for the first time or again."""
        waiting = list(self._waiting_entries())
        unread = sum(
            partition.end - cursor
            for partition, cursor in zip(self.topic.partitions, self.cursors, strict=True)
        )
        return GroupInfo(
            topic=topic.name,
            group=self.name,
            lag=unread + len(waiting),
            members=len(self.members),
            dead_letters=len(self.dead),
            oldest=self._oldest(waiting),
            generation=topic.generation,
            ordered=self.ordered,
        )

    def _oldest(self, waiting: Sequence[Entry]) -> float | None:
        stored = [entry.record.stored_at for entry in waiting]
        stored += [delivery.native[0] for member in self.members for delivery in member.held]
        for partition, cursor in zip(self.topic.partitions, self.cursors, strict=True):
            stored += [row[0] for row in partition.read(cursor, cursor + 1)]
        return max(self.clock.time() - min(stored), 0.0) if stored else None
