"""Many seeds in a row, and what an author needs to replay the ones that failed."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from typing import TYPE_CHECKING

from messaging_contracts.faults.history import line
from messaging_contracts.simulation.world import Result, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = 5
"""Failing seeds that are shown whole."""


def told(result: Result) -> str:
    """A failing history in words: its seed, what was found, what was drawn."""
    lines = [f"seed {result.seed}: {result.scenario}", *(f"  problem: {text}" for text in result.problems)]
    for kind, found in result.violations.items():
        lines += [f"  {kind.replace('_', ' ')}: {text}" for text in found]
    return "\n".join(lines)


def replay(seed: int, show: Callable[[str], object]) -> int:
    """Show one history, event by event, and its verdict; 1 where it failed."""
    result = simulate(seed)
    for event in result.events:
        show(line(event).decode().rstrip())
    show(told(result))
    show("held" if result.held else "failed")
    return 0 if result.held else 1


@dataclass(slots=True)
class Tally:
    """What some seeds came to."""

    totals: Counter[str] = field(default_factory=Counter[str])
    virtual: float = 0.0
    """Virtual seconds that passed."""
    failed: dict[int, str] = field(default_factory=dict[int, str])
    """What is told of each seed that failed."""

    def add(self, result: Result) -> None:
        """Count this history."""
        verdict = result.verdict
        self.virtual += result.seconds
        self.totals.update(
            histories=1,
            messages=verdict.messages,
            handlings=verdict.handlings,
            duplicates=verdict.duplicates,
            requests=result.requests.requests,
        )
        if not result.held:
            self.failed[result.seed] = told(result)

    def merge(self, other: Tally) -> None:
        """Count what another process counted."""
        self.totals.update(other.totals)
        self.virtual += other.virtual
        self.failed |= other.failed


def many(
    first: int, number: int | None, seconds: float | None, show: Callable[[str], object], processes: int = 1
) -> int:
    """Run seeds from `first` on, so many, or for so long, and show the figures; 1 where one failed."""
    start = time.monotonic()
    end = None if number is None else first + number
    shares = [(first + own, end, processes, seconds) for own in range(processes)]
    tally = Tally()
    if processes == 1:
        tally.merge(_share(*shares[0]))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            for part in pool.map(_share, *zip(*shares, strict=True)):
                tally.merge(part)
    took = time.monotonic() - start
    failed = sorted(tally.failed)
    for seed in failed[:SHOWN]:
        show(tally.failed[seed])
    figures = ", ".join(f"{number} {name}" for name, number in tally.totals.items())
    show(
        f"{figures}; {tally.virtual / 3600:.1f} virtual hours in {took:.1f} s, "
        f"{tally.totals['histories'] / took * 60:.0f} histories a minute; {len(failed)} failed"
    )
    for seed in failed[:SHOWN]:
        show(f"replay: python -m messaging_contracts simulate --seed {seed}")
    return 1 if failed else 0


def _share(first: int, end: int | None, step: int, seconds: float | None) -> Tally:
    """One process's part: each `step`th seed from its own first on."""
    start = time.monotonic()
    tally = Tally()
    for seed in count(first, step):
        if end is not None and seed >= end:
            break
        tally.add(simulate(seed))
        if seconds is not None and time.monotonic() - start >= seconds:
            break
    return tally
