"""Members of a group in processes of their own. `python -m benchmarks.curves.member TOPIC` is one: it ends when its
input does. Its broker's URL comes by the environment, where others do not read its credentials.
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
    from collections.abc import Callable
    from types import TracebackType

TOLD_EVERY = 0.05
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a member says of itself at its end."""

    handled: int
    seconds: float
    """Of the processor, since it was ready."""
    memory: int
    """Bytes at the peak."""


class Members:
    """So many members of one topic's group, each in a process; ended at the exit of the context."""

    def __init__(self, url: str, topic: str, count: int) -> None:
        self._environment = {**os.environ, "MESSAGING_URL": url}
        self._topic, self._count = topic, count
        self._processes: list[asyncio.subprocess.Process] = []
        self._handled: list[int] = []
        self._told: list[Told] = []
        self._news = asyncio.Condition()
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number in range(self._count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "benchmarks.curves.member", self._topic),
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

    async def ended(self) -> list[Told]:
        """End them, each after what it has begun."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*self._readers)
        return self._told

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(300), self._news:
            await self._news.wait_for(condition)

    async def _read(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            news = json.loads(line)
            async with self._news:
                if isinstance(news, int):
                    self._handled[number] = news
                else:
                    self._told.append(Told(**news))
                self._news.notify_all()


async def _member(topic: str) -> None:
    orders, handled = Topic(topic, Order, key=lambda order: order.customer), 0
    app = App("bench", concurrency=64, prefetch=1024)

    @app.subscribe(orders)
    async def handle(_: Order) -> None:
        nonlocal handled
        handled += 1

    async def tell() -> None:
        while True:
            print(handled, flush=True)
            await asyncio.sleep(TOLD_EVERY)

    async with connect() as bus, app.running(bus), asyncio.TaskGroup() as tasks:
        before, telling = time.process_time(), tasks.create_task(tell())
        await asyncio.to_thread(sys.stdin.read)
        telling.cancel()
    print(json.dumps(asdict(Told(handled, time.process_time() - before, peak()))))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # libraries tell of every start and stop
    uvloop.run(_member(sys.argv[1]))
