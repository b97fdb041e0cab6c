"""What a broker does not take of what is published to it: told by health until it does, and once in the log (26, 27).

A program may only publish: its subscriptions, if it has any, do not notice that a broker is out of memory.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from messaging.adapter import Unrouted
from messaging.errors import InvalidMessage, NoGroup, PublishError, TopicNotFound
from messaging.message import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.adapter import Outgoing
    from messaging.clock import Clock

logger = logging.getLogger("messaging")

SILENT = 2.0
"""Seconds under way without an answer, after which the broker is to blame and not a caller who is short of time."""
REMEMBERED = 60.0
"""Seconds for which a topic that is seldom published to is told of while the broker takes messages of others."""
_THE_CALLERS = (InvalidMessage, NoGroup, TopicNotFound)
"""A broker that works answers so to what should not have been asked."""
_STORED = frozenset((Receipt,))


class Refusals:
    """The topics of one broker whose publishes it refuses, or leaves without an answer."""

    def __init__(self, broker: str, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._standing: dict[str, tuple[str, float]] = {}
        """Of each topic the last error and when, until a message of it is stored."""
        self._under_way = 0
        self._quiet_since = 0.0
        """While something is under way: since when nothing has been answered."""
        self.unrouted: Callable[[str], object] = _ignore
        """Told of a topic whose messages reach nobody."""
        self.lost: Callable[[str], object] = _ignore
        """Told of a topic that the broker does not have any more."""

    def begin(self) -> None:
        """An exchange with the broker begins."""
        if not self._under_way:
            self._quiet_since = self._clock.monotonic()
        self._under_way += 1

    def end(self) -> None:
        """One has ended, with results or without."""
        self._under_way -= 1
        if self._under_way:
            self._quiet_since = self._clock.monotonic()

    def judge(self, messages: Sequence[Outgoing], results: Sequence[Receipt | PublishError]) -> None:
        """The results of one exchange."""
        if not self._standing and _STORED.issuperset(map(type, results)):
            return
        refused: dict[str, PublishError] = {}
        taken: set[str] = set()
        for one, result in zip(messages, results, strict=True):
            if isinstance(result, PublishError):
                refused.setdefault(one.topic.name, result)
                if isinstance(result, TopicNotFound):
                    self.lost(one.topic.name)
            else:
                taken.add(one.topic.name)
                if isinstance(result, Unrouted):
                    self.unrouted(one.topic.name)
        if taken:
            self._confirmed(taken - refused.keys())
        for topic, error in refused.items():
            self.note(topic, error)

    def unanswered(self, topic: str, error: PublishError) -> None:
        """Nobody waits for it any longer: a refusal if the broker has been silent for so long."""
        if self._silent():
            self.note(topic, error)

    def note(self, topic: str, error: Exception) -> None:
        """A publish to the topic ended so. What the caller did wrong is no refusal."""
        if isinstance(error, _THE_CALLERS):
            return
        if topic not in self._standing:
            logger.warning(
                "%s does not take what is published to topic %s: %s",
                self._broker,
                topic,
                error,
                extra={"broker": self._broker, "topic": topic},
            )
        self._standing.pop(topic, None)
        self._standing[topic] = str(error), self._clock.monotonic()

    def last(self) -> str | None:
        """Why what is published is not taken now; None where it is, as far as anybody has tried."""
        if self._standing:
            topic = next(reversed(self._standing))
            return f"publishing to topic {topic} fails: {self._standing[topic][0]}"
        if self._silent():
            return f"nothing that is published has been confirmed for more than {SILENT:g} s"
        return None

    def _silent(self) -> bool:
        return bool(self._under_way) and self._clock.monotonic() - self._quiet_since >= SILENT

    def _confirmed(self, topics: set[str]) -> None:
        """The broker takes these; of others it may have refused a single one, long ago."""
        forgotten = self._clock.monotonic() - REMEMBERED
        for topic, (_, at) in list(self._standing.items()):
            if topic in topics or at < forgotten:
                del self._standing[topic]


def _ignore(topic: str) -> None:
    """Nobody asked to be told."""
