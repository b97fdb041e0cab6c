"""Time as a dependency: the system's clock in production, a virtual one in tests.

Everything portable, and the memory adapter, reads time and waits through a `Clock`; a broker's adapter uses the
system's clock, because its broker does.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


STILL = 0.01
"""Seconds by which a timer may be late before the program is taken to have stood still: its loop was blocked, or it."""
CATCH_UP = 1.0
"""Most seconds that are given then to read what came meanwhile: the answer that is waited for may be there."""
_PACE = 10
"""As many times as long as the timer was late: a loop that is only busy puts off no timeout by much."""


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Forget the call. A no-op when it has run."""
        ...


class Clock(Protocol):
    """Where the time comes from."""

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; the unit of every deadline and lease."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the running loop in `delay` seconds."""
        ...

    def busy(self) -> AbstractContextManager[object]:
        """Around work outside the loop, in a thread for instance: a virtual clock stands still meanwhile."""
        ...


class SystemClock:
    """The clock of the operating system and of the running event loop."""

    # Read for every message: without a frame of their own.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    def busy(self) -> AbstractContextManager[object]:
        return nullcontext()


def catching_up(late: float) -> float:
    """The seconds to read what came while the program stood still, of a timer that was so late."""
    return min(CATCH_UP, _PACE * late) if late > STILL else 0.0


def check_cancelled() -> None:
    """Raise CancelledError in a task that was cancelled, even where the first one did not arrive.

    aiormq, and `asyncio.wait_for` of Python 3.11, lose a cancellation that comes together with what they wait for.
    A loop that goes on until it is cancelled asks in each round, before it waits.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def sleep(clock: Clock, delay: float) -> None:
    """Wait `delay` seconds of this clock. Cancellation ends the wait at once."""
    if delay <= 0:
        await asyncio.sleep(0)
        return
    woken = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = clock.call_later(delay, wake)
    try:
        await woken
    finally:
        timer.cancel()


@asynccontextmanager
async def timeout(clock: Clock, delay: float | None, *, catch_up: bool = False) -> AsyncGenerator[None]:
    """Cancel the body after `delay` seconds of this clock and raise TimeoutError; None waits for ever.

    With `catch_up`, a body that only waits for an answer has a little more where the program stood still (`STILL`).
    A cancellation that comes from outside is passed on unchanged, as `asyncio.timeout` does.
    """
    if delay is None:
        yield
        return
    task = asyncio.current_task()
    assert task is not None, "timeout() needs a running task"
    cancelling = task.cancelling()
    expired, more = False, catch_up
    timer: Timer | None = None
    due = clock.monotonic() + delay

    def expire() -> None:
        nonlocal expired, timer, more
        if more and (left := catching_up(clock.monotonic() - due)):
            timer, more = clock.call_later(left, expire), False
            return
        expired = True
        task.cancel()

    timer = clock.call_later(delay, expire)
    try:
        yield
    except BaseException as error:  # whatever the body ended with, the cancellation of ours is taken back
        if expired and task.uncancel() <= cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
        raise
    else:
        if expired:
            task.uncancel()  # the body swallowed it: the task goes on as one that nobody cancels
    finally:
        timer.cancel()
