"""Lanes: which delivery may start next. Pure bookkeeping, no I/O, no time of its own.

On an ordered group the deliveries of one key form a lane and are started one at a time, in the order they came
(semantics 7). A parked lane waits with all its successors and does not count against the prefetch (8). Everything
else is a lane of its own (10).
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

    from messaging.adapter import RawDelivery
    from messaging.message import Key

LaneKey: TypeAlias = "tuple[int, Key]"


class _Lane:
    """The deliveries of one key: the first is ready, running or parked; the others wait for it."""

    __slots__ = ("deliveries", "key", "parked_until", "partition", "running")

    def __init__(self, key: LaneKey | None, delivery: RawDelivery) -> None:
        self.key = key
        self.partition = delivery.partition
        self.deliveries = deque((delivery,))
        self.running = False
        self.parked_until: float | None = None


class Lanes:
    """All that one subscription holds in this process.

    A delivery is held from `add` to `finish`. `unparked` is what counts against the prefetch; `full` names the
    partitions whose parked deliveries have reached `window`.
    """

    __slots__ = (
        "_by_key",
        "_due",
        "_held",
        "_parked",
        "_ready",
        "_sequence",
        "_started",
        "_window",
        "full",
        "ordered",
    )

    def __init__(self, *, ordered: bool, window: int) -> None:
        self.ordered = ordered
        self.full: set[int] = set()
        self._window = window
        # A delivery without a key stands for itself: most messages never need a lane object.
        self._ready: deque[_Lane | RawDelivery] = deque()
        self._by_key: dict[LaneKey, _Lane] = {}
        self._held: dict[RawDelivery, _Lane | None] = {}
        self._started: set[RawDelivery] = set()
        self._parked: dict[int, int] = {}
        self._due: list[tuple[float, int, _Lane]] = []
        self._sequence = count()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, delivery: object) -> bool:
        return delivery in self._held

    @property
    def held(self) -> Collection[RawDelivery]:
        """Every delivery between `add` and `finish`, in the order they came."""
        return self._held.keys()

    @property
    def started(self) -> Collection[RawDelivery]:
        """Those that were taken and are neither finished nor parked."""
        return self._started

    @property
    def parked(self) -> int:
        return sum(self._parked.values())

    @property
    def unparked(self) -> int:
        return len(self._held) - self.parked if self._parked else len(self._held)

    @property
    def ready(self) -> bool:
        """Whether `take` may find something."""
        return bool(self._ready)

    def add(self, deliveries: Collection[RawDelivery]) -> None:
        """Hold deliveries that have just been received."""
        if self.ordered:
            for delivery in deliveries:
                self._add_to_lane(delivery)
        else:
            self._held.update(dict.fromkeys(deliveries))
            self._ready.extend(deliveries)

    def _add_to_lane(self, delivery: RawDelivery) -> None:
        key = delivery.message.key
        if key is None:
            self._held[delivery] = None
            self._ready.append(delivery)
            return
        lane_key = (delivery.partition, key)
        lane = self._by_key.get(lane_key)
        if lane is None:
            lane = self._by_key[lane_key] = _Lane(lane_key, delivery)
            self._ready.append(lane)
        else:
            lane.deliveries.append(delivery)
            if lane.parked_until is not None:
                self._count_parked(lane.partition, 1)
        self._held[delivery] = lane

    def take(self) -> RawDelivery | None:
        """The next delivery that may start, or None. Its lane waits for `advance`, `park` or `finish`."""
        while self._ready:
            entry = self._ready.popleft()
            if not isinstance(entry, _Lane):
                if entry not in self._held:
                    continue
                delivery = entry
            elif entry.deliveries:
                entry.running = True
                delivery = entry.deliveries[0]
            else:
                continue
            self._started.add(delivery)
            return delivery
        return None

    def advance(self, delivery: RawDelivery) -> None:
        """The delivery was handled with success: the next of its lane may start while it is being settled."""
        lane = self._held.get(delivery)
        if lane is not None:
            self._held[delivery] = None
            lane.deliveries.popleft()
            self._continue(lane)

    def finish(self, delivery: RawDelivery) -> None:
        """Forget the delivery; the next of its lane may start. A no-op for one that is not held."""
        lane = self._held.pop(delivery, None)
        self._started.discard(delivery)
        if lane is not None:
            self._leave(lane, delivery)

    def finish_all(self, deliveries: Collection[RawDelivery]) -> int:
        """As `finish` each of these; how many of them were held."""
        held = self._held
        before = len(held)
        for delivery in deliveries:
            lane = held.pop(delivery, None)
            if lane is not None:
                self._leave(lane, delivery)
        self._started.difference_update(deliveries)
        return before - len(held)

    def _leave(self, lane: _Lane, delivery: RawDelivery) -> None:
        """It is over: the next of its lane may start."""
        parked = lane.parked_until is not None
        if lane.deliveries[0] is not delivery:
            lane.deliveries.remove(delivery)
            if parked:
                self._count_parked(lane.partition, -1)
            return
        if parked:
            self._count_parked(lane.partition, -len(lane.deliveries))
            lane.parked_until = None
        lane.deliveries.popleft()
        if lane.running or parked:
            self._continue(lane)
        elif not lane.deliveries:
            self._forget(lane)

    def park(self, delivery: RawDelivery, until: float) -> None:
        """Hold the delivery, which must have been taken, and its successors until `until`."""
        lane = self._held[delivery]
        if lane is None:
            lane = self._held[delivery] = _Lane(None, delivery)
        self._started.discard(delivery)
        lane.running = False
        lane.parked_until = until
        self._count_parked(lane.partition, len(lane.deliveries))
        heappush(self._due, (until, next(self._sequence), lane))

    def wake(self, now: float) -> int:
        """Make the lanes that are due startable; how many."""
        woken = 0
        while self._due and self._due[0][0] <= now:
            until, _, lane = heappop(self._due)
            if lane.parked_until == until:
                lane.parked_until = None
                self._count_parked(lane.partition, -len(lane.deliveries))
                self._ready.append(lane)
                woken += 1
        return woken

    def next_due(self) -> float | None:
        """When the next parked lane is due."""
        while self._due:
            until, _, lane = self._due[0]
            if lane.parked_until == until:
                return until
            heappop(self._due)
        return None

    def of_keys(self, deliveries: Collection[RawDelivery]) -> list[RawDelivery]:
        """All that is held of the keys of these, by the same ownership."""
        keys = {_owned_key(one) for one in deliveries if one.message.key is not None}
        return [one for one in self._held if _owned_key(one) in keys] if keys else []

    def of_partitions(self, partitions: Collection[int]) -> list[RawDelivery]:
        """The held deliveries of these partitions, in the order they came."""
        return [delivery for delivery in self._held if delivery.partition in partitions]

    def _continue(self, lane: _Lane) -> None:
        lane.running = False
        if lane.deliveries:
            self._ready.append(lane)
        else:
            self._forget(lane)

    def _forget(self, lane: _Lane) -> None:
        if lane.key is not None:
            del self._by_key[lane.key]

    def _count_parked(self, partition: int, change: int) -> None:
        parked = self._parked.get(partition, 0) + change
        if parked:
            self._parked[partition] = parked
        else:
            self._parked.pop(partition, None)
        if parked >= self._window:
            self.full.add(partition)
        else:
            self.full.discard(partition)


def _owned_key(delivery: RawDelivery) -> tuple[int, int, Key | None]:
    return delivery.partition, delivery.fence, delivery.message.key
