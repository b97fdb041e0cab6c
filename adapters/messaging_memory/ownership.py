"""A group with order: each partition has one owner, and moves between members without overlap (7, 13)."""

from __future__ import annotations

from collections import deque
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from messaging.errors import LeaseLost
from messaging_memory.group import HANDED_OVER, LEASE_ENDED, Entry, Group
from messaging_memory.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

    from messaging.adapter import Lease, RawDelivery, Settled
    from messaging.clock import Clock, Timer
    from messaging.errors import MessagingError
    from messaging_memory.group import Member
    from messaging_memory.log import TopicLog


class Owned:
    """One partition as this group sees it."""

    __slots__ = ("back", "fence", "owner", "parked", "redriven")

    def __init__(self) -> None:
        self.owner: Member | None = None
        self.fence = 0
        """Grows with every owner."""
        self.back: list[Entry] = []
        """What was handed over and came back, in order: it goes before all else."""
        self.redriven: deque[Entry] = deque()
        self.parked: dict[Hashable, list[Entry]] = {}
        """By key: what may not be handed over yet."""


class OwnedGroup(Group):
    """Partitions are spread evenly: no member has two more than another once all hand-overs are done."""

    def __init__(self, topic: TopicLog, name: str, *, cursors: list[int], clock: Clock) -> None:
        super().__init__(topic, name, ordered=True, cursors=cursors, clock=clock)
        self.owned = [Owned() for _ in topic.partitions]
        self._sequence = 0
        self._parked_timer: Timer | None = None
        self._parked_until = inf
        self._turn = 0

    # Balance

    def join(self, member: Member) -> None:
        super().join(member)
        self.rebalance()

    def leave(self, member: Member, reason: MessagingError, *, counted: bool = False) -> list[RawDelivery]:
        deliveries = super().leave(member, reason, counted=counted)
        self._free(member, list(member.partitions))
        self.rebalance()
        return deliveries

    def _surrender(self, member: Member, partitions: Collection[int]) -> None:
        """The hand-over is over: what the member still holds of these is taken from it."""
        mine = [number for number in partitions if self.owned[number].owner is member]
        self._take_from(member, mine, counted=False, reason=HANDED_OVER)
        self.rebalance()

    def rebalance(self) -> None:
        """Give what is free to those who have too little, and ask those who have too much to hand over."""
        if not self.members:
            return
        least, extra = divmod(len(self.owned), len(self.members))
        # Whoever has most keeps the larger shares: fewest partitions move.
        ranked = sorted(self.members, key=lambda member: -len(member.partitions - member.revoking))
        free = [number for number, owned in enumerate(self.owned) if owned.owner is None]
        surplus: list[tuple[Member, list[int]]] = []
        for place, member in enumerate(ranked):
            share = least + (place < extra)
            kept = sorted(member.partitions - member.revoking)
            if len(kept) > share:
                surplus.append((member, kept[share:]))
            for number in free[: max(share - len(kept), 0)]:
                self._give(number, member)
            del free[: max(share - len(kept), 0)]
        for member, numbers in surplus:
            member.revoking.update(numbers)
            member.revoke(numbers, partial(self._surrender, member, numbers))
        self.wake()

    def _give(self, number: int, member: Member) -> None:
        owned = self.owned[number]
        owned.owner = member
        owned.fence += 1
        member.partitions.add(number)

    def _free(self, member: Member, partitions: Iterable[int]) -> None:
        for number in partitions:
            self.owned[number].owner = None
            member.partitions.discard(number)
            member.revoking.discard(number)

    def _take_from(self, member: Member, partitions: Collection[int], *, counted: bool, reason: str) -> None:
        deliveries = [delivery for delivery in member.held if delivery.partition in partitions]
        self._put_back(self._returned(member, deliveries, counted=counted))
        self._free(member, partitions)
        if deliveries:
            member.ownership.on_lost(deliveries, reason)

    def finish(self, number: int) -> bool:
        """Whether nothing of the partition waits here, for its turn or for its time."""
        owned = self.owned[number]
        if owned.parked or owned.back or owned.redriven:
            return False
        self.finished.add(number)
        return True

    # Handing over

    def take(self, member: Member, limit: int) -> list[RawDelivery]:
        batch: list[RawDelivery] = []
        numbers = sorted(member.partitions)
        self._turn += 1
        lease = None
        for step in range(len(numbers)):
            number = numbers[(self._turn + step) % len(numbers)]
            if number in member.paused or number in member.revoking or not self._has(number):
                continue
            lease = lease or self._new_lease(member)
            while len(batch) < limit and (some := self._next(member, number, limit - len(batch), lease)):
                batch += some
            if len(batch) >= limit:
                break
        return batch

    def ready_for(self, member: Member) -> bool:
        return any(
            number not in member.paused and number not in member.revoking and self._has(number)
            for number in member.partitions
        )

    def _has(self, number: int) -> bool:
        owned = self.owned[number]
        return bool(owned.back or owned.redriven) or self.topic.partitions[number].end > self.cursors[number]

    def _next(self, member: Member, number: int, room: int, lease: Lease) -> list[RawDelivery]:
        """What came back; then, in turn, the log and what was redriven behind it (11)."""
        owned = self.owned[number]
        if owned.back:
            again, owned.back = owned.back[:room], owned.back[room:]
            return [self._again(member, entry, owned.fence, lease) for entry in again]
        while True:
            cursor = self.cursors[number]
            if owned.redriven and owned.redriven[0].record.offset < cursor:
                entry = owned.redriven.popleft()
                if not self._parked(owned, entry):
                    return [self._again(member, entry, owned.fence, lease)]
                continue
            stop = cursor + room
            if owned.redriven:
                stop = min(stop, owned.redriven[0].record.offset + 1)
            rows = self._read(number, stop)
            if not rows:
                return []
            if owned.parked:
                rows = [
                    (offset, row)
                    for offset, row in rows
                    if not self._parked(owned, Entry(Record(row, number, offset), deliveries=0))
                ]
            if rows:
                return self._first(member, number, rows, owned.fence, lease)

    def redrive(self, record: Record, failure: str | None) -> None:
        self._sequence += 1
        record.offset = self.topic.partitions[record.partition].end - 1
        record.sequence = self._sequence
        self.owned[record.partition].redriven.append(Entry(record, deliveries=0, failure=failure))
        self.wake()

    # What comes back

    def _put_back(self, entries: Sequence[Entry]) -> None:
        now = self.clock.monotonic()
        for entry in entries:
            owned = self.owned[entry.record.partition]
            if entry.due > now:
                self._park(owned, entry)
            elif not self._parked(owned, entry):
                owned.back.append(entry)
        for number in {entry.record.partition for entry in entries}:
            self.owned[number].back.sort(key=_rank)

    def _park(self, owned: Owned, entry: Entry) -> None:
        """Its member left while it held the message: it and its key's next ones wait here for the same time."""
        key = _parking_key(entry)
        followers = [other for other in owned.back if _parking_key(other) == key]
        owned.back = [other for other in owned.back if _parking_key(other) != key]
        parked = owned.parked.setdefault(key, [])
        parked += [entry, *followers]
        parked.sort(key=_rank)
        self._watch_parked(entry.due)

    def _parked(self, owned: Owned, entry: Entry) -> bool:
        """Put it to its key's parked messages, if there are any."""
        if not owned.parked or (parked := owned.parked.get(_parking_key(entry))) is None:
            return False
        parked.append(entry)
        return True

    def _watch_parked(self, due: float) -> None:
        if due < self._parked_until:
            if self._parked_timer is not None:
                self._parked_timer.cancel()
            self._parked_until = due
            self._parked_timer = self.clock.call_later(due - self.clock.monotonic(), self._end_parking)

    def _end_parking(self) -> None:
        self._parked_timer, self._parked_until = None, inf
        now = self.clock.monotonic()
        for owned in self.owned:
            for key, entries in list(owned.parked.items()):
                due = max(entry.due for entry in entries)
                if due > now:
                    self._watch_parked(due)
                else:
                    del owned.parked[key]
                    owned.back += entries
            owned.back.sort(key=_rank)
        self.wake()

    def resume(self) -> None:
        self._end_parking()

    def close(self) -> None:
        super().close()
        if self._parked_timer is not None:
            self._parked_timer.cancel()
            self._parked_timer, self._parked_until = None, inf

    def _retry(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        return self._hold(delivery, entry, after, member)

    def _release(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        # Given back, it would be overtaken by its key's next message, which the member may hold already (7).
        return self._hold(delivery, entry, after, member)

    def _lapse(self, member: Member, deliveries: Sequence[RawDelivery]) -> None:
        """The partition goes with the lease: what is left of it must not overtake what came back."""
        numbers = {delivery.partition for delivery in deliveries}
        self._take_from(member, numbers, counted=True, reason=LEASE_ENDED)
        if not member.held and member.waiter is None:
            reason = LeaseLost(
                f"a member of group {self.name} did not extend its leases within {member.lease} s"
            )
            self.leave(member, reason)
        else:
            self.rebalance()

    def _waiting_entries(self) -> Iterable[Entry]:
        for owned in self.owned:
            yield from owned.back
            yield from owned.redriven
            for entries in owned.parked.values():
                yield from entries


def _rank(entry: Entry) -> tuple[int, int]:
    return entry.record.offset, entry.record.sequence


def _parking_key(entry: Entry) -> Hashable:
    """Without a key a message parks alone (10)."""
    key = entry.record.key
    return entry if key is None else key
