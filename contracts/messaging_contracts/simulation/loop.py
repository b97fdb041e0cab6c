"""An event loop whose time is virtual: it passes only when nothing is left to run, and then at once.

The same program does the same on it in every process: tasks hash by their number, not by their address, so that sets
of tasks have one order.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from math import inf, nextafter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

EPOCH = 1_767_225_600.0
"""When virtual time begins, in seconds of the Unix epoch."""


RESOLUTION = 2e-6
"""Seconds: a message keeps its times in microseconds."""
TURNS = 50_000
"""Turns of the loop at one moment of virtual time after which the program is taken to repeat itself for ever."""
MOST_TURNS = 300_000
"""Turns of the loop in all, after which it is taken to repeat itself with hardly any delay: histories took 20 000."""


class Stalled(Exception):
    """Every task waits and nothing will ever wake one, or something repeats without any delay, or hardly any."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """For programs without input and output, and without threads."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = count()
        super().__init__(_NoInput(self))
        self._ready: deque[asyncio.Handle]
        self._clock_resolution = (
            0.0  # no timer is early: whoever compares times would wait for no time at all
        )
        self.set_task_factory(self._task)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  the stubs want a Task's own signature

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    @property
    def busy(self) -> bool:
        """Whether something can run without time passing."""
        return bool(self._ready)

    def let_pass(self, seconds: float) -> None:
        """Move time forward; for the loop's selector only."""
        self._now = nextafter(self._now + seconds, inf)  # the loop runs a timer once its time is over

    def _task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return _Task(next(self._numbers), coro, loop=loop, **options)


class _Task(asyncio.Task[Any]):
    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoInput(selectors.SelectSelector):
    """Never waits: what would be waited for is virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0
        self._all_turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled(f"at {self._loop.time():.3f} s every task waits for ever")
        self._turns += 1
        self._all_turns += 1
        if self._all_turns > MOST_TURNS:
            raise Stalled(f"at {self._loop.time():.3f} s something repeats with hardly any delay")
        if not self._loop.busy:
            self._turns = 0
            self._loop.let_pass(timeout)
        elif self._turns > TURNS:
            raise Stalled(f"at {self._loop.time():.3f} s something repeats without any delay")
        return []


def due_of(not_before: datetime | None) -> float | None:
    """The virtual seconds of this time of a message."""
    return None if not_before is None else not_before.timestamp() - EPOCH - RESOLUTION


class Timer:
    """A scheduled call of a `ProcessClock`."""

    def __init__(self, clock: ProcessClock, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """See `messaging.clock.Timer`."""
        self._callback = None

    def run(self) -> None:
        """It is due: call, unless cancelled; later where the process is frozen."""
        if self._clock.frozen:
            self._clock.missed(self)
        elif self._callback is not None:
            callback, self._callback = self._callback, None
            callback()


class ProcessClock:
    """The clock of one simulated process, which can be frozen: its timers then fire when it thaws, all at once."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._missed: list[Timer] = []
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.thawed_at = -inf
        """When it last went on."""

    @property
    def frozen(self) -> bool:
        """Whether the process stands still."""
        return not self._thawed.is_set()

    def time(self) -> float:
        """See `messaging.clock.Clock`."""
        return EPOCH + self._loop.time()

    def monotonic(self) -> float:
        """See `messaging.clock.Clock`."""
        return self._loop.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """See `messaging.clock.Clock`."""
        timer = Timer(self, callback)
        self._loop.call_later(max(delay, 0.0), timer.run)
        return timer

    def busy(self) -> AbstractContextManager[object]:
        """See `messaging.clock.Clock`: there are no threads here."""
        return nullcontext()

    def freeze(self) -> None:
        """Stand still, as after SIGSTOP."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on, as after SIGCONT."""
        if self.frozen:
            self.thawed_at = self._loop.time()
        self._thawed.set()
        missed, self._missed = self._missed, []
        for timer in missed:
            self._loop.call_soon(timer.run)

    def missed(self, timer: Timer) -> None:
        """A timer came due while the process stood still; for timers only."""
        self._missed.append(timer)

    async def awake(self) -> None:
        """Return at once, or when the process thaws."""
        await self._thawed.wait()
