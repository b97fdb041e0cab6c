"""Which member of an ordered group owns which partitions: an equal share for each, without a coordinator.

A fair share is the partitions divided by the number of members (`Members`). A partition that nobody consumes is
claimed by declaring an exclusive queue as its lock: the broker grants it to one connection and drops it with that
connection. It may fail to drop it: after its virtual host crashed it refuses such a lock to everybody, for a
connection that is long gone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity

from messaging.errors import MessagingError
from messaging.shielded import given_up, shielded
from messaging_rabbitmq.connection import close_channel, translated, when_closed
from messaging_rabbitmq.members import Members, missing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from aiormq.abc import AbstractChannel

    from messaging.adapter import GroupSpec
    from messaging_rabbitmq.session import Session

logger = logging.getLogger("messaging")

TICK = 0.5
"""Seconds between two looks at the shares: how long a partition may be without an owner."""
TAKING = 8.0
"""Seconds in which a member that has a partition's lock must consume its queue; else it starts again."""
UNOWNED = 10.0
"""Seconds after which a lock is nobody's if its partition has no consumer, and the next one is asked for. It is
longer than `TAKING`. Should an owner live all the same, the queue still has a single active consumer.
"""

CLAIM_TIMEOUT = 2.0
"""Seconds that a member that leaves waits for the answer to its last claim."""


class Seat:
    """One member's seat in its group."""

    def __init__(self, session: Session, group: GroupSpec) -> None:
        self._session = session
        self._group = group
        self._partitions = group.topic.partitions
        self._channel: AbstractChannel | None = None
        self._connection: Any = None
        self._members = Members(session, group)
        self._locks: dict[int, str] = {}
        self._asking: asyncio.Task[bool] | None = None
        """A lock that is asked for: it may be granted to a claim that was cancelled."""
        self._refused: dict[int, list[float]] = {}
        """Since when each lock of a partition is refused while nobody consumes the partition."""
        self._first = random.randrange(self._partitions)
        self.gone = asyncio.Event()

    async def take(self) -> None:
        """Be counted as a member."""
        session = self._session
        channel = await session.consuming.channel()
        self._channel = channel
        self._connection = session.consuming.current
        when_closed(channel, self.gone.set)
        await self._members.join()

    async def share(self, owned: int) -> int:
        """How many partitions this member may own. While nobody can tell, it keeps those that it has."""
        members = await self._members.count()
        return owned if members is None else math.ceil(self._partitions / max(1, members))

    async def claim(self, owned: Collection[int], wanted: int) -> AsyncGenerator[int]:
        """Up to `wanted` more partitions that nobody consumes, each now locked for us: consume it before the next."""
        claimed = 0
        for offset in range(self._partitions):
            if claimed >= wanted:
                break
            partition = (self._first + offset) % self._partitions
            lock = self._session.names.own(self._group, partition)
            if partition in owned or lock in self._session.claimed:
                continue
            if await self._look(self._session.names.queue(self._group, partition)) > 0:
                self._refused.pop(partition, None)
            elif await self._lock(partition):
                self._refused.pop(partition, None)
                claimed += 1
                yield partition

    async def _lock(self, partition: int) -> bool:
        refused = self._refused.setdefault(partition, [])
        for spare in count():
            lock = self._session.names.own(self._group, partition, spare)
            if lock in self._session.claimed:
                return False
            self._asking = asyncio.create_task(self._ask(partition, lock), name="messaging-rabbitmq-claim")
            if await shielded(self._asking):
                return True
            now = self._session.clock.monotonic()
            if spare == len(refused):
                refused.append(now)
            if now - refused[spare] < UNOWNED:
                return False
            logger.warning(
                "Nobody has consumed partition %d of %s/%s for %.0f s, and RabbitMQ keeps its lock %r for a connection "
                "that does not: going on with another lock. Restart the broker's node when you can.",
                partition,
                self._group.topic.name,
                self._group.name,
                now - refused[spare],
                lock,
                extra={"topic": self._group.topic.name, "group": self._group.name, "partition": partition},
            )
        raise AssertionError("unreachable")

    async def _ask(self, partition: int, lock: str) -> bool:
        self._session.claimed.add(lock)
        self._locks[partition] = lock
        granted = False
        try:
            async with self._session.consuming.throwaway(f"claiming partition {partition}") as channel:
                try:
                    await channel.queue_declare(lock, exclusive=True)
                    granted = True
                except ChannelLockedResource:
                    return False
        finally:
            if not granted:
                self._session.claimed.discard(lock)
                self._locks.pop(partition, None)  # a member that leaves may have forgotten it
        return True

    async def unlock(self, partition: int) -> None:
        """Another member may claim it."""
        lock = self._locks.pop(partition, None)
        if lock is None:
            return
        try:
            # A lock goes with its connection; asking on a new one would be of no use.
            if self._connection is not None and self._session.consuming.current is self._connection:
                async with self._session.consuming.throwaway(f"giving up partition {partition}") as channel:
                    await channel.queue_delete(lock)
        finally:
            self._session.claimed.discard(lock)

    async def leave(self) -> None:
        """Be a member no more. What is still locked was claimed by what was cancelled, or its connection is gone."""
        if self._asking is not None:
            await given_up((self._asking,), CLAIM_TIMEOUT)
        for partition in list(self._locks):
            with suppress(MessagingError):  # it goes with its connection, or others take it after `UNOWNED`
                await self.unlock(partition)
        await self._members.leave()
        if self._channel is not None:
            await close_channel(self._channel)

    def forget(self) -> None:
        """Other consumers of this adapter may ask for what this one had."""
        self._session.claimed.difference_update(self._locks.values())
        self._locks.clear()

    async def _look(self, queue: str) -> int:
        """The consumers of a queue."""
        assert self._channel is not None
        with translated(f"balancing group {self._group.name}", self._session.settings.address):
            async with asyncio.timeout(self._session.settings.operation_timeout):
                try:
                    return (await self._channel.queue_declare(queue, passive=True)).consumer_count or 0
                except ChannelNotFoundEntity:
                    raise missing(self._session, self._group, queue) from None


def new_fence() -> int:
    """A number for a new owner: microseconds of the wall clock. It grows with each owner as far as the members'
    clocks agree; the broker itself refuses the settlements of a former owner, whose channel is gone.
    """
    return time.time_ns() // 1000
