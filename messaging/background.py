"""Tasks with an owner: started here, ended and awaited here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from messaging.lasting import cancelled

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Background:
    """The tasks that a consumer runs beside its calls."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._stopping = False

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run `work` until it ends or `stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self._stopping:
                self._failure = cancelled(task.get_name())
        elif (error := task.exception()) is not None:
            self._failure = error

    def check(self) -> None:
        """Raise what ended a task that was to go on."""
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Cancel all and wait for their end."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _ = await asyncio.wait(tasks)
