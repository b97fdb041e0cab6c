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
    from messaging_contracts.faults.stage import Stage

PAUSE = 10.0
"""Seconds of peace between two faults."""
SAMPLES = 60
"""How often each process is measured; the run's length decides how far apart."""
MIB = 1024 * 1024


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


def soak(names: Sequence[str], seconds: float, folder: Path, show: Callable[[str], object]) -> bool:
    """Load these brokers at the same time; whether nothing grew and nothing was broken."""
    flat: list[bool] = []
    in_threads([partial(_one, name, seconds, folder, show, flat) for name in names], len(names))
    return all(flat)


def _one(name: str, seconds: float, folder: Path, show: Callable[[str], object], flat: list[bool]) -> None:
    own = folder / name / "soak"
    own.mkdir(parents=True)
    every = max(1.0, seconds / SAMPLES)
    scale = Scale(messages=100, publishers=10, processes=1, seconds=2.0)

    async def act(staged: Stage) -> None:
        await _load(staged, seconds, every)

    with ground(name) as here:
        row = asyncio.run(stage("soak", act, here, scale, own, seconds + 300))
    growths = growth(read(own))
    show("\n".join([told(row), *(_line(name, one) for one in growths)]))
    flat.append(row.held and bool(growths) and not any(one.grew for one in growths))


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


def _line(broker: str, one: Growth) -> str:
    return (
        f"  {broker} {one.process}: {one.what}: {one.early:.1f} early, {one.late:.1f} late, {one.peak:.1f} at most"
        f"{'  GREW' if one.grew else ''}"
    )
