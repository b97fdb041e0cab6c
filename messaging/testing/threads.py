"""Threads that a test waits for: what a handler runs by `asyncio.to_thread` is work outside the event loop."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from messaging.current import current_delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Executor

    from messaging.testing.clock import VirtualClock


@contextmanager
def threads_are_waited_for(clock: VirtualClock) -> Generator[None]:
    """While the body runs, the clock's time stands while a handler waits for `run_in_executor` of this loop.

    What others run there, such as a lifespan's thread that never ends, does not hold it up.
    """
    loop: Any = asyncio.get_running_loop()  # every handler's calls meet here, whichever executor they name
    plain: Callable[..., asyncio.Future[Any]] = loop.run_in_executor

    def run_in_executor(
        executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        if current_delivery.get() is None:
            return plain(executor, func, *args)
        with ExitStack() as work:
            work.enter_context(clock.busy())
            job = plain(executor, func, *args)
            over = work.pop_all()
        job.add_done_callback(lambda _: over.close())
        return job

    loop.run_in_executor = run_in_executor
    try:
        yield
    finally:
        loop.run_in_executor = plain
