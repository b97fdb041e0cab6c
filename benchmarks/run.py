"""Rounds: every contender of a path takes its turn in each, so that what else the machine does hits all alike."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.path import BYTES, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measure import Measured
    from benchmarks.path import Contender, Path

LONGEST_ROUND = 90.0
"""Seconds after which a contender has failed."""

LEAST = 0.1
"""Of a path's messages, a round has so many at least."""

Loop: TypeAlias = Callable[[Coroutine[Any, Any, "Measured"]], "Measured"]


@dataclass(slots=True)
class Result:
    """What all rounds of one contender showed."""

    contender: Contender
    rounds: list[Measured] = field(default_factory=list["Measured"])
    failure: str = ""

    @property
    def rate(self) -> float:
        return statistics.median(one.rate for one in self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        rates = [one.rate for one in self.rounds]
        return min(rates), max(rates)

    @property
    def duplicates(self) -> int:
        return sum(one.duplicates for one in self.rounds)

    def latency(self, percent: int) -> float:
        return statistics.median(one.latency(percent) for one in self.rounds)

    @property
    def cost(self) -> float | None:
        """See `Measured.cost`."""
        return _median([one.cost for one in self.rounds])

    @property
    def beside(self) -> float | None:
        """See `Measured.beside`."""
        return _median([one.beside for one in self.rounds])


def _median(found: Sequence[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return statistics.median(known) if known else None


def run(path: Path, url: str, *, rounds: int, scale: float, loop: Loop, until: float) -> list[Result]:
    """Measure all contenders of a path. The first round, a fifth of the others, warms up and is not counted.

    So that all rounds end about `until` (monotonic seconds), each has as many messages as those before it allow, a
    tenth of what it should have at least.
    """
    results = [Result(contender) for contender in path.contenders]
    now = scale / 5
    for number in range(rounds + 1):
        begun = time.monotonic()
        for result in results:
            if not result.failure:
                _round(path, url, result, scale=now, loop=loop, counted=number > 0)
        if left := rounds - number:
            end = time.monotonic()
            now *= (until - end) / left / (end - begun)
            now = min(scale, max(LEAST * scale, now))
    return results


def _round(path: Path, url: str, result: Result, *, scale: float, loop: Loop, counted: bool) -> None:
    contender = result.contender
    messages = path.messages * scale
    if counted:
        messages = max(messages, path.least)
    messages = max(10, int(messages * contender.share) // 10 * 10)
    # What the imports left is nobody's: a service that cares does the same after its start.
    gc.collect()
    gc.freeze()
    try:
        measured = loop(_bounded(contender, url, messages))
    except Exception as error:
        if contender.name in {OURS, BYTES}:
            raise
        result.failure = _told(error)
    else:
        if counted:
            result.rounds.append(measured)


async def _bounded(contender: Contender, url: str, messages: int) -> Measured:
    async with asyncio.timeout(LONGEST_ROUND):
        return await contender.run(url, messages)


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def ratio(path: Path, results: Sequence[Result], other: Result, like: str | None = None) -> float:
    """The library's rate in parts of the other's; for latencies, the library's p50 in parts of the other's.

    The library's row is the one that is like the other, or the one that is named.
    """
    ours = row(results, like or other.contender.like)
    return ours.latency(50) / other.latency(50) if path.latency else ours.rate / other.rate


def row(results: Sequence[Result], name: str) -> Result:
    """What this contender showed."""
    (found,) = (result for result in results if result.contender.name == name)
    return found


def reaches(path: Path, results: Sequence[Result], other: Result) -> bool:
    """Whether the target against this contender is reached; there must be one."""
    target, found = other.contender.target or 0.0, ratio(path, results, other)
    return found <= target if path.latency else found >= target


def misses(path: Path, results: Sequence[Result]) -> list[str]:
    """The targets that were not reached, one a line."""
    missed: list[str] = []
    if path.rate is not None and (rate := row(results, OURS).rate) < path.rate:
        missed.append(f"{path.name}: {rate:,.0f}/s of {path.rate:,.0f}/s")
    for other in results:
        target = other.contender.target
        if target is None or other.failure:
            continue
        if not reaches(path, results, other):
            missed.append(
                f"{path.name}: {ratio(path, results, other):.2f} x {other.contender.name} instead of "
                f"{'<=' if path.latency else '>='} {target:.3g}"
            )
    return missed
