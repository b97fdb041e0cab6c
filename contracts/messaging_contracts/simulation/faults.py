"""Which faults a simulated history has, and when: drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from messaging.clock import sleep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from messaging.clock import Clock
    from messaging_contracts.faults import Recorder

KINDS = (
    "publish_refused",
    "publish_uncertain",
    "publish_raises",
    "publish_partly",
    "publish_twice",
    "receive_fails",
    "settle_refused",
    "settle_unknown",
    "settle_partly",
    "extend_fails",
    "isolate_fails",
    "declare_fails",
    "cut",
    "lapse",
    "slow",
    "stuck",
    "store_fails",
    "store_unknown",
    "store_away",
)
"""Faults of single calls to the SPI; see `simulation.adapter` and `simulation.store`."""
BULK_KINDS = ("publish_refused", "publish_partly", "publish_uncertain", "publish_raises")
"""Those that leave calls of `publish_many` done in part."""
REQUEST_KINDS = ("reply_fails", "reply_refused", "reply_twice", "reply_unknown", "inbox_fails", "inbox_moves")
"""Faults of calls that only histories with requests make; see `simulation.inbox`."""
LETTER_KINDS = (
    "scan_fails",
    "redrive_fails",
    "redrive_partly",
    "redrive_unknown",
    "purge_fails",
    "purge_unknown",
    "groups_fail",
)
"""Faults of calls that only histories with an operator make; see `simulation.letters`."""
LATENCIES = (0.0, 0.0, 0.0, 0.001, 0.01, 0.05)


@dataclass(slots=True)
class Faults:
    """Draws, for one history. Nothing strikes once `calm` is set."""

    random: Random
    recorder: Recorder
    rates: dict[str, float] = field(default_factory=dict[str, float])
    lease: float = 10.0
    calm: bool = False
    upheaved_at: float = -inf
    """When the broker was last restarted, or is to be reached again."""
    under_way: int = 0
    """Calls that are on their way, there or back."""

    def strikes(self, kind: str) -> bool:
        """Whether this fault happens now."""
        rate = self.rates.get(kind)
        return rate is not None and not self.calm and self.random.random() < rate

    def some(self, number: int) -> Sequence[bool]:
        """Which of so many items are hit: at least one."""
        hit = [self.random.random() < 0.4 for _ in range(number)]
        if number:
            hit[self.random.randrange(number)] = True
        return hit

    def delay(self) -> float:
        """How long one way to the broker or the store takes; more than `LATENCIES` only where that is a fault."""
        delay = 0.0 if self.calm else self.random.choice(LATENCIES)
        if self.strikes("slow"):
            delay = self.random.uniform(0.1, self.lease / 8)
        if self.strikes("stuck"):
            delay = self.random.uniform(self.lease / 2, self.lease * 2)
        return delay

    async def pass_time(self, clock: Clock, delay: float) -> None:
        """Be on the way for so long."""
        if delay > 0:
            self.under_way += 1
            try:
                await sleep(clock, delay)
            finally:
                self.under_way -= 1


def drawn(random: Random) -> dict[str, float]:
    """Some kinds of faults, each with its rate: histories with few kinds find what others hide."""
    if random.random() < 0.1:
        return {}
    share = random.choice((0.15, 0.4, 0.8))
    return {kind: random.choice((0.01, 0.05, 0.2)) for kind in KINDS if random.random() < share}
