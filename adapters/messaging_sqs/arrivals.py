"""What polls have brought and `receive` has not yet taken.

A queue yields whatever is next: SQS cannot be asked for some partitions only. What comes of a partition that must yield
nothing stays here, with its lease extended; given back, each round would count as a receive, and the queue's own policy
would make a dead letter of what nobody has handled.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from messaging.adapter import RawDelivery

MOST_ASIDE = 1000
"""Deliveries of paused partitions that one member keeps; then it asks the service for nothing more (8)."""


class Arrivals:
    """Deliveries in the order they came. `forget` is called for those whose lease has ended."""

    def __init__(self, forget: Callable[[RawDelivery], None]) -> None:
        self._forget = forget
        self._waiting: list[RawDelivery] = []
        self._aside = 0
        """How many of them the last `take` has left because their partitions were paused."""

    @property
    def waiting(self) -> Sequence[RawDelivery]:
        return self._waiting

    def add(self, delivery: RawDelivery) -> None:
        self._waiting.append(delivery)

    def take(self, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        """Up to `limit`, the oldest first; what comes of one key keeps its order."""
        if not self._waiting:
            return []
        now = time.monotonic()
        taken: list[RawDelivery] = []
        left: list[RawDelivery] = []
        self._aside = 0
        for delivery in self._waiting:
            if delivery.lease.deadline <= now:
                self._forget(delivery)
            elif delivery.partition in paused:
                self._aside += 1
                left.append(delivery)
            elif len(taken) < limit:
                taken.append(delivery)
            else:
                left.append(delivery)
        self._waiting = left
        return taken

    def room(self, limit: int) -> int:
        """How many more may be asked for, for a receive of `limit`."""
        return 0 if self._aside >= MOST_ASIDE else limit - (len(self._waiting) - self._aside)

    def clear(self) -> None:
        self._waiting.clear()
        self._aside = 0
