"""The record of a topic's generations: exchanges that nothing is published to, by their names alone (16).

A generation after the first is written to when its mark is there. A partition that a group has handled has a mark too.
An exchange is declared in one step, is durable, costs nothing, and can be looked for without being changed. What a
generation's partitions and order are, its own exchange knows: see `Names.alternate`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from messaging.errors import ConfigurationError
from messaging_rabbitmq.topology import stored_shape

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.names import Names

NO_ALTERNATE = "?"
"""A name that no alternate exchange of ours has: the broker refuses it and tells the one that it has."""


class Generations:
    """See `Adapter.generations` and what follows it there."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._names = names
        self._shapes: dict[str, tuple[int, bool]] = {}
        """Partitions and order by exchange: they never change while it is there."""

    def forget(self) -> None:
        """Ask again what was known."""
        self._shapes.clear()

    async def end(self, topic: TopicSpec) -> None:
        await self._mark(self._names.ended(topic))

    async def ended(self, topic: TopicSpec) -> bool:
        return await self._exists(self._names.ended(topic))

    async def finish(self, group: GroupSpec, partition: int) -> None:
        await self._mark(self._names.finished(group, partition))

    async def kept(self, topic: TopicSpec) -> list[TopicSpec]:
        found: list[TopicSpec] = []
        for number in range(1, 1_000_000):
            spec = replace(topic, generation=number)
            if number > 1 and not await self._exists(self._names.written(spec)):
                break
            shape = await self._shape(spec)
            if shape is None:
                break
            found.append(replace(spec, partitions=shape[0], ordered=shape[1]))
        return found

    async def begin(self, topic: TopicSpec) -> None:
        shape = await self._shape(topic)
        if shape != (topic.partitions, topic.ordered):
            raise ConfigurationError(
                f"generation {topic.generation} of topic {topic.name} has partitions, ordered = {shape} on the broker, "
                f"not {topic.partitions}, {topic.ordered}: somebody else began it; look at it before you go on"
            )
        await self._mark(self._names.written(topic))

    async def finished(self, group: GroupSpec) -> set[int]:
        """Up to the first that is missing."""
        found: set[int] = set()
        async with self._link.throwaway(f"looking what group {group.name} has finished") as channel:
            try:
                for partition in range(group.topic.partitions):
                    await channel.exchange_declare(self._names.finished(group, partition), passive=True)
                    found.add(partition)
            except ChannelNotFoundEntity:
                return found
        return found

    async def _mark(self, name: str) -> None:
        async with self._link.throwaway(f"declaring exchange {name}") as channel:
            await channel.exchange_declare(name, durable=True)

    async def _exists(self, exchange: str) -> bool:
        async with self._link.throwaway(f"looking for exchange {exchange}") as channel:
            try:
                await channel.exchange_declare(exchange, passive=True)
            except ChannelNotFoundEntity:
                return False
        return True

    async def _shape(self, topic: TopicSpec) -> tuple[int, bool] | None:
        """None where the exchange is not there, or is none of ours."""
        exchange = self._names.exchange(topic)
        known = self._shapes.get(exchange)
        if known is not None:
            return known
        if not await self._exists(exchange):
            return None
        async with self._link.throwaway(f"looking at topic {topic.name}") as channel:
            try:
                await channel.exchange_declare(
                    exchange, durable=True, arguments={"alternate-exchange": NO_ALTERNATE}
                )
            except ChannelPreconditionFailed as error:
                shape = stored_shape(str(error))
            except ChannelAccessRefused:  # a user that may not declare: the program's word has to do
                shape = topic.partitions, topic.ordered
            else:
                shape = None
        if shape is not None:
            self._shapes[exchange] = shape
        return shape
