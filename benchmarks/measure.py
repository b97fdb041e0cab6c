"""One measurement: how fast, whether everything came, and how often twice."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


HANDLER = 0.01
"""Seconds that a handler takes where it waits for something."""


class Incomplete(Exception):
    """A contender did not do all of its work: its speed means nothing."""


@dataclass(slots=True)
class Measured:
    """What one round of one contender showed."""

    rate: float
    """Messages a second."""
    messages: int
    duplicates: int = 0
    latencies: list[float] = field(default_factory=list[float])
    """Seconds, where single calls were timed."""

    def latency(self, percent: int) -> float:
        return statistics.quantiles(self.latencies, n=100)[percent - 1]


class Tally:
    """Counts what was handled: each message once, and what came again.

    The clock runs over the middle half of the messages: connecting and joining a group cost nobody anything, and what
    was read ahead at its start is read ahead at its end as well.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.duplicates = 0
        self.all = asyncio.Event()
        self._seen = bytearray(expected)
        self._missing = expected
        self._quarter = expected // 4
        self._start = self._end = 0.0

    def handled(self, number: int) -> None:
        if self._seen[number]:
            self.duplicates += 1
            return
        self._seen[number] = 1
        self._missing -= 1
        if self._missing == self.expected - self._quarter:
            self._start = time.perf_counter()
        elif self._missing == self._quarter:
            self._end = time.perf_counter()
        elif not self._missing:
            self.all.set()

    async def measured(self, within: float = 60.0) -> Measured:
        """Wait until all were handled. Raises Incomplete with the number that is missing."""
        try:
            async with asyncio.timeout(within):
                await self.all.wait()
        except TimeoutError:
            raise Incomplete(f"{self._missing} of {self.expected} messages were not handled") from None
        return self.result()

    def result(self) -> Measured:
        if self._missing:
            raise Incomplete(f"{self._missing} of {self.expected} messages were not handled")
        timed = self.expected - 2 * self._quarter
        return Measured(timed / (self._end - self._start), self.expected, self.duplicates)


async def publishing(publish: Callable[[int], Awaitable[object]], messages: int, *, callers: int) -> Measured:
    """Call `publish` with each number, `callers` at a time; each call returns when its message is confirmed."""
    numbers = iter(range(messages))
    confirmed = 0

    async def caller() -> None:
        nonlocal confirmed
        for number in numbers:
            await publish(number)
            confirmed += 1

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    elapsed = time.perf_counter() - start
    if confirmed != messages:
        raise Incomplete(f"{messages - confirmed} of {messages} messages were not confirmed")
    return Measured(messages / elapsed, messages)


async def asking(ask: Callable[[int], Awaitable[int]], requests: int, *, callers: int = 1) -> Measured:
    """Each reply must be its request's."""
    latencies: list[float] = []

    async def once(number: int) -> None:
        start = time.perf_counter()
        reply = await ask(number)
        latencies.append(time.perf_counter() - start)
        if reply != number:
            raise Incomplete(f"request {number} got the reply to {reply}")

    measured = await publishing(once, requests, callers=callers)
    measured.latencies = latencies
    return measured


async def handling(messages: int) -> Measured:
    """One handler of 10 ms after the other: what a group without concurrency would reach at best."""
    start = time.perf_counter()
    for _ in range(messages):
        await asyncio.sleep(HANDLER)
    return Measured(messages / (time.perf_counter() - start), messages)


def peak() -> int:
    """Bytes that this process had at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
