"""A group without order: its members share all partitions, and the broker keeps delayed copies."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from messaging.adapter import DONE
from messaging_memory.group import LEASE_ENDED, Entry, Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from messaging.adapter import RawDelivery, Settled
    from messaging.clock import Clock, Timer
    from messaging_memory.group import Member
    from messaging_memory.log import TopicLog
    from messaging_memory.record import Record


class SharedGroup(Group):
    """What comes back is handed over before what is new; delays end exactly when they should (5)."""

    def __init__(self, topic: TopicLog, name: str, *, cursors: list[int], clock: Clock) -> None:
        super().__init__(topic, name, ordered=False, cursors=cursors, clock=clock)
        self._back: deque[Entry] = deque()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._order = count()
        self._delay_timer: Timer | None = None
        self._delay_at = inf
        self._turn = 0

    def take(self, member: Member, limit: int) -> list[RawDelivery]:
        if not self.ready_for(member):
            return []
        lease = self._new_lease(member)
        batch: list[RawDelivery] = []
        skipped: list[Entry] = []
        while self._back and len(batch) < limit:
            entry = self._back.popleft()
            if entry.record.partition in member.paused:
                skipped.append(entry)
            else:
                batch.append(self._again(member, entry, 0, lease))
        self._back.extendleft(reversed(skipped))
        partitions = self.topic.partitions
        for step in range(len(partitions)):
            room = limit - len(batch)
            if room <= 0:
                break
            number = (self._turn + step) % len(partitions)
            if number in member.paused:
                continue
            if rows := self._read(number, self.cursors[number] + room):
                batch += self._first(member, number, rows, 0, lease)
        self._turn = (self._turn + 1) % len(partitions)
        return batch

    def ready_for(self, member: Member) -> bool:
        paused = member.paused
        if self._back and (not paused or any(entry.record.partition not in paused for entry in self._back)):
            return True
        return any(
            partition.base + len(partition.rows) > cursor and partition.number not in paused
            for partition, cursor in zip(self.topic.partitions, self.cursors, strict=True)
        )

    def redrive(self, record: Record, failure: str | None) -> None:
        self._back.append(Entry(record, deliveries=0, failure=failure))
        self.wake(1)

    def resume(self) -> None:
        if self._delayed:
            self._watch_delays(self._delayed[0][0])

    def close(self) -> None:
        super().close()
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer, self._delay_at = None, inf

    def _put_back(self, entries: Sequence[Entry]) -> None:
        self._back.extend(entries)

    def _retry(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        return self._release(delivery, entry, after, member)

    def _release(self, delivery: RawDelivery, entry: Entry, after: float, member: Member) -> Settled:
        del member.held[delivery]
        delivery.token = None
        if after > 0:
            due = self.clock.monotonic() + after
            heappush(self._delayed, (due, next(self._order), entry))
            self._watch_delays(due)
        else:
            self._back.append(entry)
            self.wake(1)
        return DONE

    def _lapse(self, member: Member, deliveries: Sequence[RawDelivery]) -> None:
        self._put_back(self._returned(member, deliveries, counted=True))
        member.ownership.on_lost(deliveries, LEASE_ENDED)

    def _waiting_entries(self) -> Iterable[Entry]:
        yield from self._back
        for _, _, entry in self._delayed:
            yield entry

    def _watch_delays(self, due: float) -> None:
        if due < self._delay_at:
            if self._delay_timer is not None:
                self._delay_timer.cancel()
            self._delay_at = due
            self._delay_timer = self.clock.call_later(due - self.clock.monotonic(), self._end_delays)

    def _end_delays(self) -> None:
        self._delay_timer, self._delay_at = None, inf
        now = self.clock.monotonic()
        ended = 0
        while self._delayed and self._delayed[0][0] <= now:
            self._back.append(heappop(self._delayed)[2])
            ended += 1
        if self._delayed:
            self._watch_delays(self._delayed[0][0])
        if ended:
            self.wake(ended)
