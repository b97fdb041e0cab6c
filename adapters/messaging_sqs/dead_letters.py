"""The dead letters of a group: a queue, read without being consumed."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from messaging.adapter import GONE, DeadLetterStore, Gone, Lease, StoredLetter
from messaging.errors import ConnectionFailed, MessagingError, TopicNotFound
from messaging_sqs import copies
from messaging_sqs.batches import in_batches
from messaging_sqs.browse import Reading
from messaging_sqs.clients import ATTEMPTS
from messaging_sqs.connection import Absent
from messaging_sqs.entries import Token, unpack
from messaging_sqs.envelopes import opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from messaging.adapter import GroupSpec
    from messaging.errors import PublishError
    from messaging.message import Message
    from messaging_sqs.connection import Connection
    from messaging_sqs.topology import TopologyKeeper


logger = logging.getLogger("messaging")


@dataclass(slots=True, eq=False)
class Letter:
    """Where a letter of an open scan is: in more places than one where a crash had it stored twice."""

    reading: Reading
    handles: list[str]
    removed: bool = False


class SQSDeadLetters(DeadLetterStore):
    """See `DeadLetterStore`. `count` is approximate on AWS, by what the service tells."""

    def __init__(self, connection: Connection, topology: TopologyKeeper, group: GroupSpec) -> None:
        self._connection = connection
        self._topology = topology
        self._group = group

    async def count(self) -> int:
        """See `DeadLetterStore.count`."""
        await self._topology.verify(self._group)
        try:
            return await self._topology.dead_count(self._group)
        except Absent as error:
            raise TopicNotFound(
                f"group {self._group.name!r} of topic {self._group.topic.name!r} is gone: declare it first. {error}"
            ) from error

    @asynccontextmanager
    async def scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        """See `DeadLetterStore.scan`."""
        number = await self.count()
        if not number:
            yield no_letters()
            return
        reading = Reading(self._connection, await self._topology.dead_url(self._group), number)
        try:
            yield self._letters(reading)
        finally:
            await reading.end()

    async def _letters(self, reading: Reading) -> AsyncIterator[StoredLetter]:
        known: dict[str, Letter] = {}
        async for raw in reading.messages():
            delivery = unpack(opened(raw), self._group, Lease(inf))
            token: Token = delivery.token
            letter = known.get(token.origin)
            if letter is None:
                letter = known[token.origin] = Letter(reading, [token.handle])
                yield StoredLetter(delivery.message, delivery.failure, letter)
            elif letter.removed:
                await self._delete(reading, [token.handle])
            else:
                letter.handles.append(token.handle)
        if reading.unseen:
            logger.warning(
                "%d dead letters of %s/%s are not shown: somebody else reads them, or they wait behind others of their "
                "message group, and follow when those are redriven or purged",
                reading.unseen,
                self._group.topic.name,
                self._group.name,
                extra={"topic": self._group.topic.name, "group": self._group.name, "unseen": reading.unseen},
            )

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        """See `DeadLetterStore.redrive`."""
        open_letters = [one for one in letters if _is_open(one[0])]
        url = await self._topology.queue_url(self._group)
        errors = await copies.store(
            self._connection,
            url,
            [copies.redriven(message, url, failure) for _, message, failure in open_letters],
        )
        await self._remove(
            [letter for (letter, _, _), error in zip(open_letters, errors, strict=True) if error is None]
        )
        told = {
            id(letter): None
            if error is None
            else copies.unstored(f"message {letter.message.id} was not redriven", error)
            for (letter, _, _), error in zip(open_letters, errors, strict=True)
        }
        return [told.get(id(letter), GONE) for letter, _, _ in letters]

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        """See `DeadLetterStore.purge`."""
        return await self._remove([letter for letter in letters if _is_open(letter)])

    async def _remove(self, letters: Sequence[StoredLetter]) -> int:
        """Raises the first error when some could not be removed."""
        by_reading: dict[Reading, list[str]] = {}
        for letter in letters:
            reference: Letter = letter.reference
            reference.removed = True
            by_reading.setdefault(reference.reading, []).extend(reference.handles)
        for reading, handles in by_reading.items():
            await self._delete(reading, handles)
        return len(letters)

    async def _delete(self, reading: Reading, handles: Sequence[str]) -> None:
        """Those that the service refuses for a moment are tried again: a redriven letter that stayed would be redriven
        twice. Raises the last error.
        """
        url, error = await self._topology.dead_url(self._group), None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(random.uniform(0, 2.0 ** (attempt - 1)))
            fates = await in_batches(
                self._connection,
                "sqs",
                "delete_message_batch",
                [{"ReceiptHandle": handle} for handle in handles],
                QueueUrl=url,
            )
            failed = {
                handle: fate
                for handle, fate in zip(handles, fates, strict=True)
                if isinstance(fate, MessagingError)
            }
            reading.removed([handle for handle in handles if handle not in failed])
            handles, error = list(failed), next(iter(failed.values()), None)
            if not isinstance(error, ConnectionFailed):
                break
        if error is not None:
            raise error


async def no_letters() -> AsyncGenerator[StoredLetter]:
    """What a scan yields where there is nothing to read."""
    none: tuple[StoredLetter, ...] = ()
    for letter in none:
        yield letter


def _is_open(letter: StoredLetter) -> bool:
    reference: Letter = letter.reference
    return not reference.removed and reference.reading.holds(reference.handles[0])
