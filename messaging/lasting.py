"""Work that only its owner ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from messaging.errors import MessagingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def lasting(work: Callable[[], Awaitable[None]], name: str, ended: Callable[[], bool]) -> None:
    """Do it. Cancelled before its owner says that it has `ended`, it fails.

    A task group, and whoever waits for several, takes a task that somebody cancelled for one that has done its work.
    """
    try:
        await work()
    except asyncio.CancelledError:
        if ended():
            raise
        raise cancelled(name) from None


def this_task() -> asyncio.Task[Any]:
    """The task that runs this."""
    task = asyncio.current_task()
    assert task is not None, "it is called in a coroutine"
    return task


def cancelled(name: str) -> MessagingError:
    """What is said of a task that somebody else cancelled."""
    return MessagingError(
        f"{name} was cancelled by another part of this program: cancel only tasks of its own"
    )
