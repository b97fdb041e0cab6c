"""What the guard counts: `python -m benchmarks.guard.workload FEW MANY` does the work of few and of many messages.

Each piece of work is between two marks, at which callgrind begins a new count.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.measure import Measured, publishing
from benchmarks.paths import memory, ours
from benchmarks.payload import order
from messaging import connect


async def one_by_one(url: str, messages: int) -> Measured:
    """Each publish awaited before the next."""
    topic = ours.topic()
    async with connect(url) as bus:
        await bus.declare(topic, groups=["bench"])
        return await publishing(lambda number: bus.publish(topic, order(number)), messages, callers=1)


async def at_once(url: str, messages: int) -> Measured:
    """256 callers publish at once."""
    topic = ours.topic()
    async with connect(url) as bus:
        await bus.declare(topic, groups=["bench"])
        return await publishing(lambda number: bus.publish(topic, order(number)), messages, callers=256)


REFERENCE = "by hand"
WORKLOADS: dict[str, Callable[[str, int], Awaitable[Measured]]] = {
    REFERENCE: memory.by_hand,
    "through memory": ours.through,
    "publish one by one": one_by_one,
    "publish at once": at_once,
}


def work(name: str, messages: int) -> float:
    """Seconds of the processor that the work took."""

    async def run() -> None:
        await WORKLOADS[name]("memory://", messages)

    logging.disable(logging.WARNING)
    gc.collect()
    gc.freeze()
    start = time.process_time()
    asyncio.run(run())
    return time.process_time() - start


def mark() -> None:
    """A call of a C function that nothing else here calls: see `MARK` of the guard."""
    sys.setrecursionlimit(sys.getrecursionlimit())


if __name__ == "__main__":
    few, many = map(int, sys.argv[1:])
    for workload in WORKLOADS:
        work(workload, few)  # what only the first message costs
    for workload in WORKLOADS:
        for messages in (few, many):
            mark()
            work(workload, messages)
    mark()
