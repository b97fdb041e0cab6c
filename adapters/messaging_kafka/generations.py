"""Which generations of a topic are kept, and what each group has handled of the former ones (16).

All of it is in the registry, where the first that was said of a name counts: of two operators who begin the same
generation at once, one is told that the other was first. What a broker knows of topics would not do: one that lags
behind would send a publisher back to a former generation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.errors import ConfigurationError
from messaging_kafka import library, progress
from messaging_kafka.brokers import Committed
from messaging_kafka.library import Place
from messaging_kafka.names import recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import GroupSpec, TopicSpec
    from messaging_kafka.registry import Fields, Name, Record
    from messaging_kafka.session import Session


class Generations:
    """See `Adapter.generations` and what follows it there."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._registry = session.topology.registry

    async def kept(self, topic: TopicSpec) -> list[TopicSpec]:
        await self._registry.refresh()
        begun = self._registry.of("generation", topic.name)
        if not begun:
            return await self._first(replace(topic, generation=1))
        found: list[TopicSpec] = []
        for number in sorted([1, *(int(name[2]) for name in begun)]):
            spec = replace(topic, generation=number)
            record = self._registry.get(("topic", recorded(spec)))
            if record is not None:
                found.append(_described(spec, record))
        return [*await self._as_they_are(found[:-1]), *found[-1:]]

    async def _as_they_are(self, formers: Sequence[TopicSpec]) -> list[TopicSpec]:
        """What is only read is read whole, the partitions that somebody added by hand too."""
        names = [self._session.names.topic(spec) for spec in formers]
        there = await self._session.brokers.partitions(names)
        return [
            replace(spec, partitions=there.get(name, spec.partitions))
            for name, spec in zip(names, formers, strict=True)
        ]

    async def _first(self, spec: TopicSpec) -> list[TopicSpec]:
        name = self._session.names.topic(spec)
        there = await self._session.brokers.partitions([name])
        if name not in there:
            return []
        record = self._registry.get(("topic", recorded(spec)))
        spec = spec if record is None else _described(spec, record)
        return [replace(spec, partitions=there[name])]

    async def begin(self, topic: TopicSpec) -> None:
        name: Name = ("generation", topic.name, str(topic.generation))
        fields: Fields = {"ordered": topic.ordered, "partitions": topic.partitions}
        await self._registry.add({name: fields})
        record = self._registry.get(name)
        if record is None or record.fields != fields:
            raise ConfigurationError(
                f"generation {topic.generation} of topic {topic.name} has {record and dict(record.fields)} on Kafka, "
                f"not {dict(fields)}: somebody else began it; look at it before you go on"
            )

    async def end(self, topic: TopicSpec) -> None:
        await self._registry.add({("ended", recorded(topic)): {}})

    async def ended(self, topic: TopicSpec) -> bool:
        await self._registry.refresh()
        return self._registry.get(("ended", recorded(topic))) is not None

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """A message that was redriven may lie beside the partition, unread: then it is not finished."""
        place = Place(self._session.names.redrive(group), partition)
        brokers = self._session.brokers
        end = (await brokers.offsets({place: library.LATEST}))[place]
        committed = await brokers.committed(self._session.names.group(group), [place])
        if progress.left(committed.get(place, Committed(0)), end):
            return False
        await self._registry.add({("finished", recorded(group.topic), group.name, str(partition)): {}})
        return True

    async def finished(self, group: GroupSpec) -> set[int]:
        await self._registry.refresh()
        found = self._registry.of("finished", recorded(group.topic))
        return {int(name[3]) for name in found if name[2] == group.name}


def _described(spec: TopicSpec, record: Record) -> TopicSpec:
    return replace(
        spec, partitions=int(record.fields["partitions"]), ordered=bool(record.fields.get("ordered"))
    )
