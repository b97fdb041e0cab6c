"""The generations of a topic: which are kept, and what each group has handled of the former ones (16)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from messaging.adapter import Adapter
from messaging.generations import END
from messaging_sqlite.database import PREFIX, same

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from messaging.adapter import GroupSpec, TopicSpec
    from messaging_sqlite.database import Database

T = TypeVar("T")


class KeepsGenerations(Adapter):
    """The part of the adapter that keeps the record of generations."""

    _database: Database

    @abstractmethod
    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call on the thread."""

    @abstractmethod
    def topic_name(self, spec: TopicSpec) -> str:
        """The file's name of a generation of a topic."""

    @abstractmethod
    def find_group(self, group: GroupSpec) -> int:
        """The group's number."""

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        return await self.run(self._generations, topic)

    def _generations(self, topic: TopicSpec) -> list[TopicSpec]:
        first = self.topic_name(replace(topic, generation=1))
        rows = self._database.connection.execute(
            """
            SELECT 1 AS number, partitions, ordered FROM topics WHERE name = ?
            UNION SELECT number, partitions, ordered FROM generations WHERE topic = ? ORDER BY number
            """,
            (first, first),
        )
        return [
            replace(topic, generation=number, partitions=partitions, ordered=bool(ordered))
            for number, partitions, ordered in rows
        ]

    async def begin_generation(self, topic: TopicSpec) -> None:
        await self.run(self._begin, topic)

    def _begin(self, topic: TopicSpec) -> None:
        key = self.topic_name(replace(topic, generation=1)), topic.generation
        with self._database.transaction() as run:
            values = (*key, topic.partitions, topic.ordered)
            run(
                "INSERT OR IGNORE INTO generations (topic, number, partitions, ordered) VALUES (?, ?, ?, ?)",
                values,
            )
            found = run("SELECT * FROM generations WHERE topic = ? AND number = ?", key).fetchone()
        what = f"generation {topic.generation} of topic {topic.name}"
        same(what, "partitions", topic.partitions, found["partitions"])
        same(what, "ordered", topic.ordered, bool(found["ordered"]))

    async def end_generation(self, topic: TopicSpec) -> None:
        await self.run(self._end, topic)

    def _end(self, topic: TopicSpec) -> None:
        with self._database.transaction() as run:
            run("INSERT OR IGNORE INTO ended VALUES (?)", (self.topic_name(topic),))

    async def ended(self, topic: TopicSpec) -> bool:
        return await self.run(self._ended, topic)

    def _ended(self, topic: TopicSpec) -> bool:
        query = "SELECT 1 FROM ended WHERE topic = ?"
        return self._database.connection.execute(query, (self.topic_name(topic),)).fetchone() is not None

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """A key has one member at a time, a partition has several: so the file is asked what is left of it."""
        return await self.run(self._finish, group, partition)

    def _finish(self, group: GroupSpec, partition: int) -> bool:
        number = self.find_group(group)
        with self._database.transaction() as run:
            left = run(
                "SELECT 1 FROM messages WHERE grp = ? AND partition = ? AND dead = 0"
                " AND (coalesce(json_extract(headers, ?), '') <> ? OR length(body) > 0)",
                (number, partition, f'$."{PREFIX}type"', END),
            ).fetchone()
            if left is None:
                run("INSERT OR IGNORE INTO finished VALUES (?, ?)", (number, partition))
        return left is None

    async def finished(self, group: GroupSpec) -> Collection[int]:
        return await self.run(self._finished, group)

    def _finished(self, group: GroupSpec) -> set[int]:
        query = "SELECT partition FROM finished WHERE grp = ?"
        return {row[0] for row in self._database.connection.execute(query, (self.find_group(group),))}
