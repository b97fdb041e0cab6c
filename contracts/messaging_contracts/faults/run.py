"""Every fault on every broker to which it applies, two brokers at a time, within a bound."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from messaging_contracts.brokers import BrokerUnavailable
from messaging_contracts.faults.grounds import ours
from messaging_contracts.faults.history import now
from messaging_contracts.faults.report import not_tried, told
from messaging_contracts.faults.scenarios import faults
from messaging_contracts.faults.stage import QUICK, WHOLE, Row, Scale, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from messaging_contracts.faults.ground import Ground
    from messaging_contracts.faults.scenarios import Fault

AT_A_TIME = 2
LIMIT = 240.0
"""Seconds after which one fault is given up."""
LIMIT_WHOLE = 420.0
ROW = "row.json"


@dataclass(slots=True)
class Run:
    """What is tried, where its histories go, and when nothing more is begun."""

    wanted: Collection[str]
    """Names of brokers, of faults, or both; empty: all."""
    whole: bool
    """Whether faults that ask for it get ten thousand messages."""
    folder: Path
    show: Callable[[str], object]
    seconds: float
    """After which no other fault is begun; what is left is told as not tried, and so as not held."""
    grounds: Sequence[Ground] = field(default_factory=ours)
    """The brokers, not started."""
    _rows: list[Row] = field(default_factory=list[Row])
    _lock: Lock = field(default_factory=Lock)

    def all(self) -> Sequence[Row]:
        """Try them. Raises ValueError for a name that is none."""
        known = {*self._names, *(one.name for one in faults())}
        if unknown := sorted(set(self.wanted) - known):
            raise ValueError(f"{', '.join(unknown)}: neither a broker nor a fault")
        end = now() + self.seconds
        in_threads([partial(self._series, one, end) for one in self.grounds], AT_A_TIME)
        return self._rows

    @property
    def _names(self) -> set[str]:
        return {one.name for one in self.grounds}

    def _wants(self, one: Fault, where: Ground) -> bool:
        brokers = set(self.wanted) & self._names
        names = set(self.wanted) - brokers
        asked = (not brokers or where.name in brokers) and (not names or one.name in names)
        return asked and one.applies_to(where)

    def _series(self, where: Ground, end: float) -> None:
        """Try these on one broker, one after the other; it is started anew after a fault that did not hold."""
        runs = False
        with ExitStack() as stack:
            for one in faults():
                if not self._wants(one, where):
                    continue
                if now() > end:
                    self._add(not_tried(one, where.name, "the run's time was over"))
                    continue
                try:
                    if not runs:
                        stack.enter_context(where)
                        runs = True
                    row = try_one(one, where, WHOLE if one.whole and self.whole else QUICK, self.folder)
                except BrokerUnavailable as error:
                    row = not_tried(one, where.name, str(error))
                self._add(row)
                if not row.held:
                    runs = False
                    stack.close()

    def _add(self, row: Row) -> None:
        file = self.folder / row.broker / row.fault / ROW
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(row)), encoding="utf-8")
        with self._lock:
            self._rows.append(row)
            self.show(told(row))


def kept(folder: Path, grounds: Sequence[Ground]) -> list[Row]:
    """The last row of each fault on each broker that a run left in this folder, in the order of the faults."""
    found: list[Row] = []
    for where in grounds:
        for one in faults():
            file = folder / where.name / one.name / ROW
            if one.applies_to(where) and file.exists():
                fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                fields["violations"] = tuple(fields["violations"])
                found.append(Row(**fields))
    return found


def in_threads(calls: Sequence[Callable[[], object]], at_a_time: int) -> None:
    """Make these calls, so many at a time. Raises what the first one raised; Ctrl-C and SIGTERM end it at once."""
    left = deque(calls)
    failed: list[BaseException] = []

    def work() -> None:
        while left and not failed:
            try:
                left.popleft()()
            except BaseException as error:  # raised in the main thread
                failed.append(error)

    # Daemons: a pool's threads would be waited for, whatever ends the main one.
    threads = [Thread(target=work, daemon=True) for _ in range(min(at_a_time, len(calls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def try_one(one: Fault, here: Ground, scale: Scale, folder: Path) -> Row:
    """Try one fault; its history is kept in a folder of its own below this one."""
    own = folder / here.name / one.name
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    limit = LIMIT_WHOLE if scale is WHOLE else LIMIT
    return asyncio.run(stage(one.name, one.act, here, scale, own, limit))
