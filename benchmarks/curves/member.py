"""Members of groups in processes of their own. `python -m benchmarks.curves.member WORK` is one: a line makes it begin
to count what it takes, and say so; the end of its input ends it. Its broker's URL comes by the environment, where
others do not read its credentials.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

import uvloop

from benchmarks.measure import peak
from benchmarks.payload import Order
from messaging import App, Topic, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

WITHIN = 300.0
"""Seconds for all messages of a point."""
TOLD_EVERY = 0.05
"""Seconds."""
COUNTS = "counts"
"""What a member says when it has begun to count what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a member subscribes to: these topics, each with so many workers."""

    topics: Sequence[str]
    partitions: int
    concurrency: int
    prefetch: int
    """Of one topic."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a member says of itself at its end."""

    handled: int
    seconds: float
    """Of the processor, from when it was told to count until its end."""
    memory: int
    """Bytes at the peak."""


class Members:
    """So many members with the same work, each in a process; ended at the exit of the context."""

    def __init__(self, url: str, work: Work, count: int) -> None:
        self._environment = {**os.environ, "MESSAGING_URL": url}
        self._work, self._count = work, count
        self._processes: list[asyncio.subprocess.Process] = []
        self._handled: list[int] = []
        self._counting = 0
        self._told: list[Told] = []
        self._news = asyncio.Condition()
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "benchmarks.curves.member", json.dumps(asdict(self._work))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
            )
            self._processes.append(process)
            self._handled.append(-1)
            self._readers.append(asyncio.create_task(self._read(number, process)))
        await self._until(lambda: min(self._handled) >= 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*self._readers)
        for process in self._processes:
            await process.wait()

    async def handled(self, messages: int) -> float:
        """Wait until so many were handled; when that was told (`time.perf_counter`)."""
        await self._until(lambda: sum(self._handled) >= messages)
        return time.perf_counter()

    def all_handled(self) -> bool:
        """Whether each has told of a message: then it has joined."""
        return min(self._handled) > 0

    async def count(self) -> None:
        """What they take from now on is what they tell at their end; returns when each has begun to count."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            await process.stdin.drain()
        await self._until(lambda: self._counting == self._count)

    async def ended(self) -> list[Told]:
        """End them, each after what it has begun."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*self._readers)
        return self._told

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN), self._news:
            await self._news.wait_for(condition)

    async def _read(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            news = json.loads(line)
            async with self._news:
                if isinstance(news, int):
                    self._handled[number] = news
                elif news == COUNTS:
                    self._counting += 1
                else:
                    self._told.append(Told(**news))
                self._news.notify_all()


async def _member(work: Work) -> None:
    app, handled = App("bench", concurrency=work.concurrency, prefetch=work.prefetch), 0

    async def handle(_: Order) -> None:
        nonlocal handled
        handled += 1

    for name in work.topics:
        app.subscribe(Topic(name, Order, key=lambda order: order.customer, partitions=work.partitions))(
            handle
        )

    async def tell() -> None:
        while True:
            print(handled, flush=True)
            await asyncio.sleep(TOLD_EVERY)

    async with connect() as bus, app.running(bus), asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(tell())
        await asyncio.to_thread(sys.stdin.readline)
        before = time.process_time()
        print(json.dumps(COUNTS), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        seconds = time.process_time() - before
        telling.cancel()
    print(json.dumps(asdict(Told(handled, seconds, peak()))))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # libraries tell of every start and stop
    uvloop.run(_member(Work(**json.loads(sys.argv[1]))))
