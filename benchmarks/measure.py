"""One measurement: how fast, whether everything came, and how often twice."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
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
    cost: float | None = None
    """Seconds of the processor that this process took for a message, where that was looked at."""
    beside: float | None = None
    """The same of all others on this machine: the broker's, where nothing else goes on."""

    def latency(self, percent: int) -> float:
        return statistics.quantiles(self.latencies, n=100)[percent - 1]


@dataclass(frozen=True, slots=True)
class Moment:
    """The clock, and the processor's time that was taken until then: by this process, by the whole machine."""

    clock: float
    own: float
    all: float | None

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time(), _taken())

    def until(self, end: Moment, messages: int, *, handled: int, duplicates: int = 0) -> Measured:
        """What so many messages took from here to `end`, in a round of `handled`."""
        own = end.own - self.own
        beside = None if self.all is None or end.all is None else max(0.0, end.all - self.all - own)
        return Measured(
            messages / (end.clock - self.clock),
            handled,
            duplicates,
            cost=own / messages,
            beside=None if beside is None else beside / messages,
        )


def _taken() -> float | None:
    """Seconds of the processor that this machine has spent on anything; None where it does not tell."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft = (int(ticks) for ticks in line.split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


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
        self._start = self._end = Moment(0.0, 0.0, None)

    def handled(self, number: int) -> None:
        if self._seen[number]:
            self.duplicates += 1
            return
        self._seen[number] = 1
        self._missing -= 1
        if self._missing == self.expected - self._quarter:
            self._start = Moment.now()
        elif self._missing == self._quarter:
            self._end = Moment.now()
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
        return self._start.until(self._end, timed, handled=self.expected, duplicates=self.duplicates)


async def publishing(publish: Callable[[int], Awaitable[object]], messages: int, *, callers: int) -> Measured:
    """Call `publish` with each number, `callers` at a time; each call returns when its message is confirmed."""
    numbers = iter(range(messages))
    confirmed = 0

    async def caller() -> None:
        nonlocal confirmed
        for number in numbers:
            await publish(number)
            confirmed += 1

    start = Moment.now()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    end = Moment.now()
    if confirmed != messages:
        raise Incomplete(f"{messages - confirmed} of {messages} messages were not confirmed")
    return start.until(end, messages, handled=messages)


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


def idle(samples: int = 3) -> float | None:
    """Cores that are busy while this process waits: what others do that has nothing to do with a message."""
    found: list[float] = []
    for _ in range(samples):
        start = Moment.now()
        time.sleep(1)
        waited = start.until(Moment.now(), 1, handled=1)
        if waited.beside is None:
            return None
        found.append(waited.beside * waited.rate)
    return min(found)


def peak() -> int:
    """Bytes that this process had at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
