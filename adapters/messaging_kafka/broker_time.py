"""What time it is on the brokers, told by the monotonic clock of this process (5).

Delays are reckoned from when a broker kept the record. The time of day of a member, which may be wrong by hours, is
believed only until what the brokers tell shows that it cannot be.
"""

from __future__ import annotations

import time
from typing import NamedTuple

EARLIER = 0.001
"""Seconds by which a broker may have kept a record after the time that it tells: that is in whole milliseconds."""


class Moment(NamedTuple):
    """A time by both clocks."""

    now: float
    """Seconds since the epoch, by the brokers."""
    ahead: float
    """By how much that is more than the monotonic clock here."""


class BrokerTime:
    """One per adapter. Brokers' own clocks are taken to be in step."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()
        """Seconds since the epoch there, less those of the monotonic clock here."""

    def now(self) -> float:
        """The brokers' time of day, seconds since the epoch."""
        return time.monotonic() + self._ahead

    def moment(self) -> Moment:
        """Now, by both clocks."""
        return Moment(self.now(), self._ahead)

    def here(self, moment: float) -> float:
        """When the brokers' clocks show `moment`, in monotonic seconds."""
        return moment - self._ahead

    def told(self, moment: float, since: float, until: float) -> None:
        """A broker's clock showed `moment` at some time between the other two, in monotonic seconds."""
        if not since - EARLIER <= self.here(moment) <= until:
            self._ahead = moment - until  # the latest that it can be: a delay must not end early

    def kept(self, moment: float, since: float, until: float) -> float:
        """When a record with this time was kept, in monotonic seconds.

        It was between the other two, or its writer's clock gave the time and is wrong: then the latest.
        """
        at = self.here(moment) + EARLIER
        return at if since <= at <= until else until
