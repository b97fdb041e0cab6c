"""One point of a curve. `python -m benchmarks.curves.point CURVE X MESSAGES` measures it and prints it as JSON: in a
process of its own, its memory and its time of the processor are its own. The broker's URL comes by the environment.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import uvloop

from benchmarks.curves.member import WITHIN, Members, Work
from benchmarks.measure import Measured, Moment, Tally, peak
from benchmarks.paths.ours import counting, fill
from benchmarks.payload import Order, fresh, order
from messaging import App, Topic, connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging import Bus


@dataclass(frozen=True, slots=True)
class Point:
    """What one point showed."""

    x: int
    rate: float
    """Messages a second."""
    cost: float
    """Seconds of the processor for a message, in the processes that handled it, once they are members."""
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
    """The messages are spread over so many topics, each with a handler of its own; published while it runs."""
    several = [
        Topic(fresh("topics"), Order, key=lambda order: order.customer, partitions=1) for _ in range(count)
    ]
    messages = max(messages, 10 * count)
    if url.startswith("memory:"):  # it ends at its process
        return await _published_beside(url, count, several, messages, concurrency=8)
    return await _published_meanwhile(url, count, several, messages, concurrency=8)


async def members(url: str, count: int, messages: int) -> Point:
    """So many processes are members of one group; another publishes meanwhile."""
    orders = Topic(fresh("members"), Order, key=lambda order: order.customer)
    return await _published_meanwhile(url, count, [orders], messages, concurrency=64, members=count)


async def _stored_first(
    url: str, x: int, several: list[Topic[Order]], messages: int, *, concurrency: int
) -> Point:
    each = messages // len(several)
    tally = Tally(each * len(several))
    app = App("bench", concurrency=concurrency, prefetch=_prefetch(several))
    for topic in several:
        counting(topic, tally, app)
    async with connect(url) as bus:
        await bus.declare(app)
        for number, topic in enumerate(several):
            await fill(bus, topic, each, order, first=number * each)
        async with app.running(bus):
            measured = await tally.measured(WITHIN)
        for topic in several:
            await bus.delete_group(topic, "bench")
        assert measured.cost is not None
        return Point(x, measured.rate, measured.cost, peak(), measured.duplicates)


async def _published_beside(
    url: str, x: int, several: list[Topic[Order]], messages: int, *, concurrency: int
) -> Point:
    """From the first publish until all is handled, in one process: the cost has that of publishing."""
    await _in_one_process(url, several, 10, concurrency)  # what only the first messages of a topic cost
    measured = await _in_one_process(url, several, messages // len(several), concurrency)
    assert measured.cost is not None
    return Point(x, measured.rate, measured.cost, peak(), measured.duplicates)


async def _in_one_process(url: str, several: list[Topic[Order]], each: int, concurrency: int) -> Measured:
    """So many messages of each topic."""
    tally = Tally(each * len(several))
    app = App("bench", concurrency=concurrency, prefetch=_prefetch(several))
    for topic in several:
        counting(topic, tally, app)
    async with connect(url) as bus, app.running(bus):
        gc.collect()
        gc.freeze()  # what the start of a program leaves
        begun = Moment.now()
        for number, topic in enumerate(several):
            await fill(bus, topic, each, order, first=number * each)
        await tally.measured(WITHIN)
        return begun.until(Moment.now(), tally.expected, handled=tally.expected, duplicates=tally.duplicates)


async def _published_meanwhile(
    url: str, x: int, several: list[Topic[Order]], messages: int, *, concurrency: int, members: int = 1
) -> Point:
    """From the first publish, once every member has joined, until all is handled; the cost of the members alone."""
    each = messages // len(several)
    work = Work(
        topics=[topic.name for topic in several],
        partitions=several[0].partitions,
        concurrency=concurrency,
        prefetch=_prefetch(several),
    )
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(url))
        for topic in several:
            await bus.declare(topic, groups=["bench"])
        running = await stack.enter_async_context(Members(url, work, members))
        warmed_up = await _warm_up(bus, several, running, members)
        await running.count()
        begun = time.perf_counter()
        for topic in several:
            await fill(bus, topic, each, order)
        published = each * len(several)
        elapsed = await running.handled(warmed_up + published) - begun
        told = await running.ended()
        for topic in several:
            await bus.delete_group(topic, "bench")
    duplicates = sum(one.handled for one in told) - warmed_up - published
    cost = sum(one.seconds for one in told) / published
    return Point(x, published / elapsed, cost, max(one.memory for one in told), duplicates)


async def _warm_up(bus: Bus, several: Sequence[Topic[Order]], running: Members, each: int) -> int:
    """How many messages were handled until every member had one: its connections are made, its partitions dealt."""
    messages = 0
    async with asyncio.timeout(WITHIN):
        while not running.all_handled():
            for topic in several:
                # Other keys each time, for other partitions.
                await fill(bus, topic, each, order, first=messages)
            messages += each * len(several)
            await running.handled(messages)
    return messages


def _prefetch(several: Sequence[Topic[Order]]) -> int:
    """Of each: many have as much in memory as sixteen."""
    return 1024 // min(16, len(several))


RUNS: dict[str, Run] = {"members": members, "topics": topics, "keys": keys, "backlog": backlog}

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # libraries tell of every start and stop
    name, x, messages = sys.argv[1:]
    print(json.dumps(asdict(uvloop.run(RUNS[name](os.environ["MESSAGING_URL"], int(x), int(messages))))))
