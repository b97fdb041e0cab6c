"""Dead letters: a topic per group, letters in one partition, marks of those that are gone in another.

Kafka deletes no single record, so a redriven or purged letter is marked, and both partitions are cut as soon as all
their first letters are gone. Copy first, then mark: a crash between redrives a letter twice, never loses it.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from messaging.adapter import DeadLetterStore, StoredLetter
from messaging.envelope import FAILURE
from messaging.errors import MessagingError, PublishError
from messaging.partition import partition_of
from messaging_kafka import library
from messaging_kafka.fetching import read_between
from messaging_kafka.library import Place
from messaging_kafka.records import ORIGIN, Parcel, parcel, read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from messaging.adapter import GroupSpec
    from messaging.message import Message
    from messaging_kafka.session import Session

LETTERS = 0
MARKS = 1


class Marks:
    """Which letters of one group are gone, read as far as it was needed."""

    def __init__(self) -> None:
        self.position = 0
        self.gone: set[int] = set()


class KafkaDeadLetters(DeadLetterStore):
    """The dead letters of one group. A letter's reference is its offset and the position of the message."""

    def __init__(self, session: Session, group: GroupSpec, marks: Marks) -> None:
        self._session = session
        self._group = group
        self._marks = marks
        topic = session.names.dead(group)
        self._letters = Place(topic, LETTERS)
        self._marked = Place(topic, MARKS)

    async def count(self) -> int:
        """See `DeadLetterStore.count`."""
        start, end = await self._bounds()
        return end - start - sum(offset >= start for offset in self._marks.gone)

    async def _bounds(self) -> tuple[int, int]:
        """The first letter that is kept and the end, the marks read; both 0 where there is no topic."""
        brokers = self._session.brokers
        if not await brokers.partitions([self._letters.topic]):
            return 0, 0
        # The marks first: a letter that comes meanwhile is not gone.
        ends = await brokers.offsets(dict.fromkeys((self._letters, self._marked), library.LATEST))
        start = (await brokers.offsets({self._letters: library.EARLIEST}))[self._letters]
        marks, end = self._marks, ends[self._marked]
        if end < marks.position:
            marks.position, marks.gone = 0, set()  # the group was deleted and made again
        async for record in read_between(brokers, self._marked, marks.position, end):
            marks.gone.update(_offsets(record.value))
        marks.position = end
        marks.gone = {offset for offset in marks.gone if offset >= start}
        return start, ends[self._letters]

    @asynccontextmanager
    async def scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        """See `DeadLetterStore.scan`."""
        start, end = await self._bounds()
        letters = self._scan(start, end, frozenset(self._marks.gone))
        try:
            yield letters
        finally:
            await letters.aclose()

    async def _scan(self, start: int, end: int, gone: frozenset[int]) -> AsyncGenerator[StoredLetter]:
        if start >= end:
            return
        async for record in read_between(self._session.brokers, self._letters, start, end):
            if record.offset in gone:
                continue
            # What another program put there is the message itself.
            ours = any(name == ORIGIN for name, _ in record.headers)
            received = read(record, topic=self._group.topic.name, partition=LETTERS, ours=ours)
            origin = received.origin or f"{LETTERS}/{record.offset}"
            yield StoredLetter(received.message, received.failure, (record.offset, origin))

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | None]:
        """See `DeadLetterStore.redrive`."""
        where = f"{self._group.topic.name}/{self._group.name}"
        start, _ = await self._bounds()
        results: list[PublishError | None] = [None] * len(letters)
        parcels: list[Parcel] = []
        places: list[int] = []
        for at, (letter, message, failure) in enumerate(letters):
            offset, origin = letter.reference
            if offset < start or offset in self._marks.gone:
                results[at] = PublishError(
                    f"dead letter {message.id} of {where} is not there any more: somebody else redrove or purged it"
                )
                continue
            parcels.append(await self._copy(message, origin, failure))
            places.append(at)
        done: list[int] = []
        for at, fate in zip(places, await self._session.writer.write(parcels), strict=True):
            if isinstance(fate, PublishError):
                results[at] = type(fate)(f"dead letter {letters[at][1].id} of {where}: {fate}")
            else:
                done.append(at)
        try:
            await self._mark([letters[at][0].reference[0] for at in done])
        except MessagingError as error:
            for at in done:
                results[at] = PublishError(
                    f"dead letter {letters[at][1].id} of {where} was redriven, but is still there: {error}"
                )
        return results

    async def _copy(self, message: Message, origin: str, failure: str | None) -> Parcel:
        control = {ORIGIN: origin}
        if failure is not None:
            control[FAILURE] = failure
        names, group = self._session.names, self._group
        if not group.ordered:
            return parcel(message, names.retry(group), 0, control=control)
        partitions = (await self._session.topology.state(group.topic)).partitions
        number = origin.partition("/")[0]
        if message.key is not None:
            partition = partition_of(message.key, partitions)
        else:
            partition = int(number) % partitions if number.isdecimal() else 0
        return parcel(message, names.redrive(group), partition, control=control)

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        """See `DeadLetterStore.purge`."""
        start, _ = await self._bounds()
        known = [letter.reference[0] for letter in letters]
        offsets = [offset for offset in known if offset >= start and offset not in self._marks.gone]
        await self._mark(offsets)
        return len(offsets)

    async def _mark(self, offsets: Sequence[int]) -> None:
        """These letters are gone. Raises PublishError or ConnectionFailed."""
        if not offsets:
            return
        topic, partition = self._marked
        mark = Parcel(topic, partition, None, json.dumps(list(offsets)).encode(), [])
        (fate,) = await self._session.writer.write([mark])
        if isinstance(fate, PublishError):
            raise fate
        start, end = await self._bounds()
        first = start
        while first < end and first in self._marks.gone:
            first += 1
        if first > start:
            await self._cut(first, empty=first == end)

    async def _cut(self, first: int, *, empty: bool) -> None:
        """Delete the letters before the first that is left, and the marks where none is left."""
        before = {self._letters: first}
        if empty:
            before[self._marked] = self._marks.position
        await self._session.brokers.delete_records(before)


def _offsets(raw: bytes | None) -> list[int]:
    try:
        value: object = json.loads(raw or b"")
    except ValueError:
        return []
    return [one for one in cast("list[object]", value) if type(one) is int] if isinstance(value, list) else []
