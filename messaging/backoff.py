"""Growing waits with jitter, up to a bound, between attempts to reach a broker again (semantics 25)."""

from __future__ import annotations

import random

FIRST = 0.05
LONGEST = 5.0
LEFT_ALONE = 2.0
"""Seconds for which what somebody deleted is left alone, before it is made anew: other members and publishers notice
meanwhile. What they know of the old, above all positions, must not be taken for the new.
"""


class Backoff:
    """`next()` gives the seconds to wait before the next attempt; `reset()` after a success."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures = 0

    def next(self) -> float:
        ceiling = min(LONGEST, FIRST * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures = 0
