"""What Kafka cannot keep of topics and groups: the order of each, which groups a topic has, and where a group begins.

A compacted topic of one partition, shared by all programs of the namespace. Of two records that say different things of
the same name the first counts, so that two programs that declare at once agree; whoever came second sees it when it
reads its own record back.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from messaging.errors import PublishError
from messaging_kafka import library
from messaging_kafka.brokers import BY_BROKER, STORED_AS_SENT, NewTopic
from messaging_kafka.fetching import read_between
from messaging_kafka.library import Place
from messaging_kafka.records import Parcel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_kafka.brokers import Brokers
    from messaging_kafka.writer import Writer

CONFIG = {
    **STORED_AS_SENT,
    **BY_BROKER,
    "cleanup.policy": "compact",
    "max.compaction.lag.ms": "86400000",
    "delete.retention.ms": "604800000",
}
"""A process that has not looked for a week may miss that something was removed."""

Fields: TypeAlias = "Mapping[str, Any]"
Name: TypeAlias = "tuple[str, ...]"
"""`("topic", name)` or `("group", topic, name)`; `("generation", topic, number)` of one that is written to,
`("ended", topic)` of a former one to which nobody writes any more, and `("finished", topic, group, partition)`. How a
generation is called there: `names.recorded`.
"""
KINDS = {"topic": 2, "group": 3, "generation": 3, "ended": 2, "finished": 4}
"""How many parts each kind of name has."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one name."""

    fields: Fields
    written: float
    """Seconds since the epoch."""


class Registry:
    """The records of one namespace, read as far as they were needed."""

    def __init__(self, brokers: Brokers, writer: Writer, topic: str) -> None:
        self._brokers = brokers
        self._writer = writer
        self._place = Place(topic, 0)
        self._records: dict[Name, Record] = {}
        self._position = 0
        self._reading = asyncio.Lock()

    @property
    def topic(self) -> NewTopic:
        """What it is kept in."""
        return NewTopic(self._place.topic, 1, CONFIG)

    def get(self, name: Name) -> Record | None:
        """What was read of this name."""
        return self._records.get(name)

    def groups(self, topic: str) -> dict[str, Record]:
        """What was read of the groups of a topic."""
        return {name[2]: record for name, record in self.of("group", topic).items()}

    def of(self, kind: str, topic: str) -> dict[Name, Record]:
        """What was read of this kind for a topic."""
        return {name: record for name, record in self._records.items() if name[:2] == (kind, topic)}

    async def refresh(self) -> None:
        """Read what is new. A registry that does not exist is empty. Raises ConnectionFailed."""
        async with self._reading:
            if not await self._brokers.partitions([self._place.topic]):
                return
            end = (await self._brokers.offsets({self._place: library.LATEST}))[self._place]
            if end < self._position:
                self._records.clear()  # it was deleted and made again
                self._position = 0
            async for record in read_between(self._brokers, self._place, self._position, end):
                self._take(record)
            self._position = end

    def _take(self, record: Any) -> None:
        name = _name(record.key)
        if name is None:
            return
        if not record.value:
            self._records.pop(name, None)
            return
        fields = _fields(record.value)
        if fields is not None:
            self._records.setdefault(name, Record(fields, record.timestamp / 1000))

    async def add(self, entries: Mapping[Name, Fields]) -> None:
        """Write these, then read back what counts. Raises ConnectionFailed or PublishError."""
        if not entries:
            return
        await self._write([(name, json.dumps(fields).encode()) for name, fields in entries.items()])
        await self.refresh()
        beaten = [
            (name, json.dumps(record.fields).encode())
            for name, fields in entries.items()
            if (record := self._records.get(name)) is not None and record.fields != fields
        ]
        if beaten:
            # Compaction keeps the last of a name: it must say what the first said.
            await self._write(beaten)

    async def replace(self, entries: Mapping[Name, Fields]) -> None:
        """Write these in place of what is on record: in one batch, so that nobody reads that they are not there."""
        written = [(name, json.dumps(fields).encode()) for name, fields in entries.items()]
        await self._write([*((name, None) for name in entries), *written])
        await self.refresh()

    async def remove(self, *names: Name) -> None:
        """Forget these names."""
        await self._write([(name, None) for name in names])
        await self.refresh()

    async def _write(self, items: Sequence[tuple[Name, bytes | None]]) -> None:
        topic, partition = self._place
        parcels = [Parcel(topic, partition, "/".join(name).encode(), value, []) for name, value in items]
        for fate in await self._writer.write(parcels):
            if isinstance(fate, PublishError):
                raise fate


def age(record: Record) -> float:
    """How long ago it was written, in seconds."""
    return time.time() - record.written


def _name(key: bytes | None) -> Name | None:
    parts = (key or b"").decode("utf-8", "replace").split("/")
    return tuple(parts) if KINDS.get(parts[0]) == len(parts) else None


def _fields(raw: bytes) -> Fields | None:
    try:
        value: object = json.loads(raw)
    except ValueError:
        return None
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else None
