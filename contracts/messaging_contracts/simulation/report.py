"""Many seeds in a row, and what an author needs to replay the ones that failed."""

from __future__ import annotations

import time
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

from messaging_contracts.faults.history import line
from messaging_contracts.simulation.world import Result, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SHOWN = 5
"""Failing seeds that are shown whole."""


def told(result: Result) -> str:
    """A failing history in words: its seed, what was found, what was drawn."""
    lines = [f"seed {result.seed}: {result.scenario}", *(f"  problem: {text}" for text in result.problems)]
    for kind, found in result.verdict.violations.items():
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


def many(first: int, number: int | None, seconds: float | None, show: Callable[[str], object]) -> int:
    """Run seeds from `first` on, so many, or for so long, and show the figures; 1 where one failed."""
    seeds: Iterable[int] = count(first) if number is None else range(first, first + number)
    start, virtual = time.monotonic(), 0.0
    totals: Counter[str] = Counter()
    failed: list[int] = []
    for seed in seeds:
        result = simulate(seed)
        virtual += result.seconds
        totals.update(
            histories=1,
            messages=result.verdict.messages,
            handlings=result.verdict.handlings,
            duplicates=result.verdict.duplicates,
        )
        if not result.held:
            failed.append(seed)
            if len(failed) <= SHOWN:
                show(told(result))
        if seconds is not None and time.monotonic() - start >= seconds:
            break
    took = time.monotonic() - start
    figures = ", ".join(f"{number} {name}" for name, number in totals.items())
    show(f"{figures}; {virtual / 3600:.1f} virtual hours in {took:.1f} s; {len(failed)} failed")
    for seed in failed[:SHOWN]:
        show(f"replay: python -m messaging_contracts simulate --seed {seed}")
    return 1 if failed else 0
