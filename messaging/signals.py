"""SIGTERM and SIGINT for all that one loop serves: a loop has one handler of a signal, and may have several apps."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_serving: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Event]] = WeakKeyDictionary()
"""What is set in each loop when the program is asked to stop."""


@contextmanager
def stop_asked() -> Generator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets, for everyone who is inside; a second ends the process as usual.

    Raises ConfigurationError outside the main thread, which alone gets signals.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    stops = _serving.setdefault(loop, set())

    def ask_all() -> None:
        for one in stops:
            one.set()
        _remove(loop)

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


def _remove(loop: asyncio.AbstractEventLoop) -> None:
    for number in _SIGNALS:
        loop.remove_signal_handler(number)
