"""Removing what no group needs any more: never what somebody has not handled, except beyond the topic's retention."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from messaging_redis.scripts import TRIM

if TYPE_CHECKING:
    from messaging.adapter import TopicSpec
    from messaging_redis.connection import Connection
    from messaging_redis.topology import TopologyKeeper

logger = logging.getLogger("messaging")


class Trimmer:
    """Trims each topic now and then; one member of all does it per interval."""

    def __init__(self, connection: Connection, topology: TopologyKeeper) -> None:
        self._connection = connection
        self._topology = topology
        self._next: dict[tuple[str, int], float] = {}
        """By the topic's name and generation."""
        self.lost = 0
        """Messages that the retention removed before every group had handled them."""

    async def trim(self, topic: TopicSpec, *, now: bool = False) -> None:
        """Trim the topic if it is due, or now. An adopted stream is left alone: its owner decides what it keeps."""
        started = time.monotonic()
        settings = self._connection.settings
        place = (topic.name, topic.generation)
        if topic.native is not None or (not now and started < self._next.get(place, 0.0)):
            return
        self._next[place] = started + settings.trim_interval
        keys = self._topology.keys(topic)
        retention = -1 if topic.retention is None else int(topic.retention * 1000)
        history = settings.history if topic.retention is None else min(settings.history, topic.retention)
        lost = await self._connection.run(
            TRIM,
            [keys.trimmed, *keys.streams],
            [0 if now else int(settings.trim_interval * 1000 * 0.9), int(history * 1000), retention],
        )
        if lost > 0:
            self.lost += lost
            logger.warning(
                "%d messages of topic %s were older than its retention of %g s and were removed before every group "
                "had handled them: start members of its slow groups, or delete groups that are not needed",
                lost,
                topic.name,
                topic.retention,
                extra={"topic": topic.name, "lost": lost},
            )
