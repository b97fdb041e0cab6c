"""Threads for calls that block: bounded, made when needed, and never in the way of the interpreter's end.

The threads of `concurrent.futures` are joined when the interpreter ends: one hanging call would hold the process.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from messaging.errors import Closed, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Job: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]"


class Threads:
    """Up to `size` daemon threads. More calls than that wait for one."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._started = 0
        self._unfinished = 0
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result. Cancelling leaves the call to end by itself; what it returns then is dropped.

        Raises Closed after `close`, ConnectionFailed where no thread runs and none can be started.
        """
        if self._closed:
            raise Closed("the connection to SQS was closed")
        if self._unfinished >= self._started and self._started < self._size:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._unfinished += 1
        self._jobs.put((loop, future, call))
        return await future

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._started:
                raise ConnectionFailed(f"no thread could be started for calls to SQS: {error}") from error
            return  # the call waits for one of those that run
        self._started += 1

    def close(self) -> None:
        """Let the threads end when their calls do."""
        if not self._closed:
            self._closed = True
            for _ in range(self._started):
                self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, call = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = call()
            except BaseException as error:  # whoever waits is told; the thread goes on
                failure = error
            try:
                loop.call_soon_threadsafe(self._tell, future, result, failure)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            # Nothing of the last call is kept alive while this thread waits for the next.
            del job, future, call, result, failure

    def _tell(self, future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
        self._unfinished -= 1
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
