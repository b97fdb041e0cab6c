"""Dead letters: a topic per group, letters in one partition, marks of those that are gone in another.

Kafka deletes no single record, so a redriven or purged letter is marked, and both partitions are cut as soon as all
their first letters are gone. Copy first, then mark: a crash between redrives a letter twice, never loses it.

Whoever redrives claims the letters first, by a mark too: of two the first in the partition has it, until its claim is
void. A claim that was left by a process that died is void after a minute.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from messaging.adapter import GONE, DeadLetterStore, Gone, StoredLetter
from messaging.envelope import FAILURE
from messaging.errors import ConfigurationError, MessagingError, PublishError, TopicNotFound
from messaging.partition import partition_of
from messaging.shielded import given_up, to_its_end
from messaging_kafka import library
from messaging_kafka.fetching import read_between
from messaging_kafka.library import Place
from messaging_kafka.records import ORIGIN, Parcel, parcel, read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from messaging.adapter import GroupSpec
    from messaging.message import Message
    from messaging_kafka.session import Session

logger = logging.getLogger("messaging")

LETTERS = 0
MARKS = 1
CLAIM = 60.0
"""Seconds after which a claim is void that nothing came of."""
ENDING = 5.0
"""Seconds for which who is cancelled ends what is begun: letters are put back and marked, or given back."""


class LetterMarks:
    """Which letters of one group are gone or claimed, read as far as it was needed."""

    def __init__(self) -> None:
        self.position = 0
        self.written = 0.0
        """When the last of them was, by the brokers' clocks, seconds since the epoch."""
        self.gone: set[int] = set()
        self._claims: dict[int, tuple[str, float]] = {}

    def read(self, record: Any) -> None:
        """Take one mark, in the order of the partition."""
        self.position = record.offset + 1
        mark = _mark(record.value)
        offsets = _offsets(mark.get("letters"))
        token, written = mark.get("claim"), record.timestamp / 1000
        self.written = written
        if not isinstance(token, str):
            self.gone.update(offsets)
            return
        for offset in offsets:
            if mark.get("void") is True:
                if self.claimed(offset, written) == token:
                    del self._claims[offset]
            elif self.claimed(offset, written) is None:
                self._claims[offset] = token, written + CLAIM

    def claimed(self, offset: int, at: float) -> str | None:
        """Whose letter it is at a time of the brokers, in seconds since the epoch; None where nobody has claimed it."""
        token, until = self._claims.get(offset, ("", 0.0))
        return token if until > at else None

    def begin_anew(self) -> None:
        """The letters that they were of are gone."""
        self.position = 0
        self.forget(sys.maxsize)

    def forget(self, before: int) -> None:
        """Letters before this are not there any more."""
        self.gone = {offset for offset in self.gone if offset >= before}
        self._claims = {
            offset: claim
            for offset, claim in self._claims.items()
            if offset >= before and offset not in self.gone
        }


class KafkaDeadLetters(DeadLetterStore):
    """The dead letters of one group. A letter's reference is its offset and the position of the message."""

    def __init__(self, session: Session, group: GroupSpec, marks: LetterMarks) -> None:
        self._session = session
        self._group = group
        self._marks = marks
        topic = session.names.dead(group)
        self._letters = Place(topic, LETTERS)
        self._marked = Place(topic, MARKS)

    async def count(self) -> int:
        """See `DeadLetterStore.count`."""
        return await self.counted(refresh=True)

    async def counted(self, *, refresh: bool) -> int:
        """As `count`; without `refresh`, by what was read of the registry last."""
        start, end = await self._bounds(refresh=refresh)
        return end - start - sum(offset >= start for offset in self._marks.gone)

    async def _bounds(self, *, refresh: bool = True) -> tuple[int, int]:
        """The first letter that is kept and the end, the marks read."""
        brokers = self._session.brokers
        await self._check(refresh=refresh)
        # The marks first: a letter that comes meanwhile is not gone.
        ends = await brokers.offsets(dict.fromkeys((self._letters, self._marked), library.LATEST))
        start = (await brokers.offsets({self._letters: library.EARLIEST}))[self._letters]
        marks, end = self._marks, ends[self._marked]
        if end < marks.position:
            marks.begin_anew()  # the group was deleted and made again
        async for record in read_between(brokers, self._marked, marks.position, end):
            marks.read(record)
        marks.position = end
        marks.forget(start)
        return start, ends[self._letters]

    async def _check(self, *, refresh: bool) -> None:
        """See `TopologyKeeper.check`; letters that somebody deleted are made anew, where a reader asks for them."""
        topology = self._session.topology
        try:
            await topology.check(self._group, refresh=refresh)
        except (ConfigurationError, TopicNotFound):
            self._marks.begin_anew()
            if not (refresh and await topology.restore(self._group)):
                raise
            await topology.check(self._group, refresh=False)

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
    ) -> Sequence[PublishError | Gone | None]:
        """See `DeadLetterStore.redrive`."""
        # Before the claim: nothing would come of one that a copy which cannot be made follows.
        copies = [
            await self._copy(message, letter.reference[1], failure) for letter, message, failure in letters
        ]
        token = secrets.token_hex(8)
        ours = await self._claim(token, [letter.reference[0] for letter, _, _ in letters])
        results: list[PublishError | Gone | None] = [GONE] * len(letters)
        places = [at for at, (letter, _, _) in enumerate(letters) if letter.reference[0] in ours]
        if places:
            await to_its_end(self._put_back(token, letters, copies, places, results), ENDING)
        return results

    async def _put_back(
        self,
        token: str,
        letters: Sequence[tuple[StoredLetter, Message, str | None]],
        copies: Sequence[Parcel],
        places: Sequence[int],
        results: list[PublishError | Gone | None],
    ) -> None:
        """Those at these places, which are claimed. What cannot be put back is given back."""
        where = f"{self._group.topic.name}/{self._group.name}"
        done: list[int] = []
        left: list[int] = []
        fates = await self._session.writer.write_copies([copies[at] for at in places])
        for at, fate in zip(places, fates, strict=True):
            if isinstance(fate, PublishError):
                results[at] = type(fate)(f"dead letter {letters[at][1].id} of {where}: {fate}")
                left.append(letters[at][0].reference[0])
            else:
                results[at] = None
                done.append(at)
        try:
            if left:
                await self._void(token, left)
            await self._remove([letters[at][0].reference[0] for at in done])
        except MessagingError as error:
            for at in done:
                results[at] = PublishError(
                    f"dead letter {letters[at][1].id} of {where} was redriven, but is still there: {error}"
                )

    async def _claim(self, token: str, offsets: Sequence[int]) -> set[int]:
        """Those of the letters that are there and that nobody claimed before. Where it fails, none stays claimed."""
        start, _ = await self._bounds()
        free = [offset for offset in offsets if offset >= start and offset not in self._marks.gone]
        if not free:
            return set()
        began = time.monotonic()
        try:
            await self._write({"claim": token, "letters": free})
            start, _ = await self._bounds()
        except BaseException:  # cancelled, too, it keeps none from others
            await self._give_back(token, free)
            raise
        if time.monotonic() - began > CLAIM:
            return set()
        marks = self._marks
        return {
            offset
            for offset in free
            if offset >= start and offset not in marks.gone and marks.claimed(offset, marks.written) == token
        }

    async def _give_back(self, token: str, offsets: Sequence[int]) -> None:
        """Try to, for a short time: a claim that stays is void after a while."""

        async def giving() -> None:
            with suppress(MessagingError):
                await self._void(token, offsets)

        await given_up([asyncio.create_task(giving())], ENDING)

    async def _void(self, token: str, offsets: Sequence[int]) -> None:
        await self._write({"claim": token, "void": True, "letters": list(offsets)})

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
        offsets = list(await self._claim(secrets.token_hex(8), [letter.reference[0] for letter in letters]))
        await to_its_end(self._remove(offsets), ENDING)
        return len(offsets)

    async def _remove(self, offsets: Sequence[int]) -> None:
        """These letters are gone. Raises PublishError."""
        if not offsets:
            return
        await self._write({"letters": list(offsets)})
        try:
            await self._tidy()
        except MessagingError as error:  # they are marked: nobody sees them any more
            where = f"{self._group.topic.name}/{self._group.name}"
            logger.warning(
                "Dead letters of %s that are gone were not deleted from Kafka: %s. They take room until others go",
                where,
                error,
                extra={"topic": self._group.topic.name, "group": self._group.name},
            )

    async def _tidy(self) -> None:
        start, end = await self._bounds()
        first = start
        while first < end and first in self._marks.gone:
            first += 1
        if first > start:
            await self._cut(first, empty=first == end)

    async def _write(self, mark: Mapping[str, Any]) -> None:
        topic, partition = self._marked
        (fate,) = await self._session.writer.write(
            [Parcel(topic, partition, None, json.dumps(mark).encode(), [])]
        )
        if isinstance(fate, PublishError):
            raise fate

    async def _cut(self, first: int, *, empty: bool) -> None:
        """Delete the letters before the first that is left, and the marks where none is left."""
        before = {self._letters: first}
        if empty:
            before[self._marked] = self._marks.position
        await self._session.brokers.delete_records(before)


def _mark(raw: bytes | None) -> Mapping[str, object]:
    try:
        value: object = json.loads(raw or b"")
    except ValueError:
        return {}
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _offsets(value: object) -> list[int]:
    return [one for one in cast("list[object]", value) if type(one) is int] if isinstance(value, list) else []
