"""The dead letters of one group."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from messaging.adapter import GONE, DeadLetterStore, StoredLetter
from messaging.errors import InvalidMessage, MessageTooLarge
from messaging.partition import partition_of
from messaging_memory.record import Record, row_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.adapter import Gone, GroupSpec
    from messaging.errors import PublishError
    from messaging.message import Message
    from messaging_memory.broker import Connection
    from messaging_memory.group import DeadLetter, Group
    from messaging_memory.topology import TopologyKeeper


class _Scan:
    """One look at the letters; they can be taken while it is open."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True


class MemoryDeadLetters(DeadLetterStore):
    """See `messaging.adapter.DeadLetterStore`. Each call raises Closed or ConnectionFailed too."""

    def __init__(
        self,
        connection: Connection,
        ensure: Callable[[], None],
        topology: TopologyKeeper,
        group: GroupSpec,
        *,
        maximum: int,
    ) -> None:
        self._connection = connection
        self._ensure = ensure
        self._topology = topology
        self._spec = group
        self._maximum = maximum

    async def count(self) -> int:
        return len(self._group().dead)

    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        return self._scan()

    @asynccontextmanager
    async def _scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        scan = _Scan()
        try:
            yield self._letters(scan, list(self._group().dead.values()))
        finally:
            scan.open = False

    async def _letters(self, scan: _Scan, letters: Sequence[DeadLetter]) -> AsyncIterator[StoredLetter]:
        topic = self._spec.topic.name
        for letter in letters:
            yield StoredLetter(letter.record.message(topic), letter.failure, (scan, letter))

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        group = self._group()
        results = [self._redrive(group, *item) for item in letters]
        self._connection.broker.touch()
        return results

    def _redrive(
        self, group: Group, stored: StoredLetter, message: Message, failure: str | None
    ) -> PublishError | Gone | None:
        letter = self._letter(stored)
        if group.dead.get(letter.number) is not letter:
            return GONE
        partition = letter.record.partition
        if message.key is not None:
            partition = partition_of(message.key, len(group.topic.partitions))
        now = self._connection.broker.clock.time()
        row, size = row_of(message, now, letter.record.reply_to, self._maximum)
        if size > self._maximum:
            return MessageTooLarge(
                f"dead letter {message.id} was not redriven: it has {size} bytes, the memory broker carries "
                f"{self._maximum} (option max_message_bytes)"
            )
        record = Record(row, partition)
        record.position = f"{letter.record.position}-r{letter.number}"
        group.redrive(record, failure)
        del group.dead[letter.number]
        return None

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        dead = self._group().dead
        numbers = [
            letter.number for letter in map(self._letter, letters) if dead.get(letter.number) is letter
        ]
        for number in set(numbers):
            del dead[number]
        return len(set(numbers))

    def _letter(self, stored: StoredLetter) -> DeadLetter:
        scan: _Scan
        letter: DeadLetter
        scan, letter = stored.reference
        if not scan.open:
            raise InvalidMessage("this dead letter is of a scan that has ended: scan again")
        return letter

    def _group(self) -> Group:
        self._ensure()
        return self._topology.declared_group(self._spec)
