"""Work that goes on when whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

T = TypeVar("T")


async def shielded(task: asyncio.Future[T]) -> T:
    """What the task returns or raises. It goes on when the caller is cancelled, and its owner waits for it at close.

    `asyncio.shield` leaves an error that comes then to the event loop, which logs that nobody read it (always since
    Python 3.14): here it is read.
    """
    task.add_done_callback(_read)
    await asyncio.wait((task,))
    return task.result()


async def to_its_end(work: Coroutine[Any, Any, None], within: float) -> None:
    """Do it. Where the caller is cancelled, it has `within` seconds more to end, before the cancellation is raised."""
    task = asyncio.create_task(work)
    task.add_done_callback(_read)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await asyncio.wait((task,), timeout=within)
        raise
    finally:
        task.cancel()
    task.result()


async def given_up(tasks: Collection[asyncio.Task[Any]], within: float) -> None:
    """Wait for these for so many seconds, then cancel what still runs, and wait for its end."""
    waited_for = list(tasks)
    if not waited_for:
        return
    try:
        await asyncio.wait(waited_for, timeout=within)
    finally:
        for task in waited_for:
            task.cancel()
        await asyncio.wait(waited_for)


def _read(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
