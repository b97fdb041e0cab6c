"""Batches that a broker has not answered: once another leads in its place, nobody waits for it any more."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from messaging.errors import MessagingError
from messaging_kafka.library import KafkaError, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.brokers import Brokers

STILL_LED = 2.0
"""Seconds without an answer after which, and between which, is asked who leads."""


class Unanswered:
    """What is under way on one channel. A broker that hangs costs as long as the others take to elect another leader:
    what goes to their own partitions waits in the same call, and behind it.
    """

    def __init__(self, brokers: Brokers, channel: str) -> None:
        self._brokers = brokers
        self._channel = channel
        self._under_way: dict[Any, tuple[float, int, Sequence[Place]]] = {}
        """By request: since when, at which broker, and the partitions."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, request: Any, node: int, places: Sequence[Place]) -> None:
        """This is being sent."""
        self._under_way[request] = time.monotonic(), node, places
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STILL_LED, self._look_soon)

    def end(self, request: Any) -> None:
        """It was answered, or given up."""
        del self._under_way[request]

    def _look_soon(self) -> None:
        self._timer = None
        if not self._under_way:
            return
        before = time.monotonic() - STILL_LED
        late = [(node, places) for since, node, places in self._under_way.values() if since <= before]
        if late:
            looking = asyncio.create_task(self._look(late), name="messaging-kafka-unanswered")
            self._brokers.link.end_with(looking)
        self._timer = asyncio.get_running_loop().call_later(STILL_LED, self._look_soon)

    async def _look(self, late: Sequence[tuple[int, Sequence[Place]]]) -> None:
        """Ends the connection to a broker that leads no part of a request any more: what became of it is unknown."""
        with suppress(KafkaError, MessagingError):  # looked for again soon
            leaders = await self._brokers.leaders({place.topic for _, places in late for place in places})
            for node in {
                node
                for node, places in late
                if all(leaders.get(place, -1) not in {-1, node} for place in places)
            }:
                self._brokers.link.drop_node(node, self._channel)
