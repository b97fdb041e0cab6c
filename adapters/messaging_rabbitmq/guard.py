"""Marks of suspects of one partition: that a message is run alone is stored before it runs (3).

A partition has at most one owner, and only the owner touches its queue of marks: it reads them when it takes the
partition over, before it consumes, and keeps each unacknowledged until the message is settled.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

from aiormq.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from pamqp.commands import Basic

from messaging.errors import ConnectionFailed
from messaging_rabbitmq.connection import close_channel, translated
from messaging_rabbitmq.frames import parcel_of
from messaging_rabbitmq.properties import unique_id
from messaging_rabbitmq.tiers import SPARES

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging.adapter import GroupSpec, Guard
    from messaging_rabbitmq.session import Session


class Marks:
    """The marks of one partition, while it is owned."""

    def __init__(self, session: Session, group: GroupSpec, partition: int) -> None:
        self._session = session
        self._group = group
        self._queues = [session.names.guard(group, partition, spare) for spare in range(1 + SPARES)]
        self._channel: AbstractChannel | None = None
        self._tags: dict[str, list[int]] = {}
        self._found: dict[str, Guard] = {}

    async def read(self) -> None:
        """What former owners left. Most partitions have no queue of marks, and few of those a spare."""
        for queue in self._queues:
            async with self._session.consuming.throwaway(f"looking for queue {queue}") as channel:
                try:
                    kept = await channel.queue_declare(queue, passive=True)
                except ChannelNotFoundEntity:
                    return
            if kept.message_count:
                await self._read_on(queue)

    async def _read_on(self, queue: str) -> None:
        """Take what is in the queue, and keep it unacknowledged."""
        if self._channel is None:
            self._channel = await self._session.consuming.channel()
        while True:
            with translated(f"reading queue {queue}", self._session.settings.address):
                async with asyncio.timeout(self._session.settings.operation_timeout):
                    original = await self._channel.basic_get(queue)
            if isinstance(original.delivery, Basic.GetEmpty):
                return
            message_id, member = _mark(original)
            tags = self._tags.setdefault(message_id, [])
            tags.append(original.delivery_tag or 0)
            # This process set the mark and still lives: only the connection was lost.
            survived = member == self._session.member
            self._found.setdefault(message_id, "alone" if survived else "tripped")

    def guard_of(self, message_id: str) -> Guard:
        """What the marks say of a message that has just arrived."""
        return self._found.get(message_id, "none")

    async def add(self, message_id: str) -> None:
        """Store the mark, confirmed. Raises ConnectionFailed."""
        session = self._session
        queue = await session.topology.queues.marks(self._group, self._queues)
        if queue is None:
            return  # the topology setting forbids the queue: the message runs alone, without a mark
        body = json.dumps({"id": message_id, "member": session.member}).encode()
        properties = Basic.Properties(delivery_mode=2, message_id=unique_id())
        fate = (await session.sender.send([parcel_of("", queue, properties, body)]))[0]
        if fate != "stored":
            session.topology.forget()
            raise ConnectionFailed(f"message {message_id} could not be isolated: {fate}")
        await self._read_on(queue)

    async def remove(self, message_id: str) -> None:
        """The message is settled, or given back by a process that lives."""
        self._found.pop(message_id, None)
        for tag in self._tags.pop(message_id, ()):
            if self._channel is not None:
                try:
                    await self._channel.basic_ack(tag, wait=False)
                except (AMQPError, ChannelInvalidStateError):
                    return  # the channel is gone, and the marks are read again with the next claim

    async def close(self, *, graceful: bool) -> None:
        """Leave the partition. A process that gives back in peace takes the marks of what it held with it."""
        if graceful:
            for message_id in list(self._tags):
                await self.remove(message_id)
        if self._channel is not None:
            await close_channel(self._channel)


def _mark(original: DeliveredMessage) -> tuple[str, str]:
    try:
        value: object = json.loads(original.body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(value, dict):
        return "", ""
    fields = cast("dict[str, Any]", value)
    return str(fields.get("id", "")), str(fields.get("member", ""))
