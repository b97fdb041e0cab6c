"""Which generations of a topic are kept, and where each of them is (16).

The queues know nothing of partitions: a FIFO queue keeps the order of each key by itself. So a generation that changes
nothing but their number is a word in the record, and is stored where the one before it is; there is nothing to drain.
One that changes order has topics and queues of its own.

The record of a generation is a queue that is always empty. Of two operators who begin the same one at once the second
is refused: a queue is made once, and its attributes say what it stands for.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.adapter import GONE, DeadLetterStore, Outgoing, Topology
from messaging.errors import ConfigurationError
from messaging_sqs.dead_letters import SQSDeadLetters, no_letters
from messaging_sqs.record import FORMAT, ORDERED, PARTITIONS, TOPIC
from messaging_sqs.settings import LONGEST_LEASE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from messaging.adapter import Gone, GroupInfo, GroupSpec, StoredLetter, TopicSpec
    from messaging.errors import PublishError
    from messaging.message import Message
    from messaging_sqs.connection import Connection
    from messaging_sqs.topology import TopologyKeeper


class Generations:
    """See `Adapter.generations` and what follows it there; and the place of each generation."""

    def __init__(self, connection: Connection, topology: TopologyKeeper) -> None:
        self._connection = connection
        self._topology = topology
        self._kept: dict[str, list[TopicSpec]] = {}
        """As far as it was read: what is on record never changes."""

    # --- the record --------------------------------------------------------------------------------------------

    async def kept(self, topic: TopicSpec) -> list[TopicSpec]:
        known = self._kept.get(topic.name)
        if known is None:
            first = await self._first(replace(topic, generation=1))
            if first is None:
                return []
            known = self._kept[topic.name] = [first]
        while (following := await self._begun(known[-1])) is not None:
            known.append(following)
        return [
            replace(topic, generation=one.generation, partitions=one.partitions, ordered=one.ordered)
            for one in known
        ]

    async def _first(self, topic: TopicSpec) -> TopicSpec | None:
        for ordered in (topic.ordered, not topic.ordered):
            spec = replace(topic, ordered=ordered)
            tags = await self._topology.tags(spec)
            if tags is not None:
                return _described(spec, tags)
        return None

    async def _begun(self, former: TopicSpec) -> TopicSpec | None:
        spec = replace(former, generation=former.generation + 1)
        queues = self._topology.queues
        url = await queues.find(self._topology.names.generation(spec))
        return None if url is None else _described(spec, await queues.tags(url))

    async def begin(self, topic: TopicSpec) -> None:
        shape = {PARTITIONS: str(topic.partitions), ORDERED: str(topic.ordered).lower()}
        attributes = {
            "VisibilityTimeout": str(min(topic.partitions, LONGEST_LEASE)),
            "ReceiveMessageWaitTimeSeconds": str(int(topic.ordered)),
        }
        name, queues = self._topology.names.generation(topic), self._topology.queues
        try:
            url = await queues.create(name, {**shape, FORMAT: "1", TOPIC: topic.name}, more=attributes)
            begun = _described(topic, await queues.tags(url)) == topic
        except ConfigurationError as error:
            raise self._begun_otherwise(topic) from error
        if not begun:
            raise self._begun_otherwise(topic)

    def _begun_otherwise(self, topic: TopicSpec) -> ConfigurationError:
        return ConfigurationError(
            f"generation {topic.generation} of topic {topic.name!r} is on record at "
            f"{self._connection.address} with another number of partitions than {topic.partitions}, or "
            f"another order: somebody else began it; look at it before you go on"
        )

    def finished(self, group: GroupSpec) -> range:
        """All: what follows an ordered generation in order is in the same queue, behind it."""
        return range(group.topic.partitions)

    # --- where a generation is ---------------------------------------------------------------------------------

    def stored(self, topic: TopicSpec) -> TopicSpec:
        """The generation whose topics and queues this one uses: the first since order was changed last."""
        number = topic.generation
        if number == 1 or topic.native is not None:
            return topic
        shapes = {one.generation: one for one in self._kept.get(topic.name, ())}
        while (former := shapes.get(number - 1)) is not None and former.ordered == topic.ordered:
            number = former.generation
        return (
            topic
            if number == topic.generation
            else replace(topic, generation=number, partitions=shapes[number].partitions)
        )

    def stored_group(self, group: GroupSpec) -> GroupSpec:
        """The group where it is stored."""
        topic = self.stored(group.topic)
        return group if topic is group.topic else replace(group, topic=topic)

    def stored_topology(self, topology: Topology) -> Topology:
        """What is to be declared, where it is stored."""
        return Topology(
            list(dict.fromkeys(self.stored(topic) for topic in topology.topics)),
            list(dict.fromkeys(self.stored_group(group) for group in topology.groups)),
            topology.mode,
        )

    def stored_messages(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """The messages, to where their topics are stored."""
        if all(one.topic.generation == 1 for one in messages):
            return messages
        return [
            one if (topic := self.stored(one.topic)) is one.topic else replace(one, topic=topic)
            for one in messages
        ]

    def told(self, info: GroupInfo) -> GroupInfo:
        """A group of a place is one of the last generation that is stored there."""
        last = info.generation
        for one in self._kept.get(info.topic, ()):
            if one.generation > last and self.stored(one).generation == info.generation:
                last = one.generation
        return info if last == info.generation else replace(info, generation=last)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        """The letters of a place belong to the first generation that is stored there; the others have none."""
        if self.stored(group.topic) is group.topic:
            return SQSDeadLetters(self._connection, self._topology, group)
        return _Elsewhere()


def _described(spec: TopicSpec, tags: dict[str, str]) -> TopicSpec:
    return replace(
        spec,
        partitions=int(tags.get(PARTITIONS, spec.partitions)),
        ordered=tags.get(ORDERED, str(spec.ordered).lower()) == "true",
    )


class _Elsewhere(DeadLetterStore):
    """Dead letters that are told with those of another generation."""

    async def count(self) -> int:
        return 0

    @asynccontextmanager
    async def scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        yield no_letters()

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        return [GONE] * len(letters)

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        del letters
        return 0
