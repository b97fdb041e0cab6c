"""The dead letters of a group: rows that no member is handed any more."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.adapter import GONE, DeadLetterStore, StoredLetter
from messaging.partition import partition_of
from messaging_sqlite.database import message_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.adapter import Gone, GroupSpec
    from messaging.errors import PublishError
    from messaging.message import Message
    from messaging_sqlite.adapter import SQLiteAdapter
    from messaging_sqlite.database import Database

PAGE = 100
"""Dead letters in memory at once."""


class SQLiteDeadLetters(DeadLetterStore):
    """See `messaging.adapter.DeadLetterStore`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, group: GroupSpec) -> None:
        self._adapter = adapter
        self._database = database
        self._group = group

    async def _number(self) -> int:
        return await self._adapter.run(self._adapter.find_group, self._group)

    async def count(self) -> int:
        return await self._adapter.run(self._database.count_dead, await self._number())

    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        return self._scan()

    @asynccontextmanager
    async def _scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        number = await self._number()
        yield self._letters(number, await self._adapter.run(self._database.last_dead, number))

    async def _letters(self, number: int, last: int) -> AsyncIterator[StoredLetter]:
        after = 0
        while rows := await self._adapter.run(self._database.dead, number, after, last, PAGE):
            for row in rows:
                message = message_of(row, self._group.topic.name)
                yield StoredLetter(message, row["failure"], (row["id"], row["partition"]))
            after = rows[-1]["id"]

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        partitions = self._group.topic.partitions
        rows = [
            (
                stored.reference[0],
                stored.reference[1] if message.key is None else partition_of(message.key, partitions),
                replace(message, topic=self._group.topic.name),
                failure,
            )
            for stored, message, failure in letters
        ]
        now = self._adapter.context.clock.time()
        found = await self._adapter.run(self._database.redrive, await self._number(), rows, now)
        return [None if taken else GONE for taken in found]

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        return await self._adapter.run(self._database.purge, [letter.reference[0] for letter in letters])
