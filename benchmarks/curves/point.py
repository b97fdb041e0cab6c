"""One point of a curve. `python -m benchmarks.curves.point CURVE X MESSAGES` measures it and prints it as JSON: in a
process of its own, its memory and its time of the processor are its own. The broker's URL comes by the environment.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import uvloop

from benchmarks.curves.member import Members
from benchmarks.measure import Tally, peak
from benchmarks.paths.ours import counting, fill
from benchmarks.payload import Order, fresh
from messaging import App, Topic, connect

WITHIN = 300.0
"""Seconds for all messages of a point."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one point showed."""

    x: int
    rate: float
    """Messages a second."""
    cost: float
    """Seconds of the processor for a message, in the processes that handled it."""
    memory: int
    """Bytes at the peak, of the largest of these processes."""
    duplicates: int


Run: TypeAlias = Callable[[str, int, int], Coroutine[Any, Any, Point]]
"""The broker's URL, the place on the axis, the number of messages."""


async def keys(url: str, count: int, messages: int) -> Point:
    """An ordered group of 8 partitions whose messages have so many keys."""
    orders = Topic(fresh("keys"), Order, key=lambda order: f"k{order.number % count}", ordered=True)
    return await _stored_first(url, count, [orders], messages, concurrency=64)


async def backlog(url: str, count: int, _: int) -> Point:
    """So many messages wait when the group begins."""
    return await _stored_first(url, count, [Topic(fresh("backlog"), Order)], count, concurrency=64)


async def topics(url: str, count: int, messages: int) -> Point:
    """The messages are spread over so many topics, each with a handler of its own."""
    several = [Topic(fresh("topics"), Order, partitions=1) for _ in range(count)]
    return await _stored_first(url, count, several, max(messages, 10 * count), concurrency=8)


async def _stored_first(
    url: str, x: int, several: list[Topic[Order]], messages: int, *, concurrency: int
) -> Point:
    each = messages // len(several)
    tally = Tally(each * len(several))
    app = App("bench", concurrency=concurrency, prefetch=1024 // min(16, len(several)))
    for topic in several:
        counting(topic, tally, app)
    async with connect(url) as bus:
        await bus.declare(app)
        for number, topic in enumerate(several):
            await fill(bus, topic, each, first=number * each)
        before = time.process_time()
        async with app.running(bus):
            measured = await tally.measured(WITHIN)
            cost = (time.process_time() - before) / messages
        for topic in several:
            await bus.delete_group(topic, "bench")
        return Point(x, measured.rate, cost, peak(), measured.duplicates)


async def members(url: str, count: int, messages: int) -> Point:
    """So many processes are members of one group; another publishes meanwhile."""
    orders = Topic(fresh("members"), Order, key=lambda order: order.customer)
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url))
        await bus.declare(orders, groups=["bench"])
        running = await stack.enter_async_context(Members(url, orders.name, count))
        begun = time.perf_counter()
        await fill(bus, orders, messages)
        async with asyncio.timeout(WITHIN):
            elapsed = await running.handled(messages) - begun
        told = await running.ended()
        await bus.delete_group(orders, "bench")
    total = sum(one.handled for one in told)
    cost = sum(one.seconds for one in told) / total
    return Point(count, messages / elapsed, cost, max(one.memory for one in told), total - messages)


RUNS: dict[str, Run] = {"members": members, "topics": topics, "keys": keys, "backlog": backlog}

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # libraries tell of every start and stop
    name, x, messages = sys.argv[1:]
    print(json.dumps(asdict(uvloop.run(RUNS[name](os.environ["MESSAGING_URL"], int(x), int(messages))))))
