"""How many members an ordered group has: each consumes the group's queue of members, so the broker counts them.

That queue is always empty, and of one node of a cluster. While that node is away its place is taken by a spare, which
whoever misses it first makes on a node that is there. A member consumes every one that it has ever met, so that they
agree on a number whichever of them they can ask: the largest.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelNotFoundEntity

from messaging.errors import ConnectionFailed, TopicNotFound
from messaging_rabbitmq.calls import NodeAway
from messaging_rabbitmq.connection import abandon, close_channel, translated, when_closed

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging.adapter import GroupSpec
    from messaging_rabbitmq.session import Session

ANSWER = 5.0
"""Seconds for which a queue may be silent before a spare is asked: its node may hang."""
AGAIN = 5.0
"""Seconds until one whose node was away is asked again."""


class Members:
    """One member's place in the count."""

    def __init__(self, session: Session, group: GroupSpec) -> None:
        self._session = session
        self._group = group
        self._queues = session.names.members(group)
        self._joined: dict[str, AbstractChannel] = {}
        self._away: dict[str, float] = {}
        """When each that did not answer is asked again."""
        self._problem: ConnectionFailed | None = None

    async def join(self) -> None:
        """Be counted. Raises TopicNotFound where there is no group, ConnectionFailed where nobody counts now."""
        if await self.count() is None:
            raise self._problem or ConnectionFailed(f"nobody counts the members of group {self._group.name}")

    async def count(self) -> int | None:
        """The members, this one included; None while nobody can tell."""
        counts: list[int] = []
        for queue in self._queues:
            # The spares of a node that is there are needless, but to those that have met them.
            if (queue in self._joined or not counts) and (number := await self._ask(queue)) is not None:
                counts.append(number)
        return max(counts, default=None)

    async def _ask(self, queue: str) -> int | None:
        """None where its node is away."""
        now = self._session.clock.monotonic()
        if now < self._away.get(queue, now):
            return None
        try:
            with translated(f"balancing group {self._group.name}", self._session.settings.address):
                async with asyncio.timeout(ANSWER):
                    try:
                        if queue not in self._joined:
                            await self._join(queue)
                        return (
                            await self._joined[queue].queue_declare(queue, passive=True)
                        ).consumer_count or 0
                    except ChannelNotFoundEntity:
                        raise missing(self._session, self._group, queue) from None
        except TopicNotFound:
            if queue == self._queues[0]:
                raise
            return None
        except ConnectionFailed as error:
            self._problem = error
            self._away[queue] = self._session.clock.monotonic() + AGAIN
            if (channel := self._joined.pop(queue, None)) is not None:
                abandon(channel)
            return None

    async def _join(self, queue: str) -> None:
        channel = await self._session.consuming.channel()
        joined = False
        try:
            if queue != self._queues[0]:
                await channel.queue_declare(queue, durable=True)
            channel.on_consumer_cancel_callbacks.add(lambda _: self._gone(queue, channel))
            await channel.basic_consume(queue, _nothing)
            joined = True
        finally:
            if not joined:
                abandon(channel)
        self._joined[queue] = channel
        when_closed(channel, partial(self._gone, queue, channel))

    def _gone(self, queue: str, channel: AbstractChannel) -> None:
        """It was deleted, or its node left: the next count tells."""
        if self._joined.get(queue) is channel:
            del self._joined[queue]
            abandon(channel)

    async def leave(self) -> None:
        """Be counted no more."""
        joined, self._joined = self._joined, {}
        for channel in joined.values():
            await close_channel(channel)


async def members_of(session: Session, group: GroupSpec) -> int:
    """The members of an ordered group, for whoever is none. Raises ChannelNotFoundEntity where there is no group."""
    away: NodeAway | None = None
    for queue in session.names.members(group):
        try:
            async with session.consuming.throwaway(f"looking at group {group.name}") as channel:
                return (await channel.queue_declare(queue, passive=True)).consumer_count or 0
        except NodeAway as error:
            away = error
        except ChannelNotFoundEntity:
            if away is None:
                raise
            break
    raise away or AssertionError("unreachable")


def missing(session: Session, group: GroupSpec, queue: str) -> TopicNotFound:
    """What to say of a queue of a group that is not there."""
    return TopicNotFound(
        f"queue {queue!r} of group {group.name}, topic {group.topic.name}, does not exist at "
        f"RabbitMQ {session.settings.address}: it was deleted or never declared. Declare the group, then "
        f"start again."
    )


async def _nothing(_: DeliveredMessage) -> None:
    """The queue of members never holds a message."""
