"""SIGTERM and SIGINT for all that one loop serves: a loop has one handler of a signal, and may have several apps."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from messaging.errors import ConfigurationError
from messaging.lasting import this_task

if TYPE_CHECKING:
    from collections.abc import Generator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SENT_TWICE = 0.5
"""Seconds in which a second signal is the first once more: `timeout`, `uv run` and other runners pass on what the whole
process group got."""
_serving: WeakKeyDictionary[asyncio.AbstractEventLoop, set[Stop]] = WeakKeyDictionary()
"""Who is told in each loop when the program is asked to stop."""
_leaving: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()
"""When each loop that was asked leaves the next signal to the system."""


class Stop:
    """Whether one app is asked to stop, by the first SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._starting: asyncio.Task[object] | None = None
        self._cancelled = False

    def ask(self) -> None:
        """The signal has come."""
        self._asked.set()
        if self._starting is not None:
            self._starting.cancel()
            self._cancelled = True

    async def wait(self) -> None:
        """Wait until it is asked; returns at once where it was."""
        await self._asked.wait()

    @contextmanager
    def cancels(self) -> Generator[None]:
        """Being asked cancels the body, which then ends without an error.

        What the body raises in place of its cancellation is raised, and so is a cancellation by somebody else.
        """
        task = self._starting = this_task()
        cancelling = task.cancelling()
        try:
            yield
        except asyncio.CancelledError:
            if task.cancelling() > cancelling + self._cancelled or not self._cancelled:
                raise
        finally:
            self._starting = None
            if self._cancelled:
                task.uncancel()


@contextmanager
def stop_asked() -> Generator[Stop]:
    """What the first SIGTERM or SIGINT asks, of everyone who is inside; a second ends the process as usual, unless it
    comes within `SENT_TWICE`.

    Raises ConfigurationError outside the main thread, which alone gets signals.
    """
    loop, stop = asyncio.get_running_loop(), Stop()
    stops = _serving.setdefault(loop, set())

    def ask_all() -> None:
        if loop in _leaving:
            return
        for one in stops:
            one.ask()
        _leaving[loop] = loop.call_later(SENT_TWICE, _remove, loop)

    _stay(loop)
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, ask_all)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(
            "serve() waits for SIGTERM, which only the main thread gets: in another, "
            "use `async with bus, app.running(bus)` and end it yourself"
        ) from error
    stops.add(stop)
    try:
        yield stop
    finally:
        stops.discard(stop)
        if not stops:
            _remove(loop)


def _stay(loop: asyncio.AbstractEventLoop) -> None:
    if (leaving := _leaving.pop(loop, None)) is not None:
        leaving.cancel()


def _remove(loop: asyncio.AbstractEventLoop) -> None:
    _stay(loop)
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
