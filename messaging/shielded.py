"""Work that goes on when whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def shielded(task: asyncio.Future[T]) -> T:
    """What the task returns or raises. It goes on when the caller is cancelled, and its owner waits for it at close.

    `asyncio.shield` leaves an error that comes then to the event loop, which logs that nobody read it (always since
    Python 3.14): here it is read.
    """
    task.add_done_callback(_read)
    await asyncio.wait((task,))
    return task.result()


def _read(task: asyncio.Future[T]) -> None:
    if not task.cancelled():
        task.exception()
