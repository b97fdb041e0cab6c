"""For how long this process and its broker stood still: no fault of an adapter whose message came late by that."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from messaging import MessagingError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

PERIOD = 0.1
"""Seconds between one question to the broker and the next."""
USUAL = 0.3
"""Seconds that a period and its question may take together."""


class Standstill:
    """What was lost so far."""

    def __init__(self) -> None:
        self._before = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """By how much the questions, with the one that waits for its answer now, took longer than usual."""
        return self._before + max(0.0, time.monotonic() - self._began - USUAL)

    def answered(self) -> None:
        """The next period begins."""
        self._before, self._began = self.seconds, time.monotonic()


@asynccontextmanager
async def standstill(ask: Callable[[], Awaitable[object]]) -> AsyncGenerator[Standstill]:
    """Ask the broker something small again and again while the block runs."""
    lost = Standstill()

    async def watch() -> None:
        while True:
            await asyncio.sleep(PERIOD)
            with suppress(MessagingError):  # no answer in time: it is counted as late
                await ask()
            lost.answered()

    watching = asyncio.create_task(watch())
    try:
        yield lost
    finally:
        watching.cancel()
        await asyncio.wait((watching,))
