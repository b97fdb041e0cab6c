"""The deadlines of many waits, with one timer for all.

A timer per wait costs more than what is waited for. Those that may take equally long end in the order in which they
began, so each length has a queue, and only the heads of the queues are looked at.

Where the program stood still, its timers run before what came meanwhile has been read: the waits go on a little.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Generic, TypeVar

from messaging.clock import catching_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.clock import Clock, Timer

W = TypeVar("W")

PAUSE = 1e-5
"""Seconds between two looks, for each length: a look goes through all of them."""


class Deadlines(Generic[W]):
    """Calls `late(waits)` for those that were not removed in time, with all that are late at once."""

    def __init__(self, clock: Clock, late: Callable[[Sequence[W]], object]) -> None:
        self._clock = clock
        self._late = late
        self._queues: dict[float, dict[W, float]] = {}
        """By length in seconds: the waits in the order of their deadlines."""
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self._second: dict[W, float] = {}
        """Those whose time was over while the program stood still: they have until then."""

    def add(self, wait: W, within: float) -> None:
        """Begin a wait of at most `within` seconds."""
        queue = self._queues.get(within)
        if queue is None:
            queue = self._queues[within] = {}
        due = queue[wait] = self._clock.monotonic() + within
        if self._timer is None or due < self._timer_due:
            self._arm(due)

    def remove(self, wait: W, within: float) -> None:
        """The wait is over. A no-op when it was late."""
        queue = self._queues.get(within)
        if queue is not None and queue.pop(wait, None) is not None:
            if not queue:
                del self._queues[within]
        elif self._second:
            self._second.pop(wait, None)
        # The timer stays: the next wait needs one all the same.

    def close(self) -> None:
        """Leave no timer behind; whoever still waits is never late."""
        self._queues.clear()
        self._second.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        more = catching_up(now - self._timer_due)
        # A loop's timer may come a little early: who is due with it is late now.
        now = max(now, self._timer_due)
        late = _taken(self._second, now)
        until = max(now + more, next(reversed(self._second.values()), now))
        for within, queue in list(self._queues.items()):
            over = _taken(queue, now)
            if more:
                self._second.update(dict.fromkeys(over, until))
            else:
                late += over
            if not queue:
                del self._queues[within]
        if waiting := [*self._queues.values(), *([self._second] if self._second else ())]:
            soonest = min(next(iter(queue.values())) for queue in waiting)
            self._arm(max(soonest, now + PAUSE * len(waiting)))
        if late:
            self._late(late)


def _taken(queue: dict[W, float], now: float) -> list[W]:
    """Those whose time is over: they are in the queue no more."""
    over = [wait for wait, _ in takewhile(lambda one: one[1] <= now, queue.items())]
    for wait in over:
        del queue[wait]
    return over
