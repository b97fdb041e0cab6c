"""What a queue itself does with messages that nobody ends in time: whoever set that, a member keeps within it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, NamedTuple

from messaging_sqs.connection import Denied
from messaging_sqs.settings import FEWEST_RECEIVES, LONGEST_RETENTION

if TYPE_CHECKING:
    from messaging_sqs.queues import Queues

logger = logging.getLogger("messaging")


class Bounds(NamedTuple):
    """Of one queue."""

    receives: int
    """What is received more often, the service moves to the dead letters (2)."""
    retention: int = LONGEST_RETENTION
    """Seconds after which the service deletes a message, one that waits for its time included."""

    @property
    def step(self) -> int:
        """Seconds that a copy may wait: half of its life, so that it is there for a while when its time has come."""
        return self.retention // 2


async def bounds_of(queues: Queues, url: str, otherwise: Bounds) -> Bounds:
    """What the queue says; `otherwise` where it has no redrive policy, or nobody may look. Raises Absent."""
    try:
        found = await queues.attributes(url, "RedrivePolicy", "MessageRetentionPeriod")
    except Denied:
        return otherwise
    policy = json.loads(found.get("RedrivePolicy") or "{}")
    bounds = Bounds(
        int(policy.get("maxReceiveCount", otherwise.receives)),
        int(found.get("MessageRetentionPeriod", otherwise.retention)),
    )
    if bounds.receives < FEWEST_RECEIVES:
        logger.warning(
            "Queue %s makes a dead letter of what was received %d times, without a failure record. Crashes count, and "
            "in a FIFO queue members that leave: give its redrive policy a maxReceiveCount of %d or more",
            url,
            bounds.receives,
            FEWEST_RECEIVES,
            extra={"queue": url, "receives": bounds.receives},
        )
    return bounds
