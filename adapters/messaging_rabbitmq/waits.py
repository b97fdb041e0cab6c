"""What is left of a delay when its copy comes out of a tier, in seconds (5).

A tier's queue waits by the broker's clock, and what is left after it is told as a span of time: members' clocks may
differ by hours. Who wrote a copy also knows by its own monotonic clock what has passed since: in a group that lags,
a copy waits in the group's queue after each tier. Another member cannot know how long, and waits for all of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.envelope import recorded_seconds

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

WAIT = "messaging-wait"
"""Seconds left after the tier, the end by the writer's monotonic clock, and who that was."""
FOREVER = 1e9
"""Seconds that no broker lives."""


def written(after: float, tier: float, *, now: float, member: str) -> dict[str, str]:
    """The control headers of a copy that waits `after` seconds from now on, the first `tier` of them in a queue."""
    left = after - tier
    return {WAIT: f"{left!r} {now + after!r} {member}"} if left > 0 else {}


def left_of(original: DeliveredMessage, *, now: float, member: str) -> float:
    """Seconds for which a copy that came out of a tier must still wait; 0 or less for all else."""
    headers = original.header.properties.headers
    text = None if original.exchange or not headers else headers.get(WAIT)
    if not isinstance(text, str):
        return 0.0
    left, _, rest = text.partition(" ")
    end, _, writer = rest.partition(" ")
    seconds = recorded_seconds(left)
    if member and writer == member:
        seconds = min(seconds, recorded_seconds(end) - now)
    return min(seconds, FOREVER)
