"""The queue of a group's dead letters, deleted alone: made anew by the member that has one to store (25).

The group's own queue tells it from a deleted group, which has neither. Somebody who deletes the group may be between
the two; so it is left alone for a while, and looked for again behind what was made. `TopologyKeeper.delete` looks
behind its deletion, too: whoever comes last sees what the other did.
"""

from __future__ import annotations

import logging
import time
from math import inf
from typing import TYPE_CHECKING

from messaging.backoff import LEFT_ALONE
from messaging.errors import MessagingError
from messaging_sqs.connection import Absent, DeletedRecently
from messaging_sqs.record import group_tags

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec
    from messaging_sqs.topology import TopologyKeeper

logger = logging.getLogger("messaging")

_FORGOTTEN = 60.0
"""Seconds without a dead letter that finds no queue, after which the next one counts as the first."""


class LostLetters:
    """What one member knows of its group's queue of dead letters being gone."""

    def __init__(self, topology: TopologyKeeper, group: GroupSpec) -> None:
        self._topology = topology
        self._group = group
        self._met = -inf
        """When a dead letter last found no queue; since then none was stored."""
        self._next = 0.0

    def there(self) -> None:
        """A dead letter was stored."""
        self._met = -inf

    async def mend(self) -> MessagingError | None:
        """A dead letter found no queue: make it anew, when it was gone for long enough. None: it is there.

        Asks the service once in `LEFT_ALONE` seconds at most, and never waits.
        """
        group, now = self._group, time.monotonic()
        what = f"the queue of dead letters of group {group.name!r} of topic {group.topic.name!r} is gone"
        if group.native is not None:
            return Absent(f"{what}: create the one that the redrive policy of {group.native!r} names")
        if self._topology.state(group.topic).mode != "declare":
            return Absent(f"{what}: declare the group, or use topology='declare'")
        if now - self._met > _FORGOTTEN:
            self._next = now + LEFT_ALONE
        self._met = now
        if now < self._next:
            return Absent(f"{what}: it is made anew after {LEFT_ALONE:g} seconds")
        self._next = now + LEFT_ALONE
        try:
            there = await self._restore()
        except DeletedRecently as error:
            return Absent(f"{what}, and its name is not yet free: {error}")
        except MessagingError as error:
            return error
        return None if there else Absent(f"{what}, and so is the group: it was deleted")

    async def _restore(self) -> bool:
        """False where the group is deleted. Raises DeletedRecently."""
        topology, group = self._topology, self._group
        name = topology.names.dead(group)
        if not await topology.has_queue(group):
            return False
        if await topology.queues.find(name) is None:
            url = await topology.queues.create(name, group_tags(group), wait=0.0)
            if not await topology.has_queue(group):
                await topology.queues.delete(url)
                return False
            warn_lost(group)
        return True


def warn_lost(group: GroupSpec) -> None:
    """Say that the queue of a group's dead letters was made anew (18)."""
    logger.warning(
        "The queue of dead letters of %s/%s was deleted. It was made anew, what was in it is lost",
        group.topic.name,
        group.name,
        extra={"topic": group.topic.name, "group": group.name},
    )
