"""What a topic keeps: one log per partition, from which each group reads at its own place."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from dataclasses import replace
from datetime import UTC
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from messaging.envelope import CONTROL, decode, encode, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from messaging.message import Message
    from messaging_memory.group import Group

PREFIX = "ce_"
"""Of the CloudEvents attributes among the stored headers."""

ATTRIBUTE_NAMES = 512
"""More bytes than the names of all attributes, their times and their versions have."""

_TRIM_AT_LEAST = 1024
_OURS = (PREFIX, CONTROL)
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

logger = logging.getLogger("messaging")


class Record:
    """One stored message, as a wire would carry it: what no wire can carry does not survive here either.

    A message that a wire carries unchanged is kept as it is, and only encoded when somebody asks for `headers`.
    """

    __slots__ = (
        "body",
        "bound",
        "content_type",
        "encoded",
        "intact",
        "offset",
        "partition",
        "plain",
        "position",
        "reply_to",
        "sequence",
        "stored_at",
    )

    def __init__(
        self,
        body: bytes,
        encoded: Mapping[str, Any] | None,
        content_type: str | None,
        reply_to: str | None,
        partition: int,
        stored_at: float,
        intact: Message | None = None,
    ) -> None:
        self.body = body
        self.encoded = encoded
        self.content_type = content_type
        self.reply_to = reply_to
        self.partition = partition
        self.stored_at = stored_at
        """In `Clock.time` seconds."""
        self.intact = intact
        self.plain: Mapping[str, str] = _NO_HEADERS
        """The headers of the message that is kept as it is: whether somebody has changed them shows here."""
        self.bound = inf
        self.offset = -1
        self.sequence = 0
        """0 in the log; above it for a message that was redriven behind the log's message `offset`."""
        self.position = ""

    @classmethod
    def of(cls, message: Message, partition: int, stored_at: float, reply_to: str | None = None) -> Record:
        if (length := surviving(message)) is None:
            encoded = encode(message, prefix=PREFIX)
            return cls(message.body, encoded, message.content_type, reply_to, partition, stored_at)
        record = cls(message.body, None, message.content_type, reply_to, partition, stored_at, message)
        record.bound = len(message.body) + length
        if message.headers:
            record.plain = dict(message.headers)
        return record

    @property
    def headers(self) -> Mapping[str, Any]:
        """As on a wire: attributes and plain headers."""
        if self.encoded is None:
            assert self.intact is not None, "a record is kept intact or encoded"
            self.encoded = encode(replace(self.intact, headers=self.plain), prefix=PREFIX)
        return self.encoded

    @property
    def key(self) -> str | None:
        """One text for each key; None without a key."""
        if self.intact is not None:
            key = self.intact.key
            assert not isinstance(key, bytes), "a key of bytes is kept encoded"
            return key
        key = self.headers.get(PREFIX + "partitionkey", self.headers.get(PREFIX + "partitionkeybase64"))
        return None if key is None else text(key)

    def message(self, topic: str) -> Message:
        """The message for one hand-over: what one handler does to its headers, no other sees."""
        intact = self.intact
        if intact is not None and intact.topic == topic and self._untouched(intact):
            return intact
        return decode(
            self.headers,
            prefix=PREFIX,
            topic=topic,
            body=self.body,
            position=self.position,
            content_type=self.content_type,
        )

    def _untouched(self, intact: Message) -> bool:
        return intact.headers == self.plain if intact.headers else not self.plain

    def size(self, maximum: int) -> float:
        """Bytes of body, headers, key and attributes; exact where it may be above `maximum`."""
        if self.bound <= maximum:
            return self.bound
        return len(self.body) + sum(len(f"{name}{value}".encode()) for name, value in self.headers.items())


def surviving(message: Message) -> int | None:
    """A bound of the bytes of its attributes, if the message comes out of `decode(encode(...))` as it went in.

    None where that is not certain: with a key of bytes, with text that is not ASCII, with a header of ours.
    """
    key, time, expires_at = message.key, message.time, message.expires_at
    correlation, causation = message.correlation_id, message.causation_id
    if (
        isinstance(key, bytes)
        or not message.id
        or not message.type
        or correlation == ""
        or causation == ""
        or message.source == ""
        or (time is not None and time.tzinfo is not UTC)
        or (expires_at is not None and expires_at.tzinfo is not UTC)
    ):
        return None
    attributes = (
        f"{message.id}{key}{message.type}{message.source}{correlation}{causation}{message.content_type}"
    )
    length = len(attributes) + ATTRIBUTE_NAMES
    if not attributes.isascii():
        return None
    for name, value in message.headers.items():
        if name.startswith(_OURS) or not name.isascii() or not value.isascii():
            return None
        length += len(name) + len(value)
    return length


class Partition:
    """The log of one partition; `base` is the offset of its oldest message, `end` that of the next one."""

    __slots__ = ("base", "number", "records", "trim_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.base = 0
        self.records: list[Record] = []
        self.trim_at = _TRIM_AT_LEAST

    @property
    def end(self) -> int:
        return self.base + len(self.records)

    def append(self, record: Record) -> None:
        record.offset = offset = self.base + len(self.records)
        record.position = f"{self.number}-{offset}"
        self.records.append(record)

    def read(self, start: int, stop: int) -> Sequence[Record]:
        return self.records[start - self.base : stop - self.base]

    def drop(self, before: int) -> None:
        """Forget the messages before this offset."""
        if before > self.base:
            del self.records[: before - self.base]
            self.base = before


class TopicLog:
    """A topic of the broker: its record of partitions and order, its messages and its groups."""

    def __init__(
        self, name: str, *, partitions: int, ordered: bool, retention: float | None, history: int | None
    ) -> None:
        self.name = name
        self.ordered = ordered
        self.retention = retention
        self.history = history
        self.partitions = [Partition(number) for number in range(partitions)]
        self.groups: dict[str, Group] = {}

    def trim(self) -> None:
        """Forget, now and then, what every group has read, but for the history kept for groups to come."""
        if self.history is None:
            return
        for partition in self.partitions:
            if len(partition.records) >= partition.trim_at:
                cursors = (group.cursors[partition.number] for group in self.groups.values())
                read = min(cursors, default=partition.end)
                partition.drop(min(read, partition.end - self.history))
                partition.trim_at = max(_TRIM_AT_LEAST, 2 * len(partition.records))

    def expire(self, now: float) -> None:
        """Forget what is older than the retention, read or not; what a group loses is logged (18)."""
        if self.retention is None:
            return
        for partition in self.partitions:
            records = partition.records
            if not records or records[0].stored_at > now - self.retention:
                continue
            old = bisect_right(records, now - self.retention, key=lambda record: record.stored_at)
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
        first = bisect_left(partition.records, start.timestamp(), key=lambda record: record.stored_at)
        return max(earliest, partition.base + first)
