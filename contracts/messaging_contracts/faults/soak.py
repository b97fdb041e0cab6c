"""Minutes of load with faults: what each process takes must not grow, and every promise must hold as ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from messaging_contracts.faults.grounds import ground
from messaging_contracts.faults.history import Measured, now, read
from messaging_contracts.faults.report import told
from messaging_contracts.faults.run import in_threads
from messaging_contracts.faults.stage import Scale, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from messaging_contracts.faults.history import Event
    from messaging_contracts.faults.stage import Row, Stage

PAUSE = 10.0
"""Seconds of peace between two faults."""
SAMPLES = 60
"""How often each process is measured; the run's length decides how far apart."""
MIB = 1024 * 1024
HEAD = """
# Soak

Written by `make soak`: {minutes:.0f} minutes of load, the brokers at the same time on one machine. The connections of
one of two members and of the publishers are closed, cut for 2 s, or go silent for a lease, in turns, {pause:g} s apart;
every tenth message fails at first. Each process is measured {samples} times: *early* is the median of the second
quarter, *late* of the last; what is more at the end, beyond a tenth and what comes and goes, has grown.
"""


@dataclass(frozen=True, slots=True)
class Growth:
    """What one process took: at its peak, in the second quarter of its life, and in the last."""

    process: str
    what: str
    peak: float
    early: float
    late: float
    allowed: float

    @property
    def grew(self) -> bool:
        """Whether it took more at the end, beyond what comes and goes."""
        return self.late > self.early + self.allowed


@dataclass(frozen=True, slots=True)
class Soaked:
    """What was seen on one broker."""

    row: Row
    growths: Sequence[Growth]

    @property
    def flat(self) -> bool:
        """Whether nothing grew and nothing was broken."""
        return self.row.held and bool(self.growths) and not any(one.grew for one in self.growths)


def soak(
    names: Sequence[str], seconds: float, folder: Path, show: Callable[[str], object]
) -> Sequence[Soaked]:
    """Load these brokers at the same time."""
    found: dict[str, Soaked] = {}
    in_threads([partial(_one, name, seconds, folder, show, found) for name in names], len(names))
    return [found[name] for name in names]


def _one(
    name: str, seconds: float, folder: Path, show: Callable[[str], object], found: dict[str, Soaked]
) -> None:
    own = folder / name / "soak"
    own.mkdir(parents=True)
    every = max(1.0, seconds / SAMPLES)
    scale = Scale(messages=100, publishers=10, processes=1, seconds=2.0)

    async def act(staged: Stage) -> None:
        await _load(staged, seconds, every)

    with ground(name) as here:
        row = asyncio.run(stage("soak", act, here, scale, own, seconds + 300))
    found[name] = Soaked(row, growth(read(own)))
    show("\n".join([told(row), *(_line(name, one) for one in found[name].growths)]))


async def _load(staged: Stage, seconds: float, every: float) -> None:
    """One member and the publisher behind a proxy that fails in turns, another member that is spared."""
    arena = staged.arena
    proxy = await arena.proxied()
    url = arena.through(proxy)
    struck = await arena.start("member-1", url=url, failing=10, measure=every)
    await arena.start("member-2", failing=10, measure=every)
    await staged.publish(url=url, measure=every)
    end = now() + seconds
    turn = 0
    while now() + PAUSE < end:
        await asyncio.sleep(PAUSE)
        since = now()
        if turn % 3 == 0:
            await proxy.close_connections()
        elif turn % 3 == 1:
            await proxy.cut()
            await asyncio.sleep(2)
        else:
            proxy.black_hole()
            await asyncio.sleep(staged.lease)
        proxy.heal()
        arena.struck(("closed", "cut", "black hole")[turn % 3], since, struck)
        turn += 1
    await asyncio.sleep(max(0.0, end - now()))


def growth(events: Sequence[Event]) -> Sequence[Growth]:
    """What each process that was measured took. Nothing of one that was measured less than eight times."""
    found: list[Growth] = []
    measured = [event for event in events if isinstance(event, Measured)]
    for name in dict.fromkeys(event.member for event in measured):
        mine = [event for event in measured if event.member == name]
        if len(mine) < 8:
            continue
        for what, values, share, fixed in (
            ("memory, MiB", [event.memory / MIB for event in mine], 0.1, 2.0),
            ("tasks", [float(event.tasks) for event in mine], 0.1, 5.0),
            ("file descriptors", [float(event.files) for event in mine], 0.1, 5.0),
        ):
            quarter = len(values) // 4
            early, late = median(values[quarter : 2 * quarter]), median(values[-quarter:])
            found.append(Growth(name, what, max(values), early, late, fixed + share * early))
    return found


def page(found: Sequence[Soaked], seconds: float) -> str:
    """The page of the documentation."""
    lines = [
        HEAD.format(minutes=seconds / 60, pause=PAUSE, samples=SAMPLES).strip(),
        "",
        "| broker | held | confirmed | lost | disorder | duplicates | recovery |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.broker} {row.version} | {'yes' if row.held else '**no**'} | {row.confirmed} | {row.lost} "
        f"| {row.disorder} | {row.duplicates} of at most {row.most_duplicates} "
        f"| {'-' if row.recovery is None else f'{row.recovery:.1f} s'} |"
        for row in (one.row for one in found)
    ]
    lines += [
        "",
        "| broker | process | what | early | late | peak | grew |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {soaked.row.broker} | {one.process} | {one.what} | {one.early:.1f} | {one.late:.1f} | {one.peak:.1f} "
        f"| {'**yes**' if one.grew else 'no'} |"
        for soaked in found
        for one in soaked.growths
    ]
    return "\n".join([*lines, ""])


def _line(broker: str, one: Growth) -> str:
    return (
        f"  {broker} {one.process}: {one.what}: {one.early:.1f} early, {one.late:.1f} late, {one.peak:.1f} at most"
        f"{'  GREW' if one.grew else ''}"
    )
