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


class Underway:
    """Work that one owner starts, and that goes on when whoever asked for it is cancelled, until the owner ends it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run it. An error that nobody waits for is dropped: whoever asked for it is gone."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        _read(task)

    async def end(self, within: float) -> None:
        """Wait so many seconds for what still runs, then cancel it, and wait for its end."""
        await given_up(self._tasks, within)


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
