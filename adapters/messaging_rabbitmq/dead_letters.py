"""The dead letters of a group: a quorum queue, read without being consumed.

While a scan is open, another one, or `count`, does not see what it holds.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelNotFoundEntity

from messaging.adapter import GONE, DeadLetterStore, StoredLetter
from messaging.envelope import FAILURE
from messaging.errors import ConfigurationError, PublishError, UnsupportedCapability
from messaging.partition import partition_of
from messaging_rabbitmq.browse import Reading
from messaging_rabbitmq.connection import translated
from messaging_rabbitmq.properties import PARTITION, incoming, packed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from aiormq.abc import AbstractChannel

    from messaging.adapter import Gone, GroupSpec
    from messaging.message import Message
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.session import Session


class Letter:
    """Where a letter of an open scan is."""

    __slots__ = ("channel", "reading", "removed", "tag")

    def __init__(self, reading: Reading, channel: AbstractChannel, tag: int) -> None:
        self.reading = reading
        self.channel = channel
        self.tag = tag
        self.removed = False


class RabbitMQDeadLetters(DeadLetterStore):
    """See `DeadLetterStore`."""

    def __init__(self, session: Session, group: GroupSpec) -> None:
        if group.native is not None:
            raise UnsupportedCapability(
                f"the dead letters of group {group.name} are where the adopted queue {group.native!r} sends them: "
                f"read them there"
            )
        self._session = session
        self._group = group
        self._queue = session.names.dead(group)

    async def count(self) -> int:
        # A group of another shape than the broker's has other queues.
        await self._session.topology.check(self._group)
        async with self._session.consuming.throwaway(f"counting queue {self._queue}") as channel:
            try:
                return (await channel.queue_declare(self._queue, passive=True)).message_count or 0
            except ChannelNotFoundEntity:
                raise self._absent() from None

    @asynccontextmanager
    async def scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        reading = Reading(self._session, self._queue, await self.count())
        try:
            yield self._letters(reading)
        finally:
            await reading.end()

    async def _letters(self, reading: Reading) -> AsyncIterator[StoredLetter]:
        async for channel, original in reading.messages():
            tag = original.delivery_tag or 0
            delivery = incoming(
                original,
                topic=self._group.topic.name,
                position=f"{self._queue}/{tag}",
                partitions=self._group.topic.partitions,
            )
            yield StoredLetter(delivery.message, delivery.failure, Letter(reading, channel, tag))

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        await self._session.topology.check(self._group)
        results: list[PublishError | Gone | None] = [None] * len(letters)
        parcels: list[Parcel] = []
        sent: list[int] = []
        for index, (letter, message, failure) in enumerate(letters):
            if letter.reference.removed:
                results[index] = GONE
                continue
            try:
                parcels.append(self._parcel(message, failure))
                sent.append(index)
            except PublishError as error:
                results[index] = error
        for index, fate in zip(sent, await self._session.sender.send(parcels), strict=True):
            letter = letters[index][0]
            if isinstance(fate, PublishError):
                results[index] = fate
            elif fate == "unrouted":
                results[index] = PublishError(
                    f"message {letter.message.id} was not redriven: group {self._group.name} of topic "
                    f"{self._group.topic.name} has no queue at RabbitMQ {self._session.settings.address}"
                )
            else:
                await self._remove(letter)
        return results

    def _parcel(self, message: Message, failure: str | None) -> Parcel:
        group = self._group
        # A message without a key keeps to one partition by its id.
        partition = partition_of(message.id if message.key is None else message.key, group.topic.partitions)
        control = {PARTITION: str(partition)}
        if failure is not None:
            control[FAILURE] = failure
        queue = self._session.names.queue(group, partition if group.ordered else None)
        # The failure record has room beside the message.
        limit = self._session.settings.max_message_bytes + len(failure or "") + 1024
        return packed(
            "", queue, message, limit=limit, table_limit=self._session.consuming.table_limit, extra=control
        )

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        await self._session.topology.check(self._group)
        purged = 0
        for letter in letters:
            purged += await self._remove(letter)
        return purged

    async def _remove(self, letter: StoredLetter) -> bool:
        reference: Letter = letter.reference
        if reference.removed:
            return False
        with translated(f"removing from queue {self._queue}", self._session.settings.address):
            async with asyncio.timeout(self._session.settings.operation_timeout):
                await reference.channel.basic_ack(reference.tag, wait=False)
        reference.removed = True
        reference.reading.held -= 1
        return True

    def _absent(self) -> ConfigurationError:
        return ConfigurationError(
            f"group {self._group.name} of topic {self._group.topic.name} has no queue {self._queue!r} for dead letters "
            f"at RabbitMQ {self._session.settings.address}: declare the group first"
        )
