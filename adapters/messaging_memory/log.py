"""What a topic keeps: one log per partition, from which each group reads at its own place."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from messaging_memory.group import Group
    from messaging_memory.record import Row

_TRIM_AT_LEAST = 1024
MOST_ONCE = 100_000
"""Far more than are ever under way."""

_stored_at = itemgetter(0)

logger = logging.getLogger("messaging")


class Partition:
    """The log of one partition; `base` is the offset of its oldest message, `end` that of the next one."""

    __slots__ = ("base", "number", "place", "rows", "trim_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.place = f"{number}-"
        """What the position of each of its messages begins with."""
        self.base = 0
        self.rows: list[Row] = []
        self.trim_at = _TRIM_AT_LEAST

    @property
    def end(self) -> int:
        return self.base + len(self.rows)

    def append(self, row: Row) -> str:
        """Its position."""
        offset = self.base + len(self.rows)
        self.rows.append(row)
        return f"{self.place}{offset}"

    def read(self, start: int, stop: int) -> Sequence[Row]:
        return self.rows[start - self.base : stop - self.base]

    def drop(self, before: int) -> None:
        """Forget the messages before this offset."""
        if before > self.base:
            del self.rows[: before - self.base]
            self.base = before


class TopicLog:
    """A topic of the broker: its record of partitions and order, its messages and its groups.

    `name` is what programs call it: it stands in errors and logs.
    """

    def __init__(
        self, name: str, *, partitions: int, ordered: bool, retention: float | None, history: int | None
    ) -> None:
        self.name = name
        self.ordered = ordered
        self.retention = retention
        self.history = history
        self.partitions = [Partition(number) for number in range(partitions)]
        self.groups: dict[str, Group] = {}
        self.once: dict[str, str] = {}
        """Positions by `Outgoing.once`, the last ones that were stored."""
        self.ended = False
        """A former generation to which nobody writes any more."""
        self.successors: list[TopicLog] = []
        """Of a first generation: the later ones, in their order."""

    def remember(self, once: str, position: str) -> None:
        """This one is known again when it is published again."""
        self.once[once] = position
        if len(self.once) > MOST_ONCE:
            del self.once[next(iter(self.once))]

    def trim(self) -> None:
        """Forget, now and then, what every group has read, but for the history kept for groups to come."""
        if self.history is None:
            return
        for partition in self.partitions:
            if len(partition.rows) >= partition.trim_at:
                cursors = (group.cursors[partition.number] for group in self.groups.values())
                read = min(cursors, default=partition.end)
                partition.drop(min(read, partition.end - self.history))
                partition.trim_at = max(_TRIM_AT_LEAST, 2 * len(partition.rows))

    def expire(self, now: float) -> None:
        """Forget what is older than the retention, read or not; what a group loses is logged (18)."""
        if self.retention is None:
            return
        for partition in self.partitions:
            rows = partition.rows
            if not rows or rows[0][0] > now - self.retention:
                continue
            old = bisect_right(rows, now - self.retention, key=_stored_at)
            partition.drop(partition.base + old)
            for group in self.groups.values():
                behind = partition.base - group.cursors[partition.number]
                if behind > 0:
                    group.cursors[partition.number] = partition.base
                    group.lost += behind
                    logger.warning(
                        "the retention of topic %s removed %d messages that group %s had not read: start "
                        "members of the group, or delete it",
                        self.name,
                        behind,
                        group.name,
                        extra={
                            "topic": self.name,
                            "group": group.name,
                            "partition": partition.number,
                            "lost": behind,
                        },
                    )

    def starts(self, start: str | datetime) -> list[int]:
        """Where a group that begins now starts in each partition."""
        return [self._start(partition, start) for partition in self.partitions]

    def _start(self, partition: Partition, start: str | datetime) -> int:
        if start == "latest":
            return partition.end
        earliest = partition.base
        if self.history is not None:
            earliest = max(earliest, partition.end - self.history)
        if isinstance(start, str):
            return earliest
        first = bisect_left(partition.rows, start.timestamp(), key=_stored_at)
        return max(earliest, partition.base + first)
