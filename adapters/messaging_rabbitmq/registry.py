"""Which groups a topic has: AMQP lists nothing, so the broker keeps a small queue of them for us.

Each entry is one durable message. Whoever reads or changes it holds the queue as its exclusive consumer, so a
declaration and a deletion of the same topic's groups never overlap; closing the channel gives all entries back.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from pamqp.commands import Basic

from messaging.errors import ConnectionFailed
from messaging_rabbitmq.arrivals import callback_of
from messaging_rabbitmq.connection import abandon, close_channel, translated
from messaging_rabbitmq.properties import unique_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging_rabbitmq.connection import Link

BUSY_PAUSE = 0.02
"""The broker sends no event when an exclusive consumer goes."""


@dataclass(slots=True)
class Entries:
    """The groups of one topic, while they are held. The value says whether the group keeps order."""

    channel: AbstractChannel
    queue: str
    groups: dict[str, bool] = field(default_factory=dict[str, bool])
    begun: set[str] = field(default_factory=set[str])
    """Those whose declaration did not end: their queues may be useless."""
    tags: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    async def begin(self, group: str, *, ordered: bool) -> None:
        """Say that its queues will be there, confirmed."""
        await self._publish({"group": group, "ordered": ordered, "begun": True})
        self.groups[group] = ordered
        self.begun.add(group)

    async def end(self, group: str) -> None:
        """Say that its queues are there, confirmed."""
        await self._publish({"group": group, "ordered": self.groups[group]})
        self.begun.discard(group)

    async def _publish(self, record: dict[str, Any]) -> None:
        await self.channel.basic_publish(
            json.dumps(record).encode(),
            routing_key=self.queue,
            properties=Basic.Properties(delivery_mode=2, message_id=unique_id()),
            mandatory=True,
        )

    async def remove(self, group: str) -> None:
        self.groups.pop(group, None)
        for tag in reversed(self.tags.pop(group, [])):  # cut off, it leaves that the group was begun
            await self.channel.basic_ack(tag)


class Registry:
    """The groups of topics, as the broker keeps them."""

    def __init__(self, link: Link, timeout: float) -> None:
        self._link = link
        self._timeout = timeout

    async def groups(self, queue: str) -> dict[str, bool]:
        """The groups and whether each keeps order; none where nothing is kept."""
        async with self.held(queue, create=False) as entries:
            return {} if entries is None else dict(entries.groups)

    @asynccontextmanager
    async def held(self, queue: str, *, create: bool) -> AsyncGenerator[Entries | None]:
        """The entries, held by us alone. None where the queue does not exist and is not to be created.

        Raises ConnectionFailed when another program holds it for too long.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        while isinstance(entries := await self._hold(queue, create=create), bool):
            if asyncio.get_running_loop().time() > deadline:
                raise ConnectionFailed(
                    f"queue {queue} at RabbitMQ {self._link.address} was held by another program for more than "
                    f"{self._timeout:g} s: it is declaring or deleting a group, or hangs"
                )
            await asyncio.sleep(BUSY_PAUSE)
        if entries is None:
            yield None
            return
        try:
            yield entries
        except BaseException:
            abandon(entries.channel)
            raise
        await close_channel(entries.channel)

    async def _hold(self, queue: str, *, create: bool) -> Entries | bool | None:
        """The entries, None where there is no queue, False where another holds it."""
        channel = await self._link.channel(confirms=True)
        # Deleted just after we made it: try again.
        entries: Entries | bool | None = False if create else None
        try:
            with translated(f"reading queue {queue}", self._link.address), suppress(ChannelNotFoundEntity):
                entries = await self._claim(channel, queue, create=create)
        finally:
            if not isinstance(entries, Entries):
                abandon(channel)
        return entries

    async def _claim(self, channel: AbstractChannel, queue: str, *, create: bool) -> Entries | bool:
        arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
        try:
            return await self._read(channel, queue, arrived, create=create)
        except ChannelAccessRefused as error:
            if "exclusive" not in str(error):
                raise
            return False

    async def _read(
        self, channel: AbstractChannel, queue: str, arrived: asyncio.Queue[DeliveredMessage], *, create: bool
    ) -> Entries:
        if create:
            await channel.queue_declare(queue, durable=True)
        await channel.basic_consume(queue, callback_of(arrived.put_nowait), exclusive=True)
        # Counted only now that nobody else can hold entries: what is ready is delivered to us.
        entries = Entries(channel, queue)
        return await self._collect(entries, arrived)

    async def _collect(self, entries: Entries, arrived: asyncio.Queue[DeliveredMessage]) -> Entries:
        # A marker of our own ends the entries: the queue is first in, first out, and gives back to the front.
        end, ended = unique_id(), set[str]()
        await entries.channel.basic_publish(
            b"",
            routing_key=entries.queue,
            properties=Basic.Properties(delivery_mode=1, message_id=end),
            mandatory=True,
        )
        while True:
            async with asyncio.timeout(self._timeout):
                message = await arrived.get()
            tag = message.delivery_tag or 0
            if message.header.properties.message_id == end:
                await entries.channel.basic_ack(tag)
                entries.begun = entries.groups.keys() - ended
                return entries
            record = _record(message.body)
            if record is None:  # the marker of a program that died, or nothing of ours
                await entries.channel.basic_ack(tag)
                continue
            name, ordered, begun = record
            if not begun:
                ended.add(name)
            entries.groups[name] = ordered
            entries.tags.setdefault(name, []).append(tag)


def _record(body: bytes) -> tuple[str, bool, bool] | None:
    """The group, whether it keeps order, and whether its declaration has only begun."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    name, ordered = fields.get("group"), fields.get("ordered")
    if not isinstance(name, str) or not isinstance(ordered, bool):
        return None
    return name, ordered, "begun" in fields
