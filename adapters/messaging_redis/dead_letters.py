"""Dead letters: a stream per group. Browsing reads it; redriving stores the copy, then deletes the letter."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from messaging.adapter import GONE, DeadLetterStore, StoredLetter
from messaging.errors import MessagingError, PublishError, PublishUncertain
from messaging.partition import partition_of
from messaging_redis.connection import Interrupted, translate
from messaging_redis.entries import decode_copy, decode_entry, encode_copy, encode_entry
from messaging_redis.scripts import REDRIVE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from messaging.adapter import Gone, GroupSpec
    from messaging.message import Message
    from messaging_redis.connection import Connection
    from messaging_redis.line import Argument, Command
    from messaging_redis.topology import TopologyKeeper

_PAGE = 100


class RedisDeadLetters(DeadLetterStore):
    """The dead letters of one group. A letter's reference is its id and the position of the message."""

    def __init__(self, connection: Connection, topology: TopologyKeeper, group: GroupSpec) -> None:
        self._connection = connection
        self._topology = topology
        self._group = group
        self._keys = topology.group_keys(group)

    async def count(self) -> int:
        """See `DeadLetterStore.count`."""
        await self._topology.check(self._group)
        return int(await self._connection.call(self._keys.dead, "XLEN", self._keys.dead))

    @asynccontextmanager
    async def scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        """See `DeadLetterStore.scan`."""
        await self._topology.check(self._group)
        newest = await self._connection.call(
            self._keys.dead, "XREVRANGE", self._keys.dead, "+", "-", "COUNT", 1
        )
        last = newest[0][0].decode() if newest else None
        yield self._letters(last)

    async def _letters(self, last: str | None) -> AsyncGenerator[StoredLetter]:
        start = "-"
        while last is not None:
            page = await self._connection.call(
                self._keys.dead, "XRANGE", self._keys.dead, start, last, "COUNT", _PAGE
            )
            for raw_id, fields in page:
                id = raw_id.decode()
                start = f"({id}"
                yield self._letter(id, fields)
            if len(page) < _PAGE:
                return

    def _letter(self, id: str, fields: list[bytes]) -> StoredLetter:
        copy = decode_copy(fields, id)
        # An entry without `_entry` was put there by another program: it is the message itself.
        original = copy.fields or (fields if b"_entry" not in fields[::2] else [])
        message, _ = decode_entry(original, topic=self._group.topic.name, position=copy.origin)
        return StoredLetter(message, copy.failure, (id, copy.origin))

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        """See `DeadLetterStore.redrive`. Each letter is one atomic step: a copy and no letter, or the letter."""
        # A group of another shape than the broker's has other streams, which nobody reads.
        await self._topology.check(self._group)
        results: list[PublishError | Gone | None] = []
        for start in range(0, len(letters), _PAGE):
            results += await self._redrive(letters[start : start + _PAGE])
        return results

    async def _redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> list[PublishError | Gone | None]:
        commands: list[Command] = []
        for letter, message, failure in letters:
            id, origin = letter.reference
            fields = encode_copy(encode_entry(message), origin=origin, failure=failure)
            arguments: list[Argument] = [self._keys.name, id, 1, len(fields), *fields]
            commands.append(REDRIVE.call([self._keys.dead, self._target(message, origin)], arguments))
        where = f"{self._group.topic.name}/{self._group.name}"
        replies: list[Any]
        try:
            replies = await self._connection.exchange(self._keys.dead, commands)
        except MessagingError as error:
            replies = [error] * len(letters)
        return [
            _result(f"dead letter {message.id} of {where}", reply)
            for (_, message, _), reply in zip(letters, replies, strict=True)
        ]

    def _target(self, message: Message, origin: str) -> str:
        if not self._group.ordered:
            return self._keys.retry
        partitions = self._keys.topic.partitions
        if message.key is not None:
            return self._keys.redrive(partition_of(message.key, partitions))
        partition = origin.partition("/")[0]
        return self._keys.redrive(int(partition) % partitions if partition.isdecimal() else 0)

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        """See `DeadLetterStore.purge`."""
        if not letters:
            return 0
        await self._topology.check(self._group)
        ids = [letter.reference[0] for letter in letters]
        return int(await self._connection.call(self._keys.dead, "XDEL", self._keys.dead, *ids))


def _result(what: str, reply: Any) -> PublishError | Gone | None:
    if isinstance(reply, Exception):
        kind = PublishUncertain if isinstance(reply, Interrupted) else PublishError
        return kind(f"{what}: {translate(reply, 'redrive')}")
    (state,) = reply
    if state == b"gone":
        return GONE
    return PublishError(f"{what}: Redis refused it: {state.decode()}") if state else None
