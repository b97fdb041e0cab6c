"""A clock that a test moves: an hour passes in no real time, and always in the same order."""

from __future__ import annotations

import asyncio
import time as real_time
from contextlib import contextmanager
from contextvars import copy_context
from heapq import heapify, heappop, heappush
from itertools import count
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

QUIET_ROUNDS = 48
"""Rounds of the event loop without activity after which the program is at rest. A chain of plain awaits
between two uses of the clock or of the memory broker may be this long."""


class VirtualTimer:
    """A scheduled call of a `VirtualClock`."""

    __slots__ = ("_callback", "_clock", "_context", "due")

    def __init__(self, clock: VirtualClock, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self._clock = clock
        self._callback: Callable[[], object] | None = callback
        self._context: Context = copy_context()

    @property
    def pending(self) -> bool:
        """Neither run nor cancelled."""
        return self._callback is not None

    def cancel(self) -> None:
        """Forget the call. A no-op when it has run."""
        if self._callback is not None:
            self._callback = None
            self._clock.forget()

    def fire(self) -> None:
        """Have the running loop call it, as its own timers are called."""
        asyncio.get_running_loop().call_soon(self._run, context=self._context)

    def _run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:  # else one that was due at the same instant cancelled it
            callback()


class VirtualClock:
    """Implements `messaging.clock.Clock`; time passes only while `advance` runs.

    Timers fire in the order of their time, those of one instant in the order in which they were scheduled.
    Between two instants the program runs until it rests: until neither a timer nor whoever calls `touch` (the
    memory broker does, for every operation) showed activity for some rounds of the event loop. Work outside the
    loop, such as a synchronous handler in its thread, is announced with `busy` and really waited for.

    Not covered: programs that wait for real input and output, and plain `asyncio.sleep` with a delay.

    `start` is the time of the epoch at which the clock starts; `patience` bounds, in real seconds, every wait
    for work outside the loop, and, in seconds of the processor, a program that does not come to rest.
    """

    def __init__(self, *, start: float = 1_767_225_600.0, patience: float = 10.0) -> None:
        self._start = start
        self._patience = patience
        self._now = 0.0
        self._heap: list[tuple[float, int, VirtualTimer]] = []
        self._order = count()
        self._cancelled = 0
        self._activity = 0
        self._outside = 0
        self._back: asyncio.Event | None = None
        self._moving = False

    def time(self) -> float:
        """Seconds since the Unix epoch; the same at the start of every test."""
        return self._start + self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], object]) -> VirtualTimer:
        """Call `callback` when `delay` seconds of this clock have passed, in the context of the caller."""
        timer = VirtualTimer(self, self._now + max(delay, 0.0), callback)
        heappush(self._heap, (timer.due, next(self._order), timer))
        self._activity += 1
        return timer

    def touch(self) -> None:
        """Tell the clock that something happened: the program is not at rest yet."""
        self._activity += 1

    @contextmanager
    def busy(self) -> Generator[None]:
        """While the body runs, work is going on outside the event loop: time stands until it is over.

        Enter and leave it on the loop's own thread, around the await of the outside work.
        """
        self._outside += 1
        self._activity += 1
        try:
            yield
        finally:
            self._outside -= 1
            self._activity += 1
            if self._outside == 0 and self._back is not None:
                self._back.set()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: fire what comes due, in order, and let the program rest after each instant.

        Raises RuntimeError when the program does not come to rest, or work outside the loop does not end,
        within the clock's patience. Cancelled, or after an error, the clock stands where it had come.
        """
        if not isfinite(seconds) or seconds < 0:
            raise ValueError(f"time moves forward by a finite number of seconds, not by {seconds}")
        with self._alone():
            await self._rest()
            target = self._now + seconds
            while (due := self._next_due()) is not None and due <= target:
                self._now = max(self._now, due)
                await self._rest()
            self._now = target

    async def settle(self) -> None:
        """Let everything run that needs no time.

        Raises RuntimeError as `advance` does.
        """
        with self._alone():
            await self._rest()

    def forget(self) -> None:
        """A timer was cancelled; for timers only."""
        self._activity += 1
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[2].pending]
            heapify(self._heap)
            self._cancelled = 0

    @contextmanager
    def _alone(self) -> Generator[None]:
        if self._moving:
            raise RuntimeError(
                "the virtual clock is already being advanced: await one advance or settle at a time"
            )
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def _rest(self) -> None:
        # A busy machine lets real time pass without this thread.
        limit = real_time.thread_time() + self._patience
        quiet = 0
        while quiet < QUIET_ROUNDS:
            if self._outside:
                await self._wait_outside()
                quiet = 0
            self._fire_due()
            before = self._activity
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._activity == before else 0
            if quiet == 0 and real_time.thread_time() > limit:
                raise RuntimeError(
                    f"the program did not come to rest within {self._patience} s of the processor, at virtual "
                    f"time {self._now}: something repeats without any delay"
                )

    async def _wait_outside(self) -> None:
        self._back = asyncio.Event()
        try:
            async with asyncio.timeout(self._patience):
                await self._back.wait()
        except TimeoutError:
            raise RuntimeError(
                f"work outside the event loop did not end within {self._patience} real seconds: a "
                f"synchronous handler blocks, or waits for virtual time"
            ) from None
        finally:
            self._back = None

    def _next_due(self) -> float | None:
        while self._heap and not self._heap[0][2].pending:
            heappop(self._heap)
            self._cancelled = max(self._cancelled - 1, 0)
        return self._heap[0][0] if self._heap else None

    def _fire_due(self) -> None:
        while (due := self._next_due()) is not None and due <= self._now:
            timer = heappop(self._heap)[2]
            self._activity += 1
            timer.fire()
