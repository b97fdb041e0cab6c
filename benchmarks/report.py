"""The table: medians, ratios, targets, duplicates, versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path as File
from typing import TYPE_CHECKING

from benchmarks.path import OURS
from benchmarks.payload import SIZE
from benchmarks.run import ratio, reaches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.path import Path
    from benchmarks.run import Result

LIBRARIES = (
    "messaging-ports",
    "pydantic",
    "uvloop",
    "redis",
    "hiredis",
    "aio-pika",
    "aiormq",
    "aiokafka",
    "boto3",
    "faststream",
    "taskiq",
    "taskiq-redis",
    "kombu",
)


def write(
    results: Mapping[Path, Sequence[Result]],
    *,
    brokers: Mapping[str, str],
    rounds: int,
    seconds: float,
    loop: str,
) -> str:
    """The page, as Markdown."""
    sections = [_head(rounds, seconds, loop)]
    sections += [_section(path, found) for path, found in results.items()]
    return "\n".join([*sections, _versions(brokers)])


def figures(
    results: Mapping[Path, Sequence[Result]], *, brokers: Mapping[str, str], loop: str, idle: float | None
) -> str:
    """What was measured, as JSON for other programs: rates a second, times in microseconds, idle in cores."""
    told = {
        "written": f"{datetime.now(UTC):%Y-%m-%d}",
        "size": SIZE,
        "loop": loop,
        "processor": processor(),
        "idle": None if idle is None else round(idle, 3),
        "brokers": dict(brokers),
        "paths": {
            path.name: {
                result.contender.name: _figures(path, result)
                for result in found
                if not result.failure and result.rounds
            }
            for path, found in results.items()
        },
    }
    return json.dumps(told, indent=2) + "\n"


def _figures(path: Path, result: Result) -> dict[str, float]:
    found: dict[str, float | None] = {
        "rate": result.rate,
        "messages": min(one.messages for one in result.rounds),
        "duplicates": result.duplicates,
    }
    if path.latency:
        found |= {"p50": result.latency(50) * 1e6, "p99": result.latency(99) * 1e6}
    for name, seconds in (("cost", result.cost), ("beside", result.beside)):
        found[name] = None if seconds is None else seconds * 1e6
    return {name: round(figure, 1) for name, figure in found.items() if figure is not None}


def _head(rounds: int, seconds: float, loop: str) -> str:
    when, where = f"{datetime.now(UTC):%Y-%m-%d}", processor()
    size = f"{SIZE // 1024} KiB" if SIZE >= 1024 else f"{SIZE} bytes"
    return f"""# Benchmarks

Written by `make bench` or `make bench-full` on {when}: {rounds} rounds in {seconds / 60:.0f} minutes, contenders in
turn within each round, medians of the rounds. Messages are {size} of JSON; durable, confirmed, acknowledged after the
handler; {loop}; one process on {where}, brokers on the same machine. The library runs with its default middleware and a
typed payload, and once more with bytes where a raw client does; peers with a typed payload where they have one.
Consumption is timed over the middle half of the messages, and every message must be handled. *Ratio* is the library's
speed in parts of that contender's: with bytes where it has bytes, and the typed one's beside it; for latencies, the
library's median latency in parts of that contender's.
"""


def _section(path: Path, results: Sequence[Result]) -> str:
    lines = [f"## {path.name}", "", f"{path.what[0].upper()}{path.what[1:]}.", ""]
    unit = "p50, ms | p99, ms" if path.latency else "messages/s | lowest to highest"
    lines += [
        f"| contender | {unit} | ratio | to reach | reached | duplicates |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    lines += [_line(path, results, result) for result in results]
    if path.limit:
        lines += ["", f"What limits it: {path.limit}."]
    return "\n".join([*lines, ""])


def _line(path: Path, results: Sequence[Result], result: Result) -> str:
    contender = result.contender
    if result.failure or not result.rounds:
        return f"| {contender.name} | failed: {result.failure} | | | | | |"
    if path.latency:
        figures = f"{result.latency(50) * 1000:.2f} | {result.latency(99) * 1000:.2f}"
    else:
        low, high = result.spread
        figures = f"{result.rate:,.0f} | {low:,.0f} to {high:,.0f}"
    found, goal, reached = "", "", ""
    if contender.name != OURS:
        found = f"{ratio(path, results, result):.2f}"
        if contender.like != OURS:
            found += f" (typed {ratio(path, results, result, OURS):.2f})"
        if contender.target is not None:
            goal = f"{'≤' if path.latency else '≥'} {contender.target:.3g}"
            reached = "yes" if reaches(path, results, result) else "no"
    elif path.rate is not None:
        goal = f"≥ {path.rate:,.0f}/s"
        reached = "yes" if result.rate >= path.rate else "no"
    return f"| {contender.name} | {figures} | {found} | {goal} | {reached} | {result.duplicates} |"


def _versions(brokers: Mapping[str, str]) -> str:
    known = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(
        [
            "## Versions",
            "",
            ", ".join(f"{name} {version}" for name, version in {**brokers, **known}.items()) + ".",
            "",
        ]
    )


def processor() -> str:
    """The cores of this machine, and what they are."""
    found = platform.processor() or platform.machine()
    cpuinfo = File("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                found = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} cores of {found}"
