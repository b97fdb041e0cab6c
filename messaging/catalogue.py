"""What this bus knows of topics and groups: settings applied, declared on their broker once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError
from messaging.message import Topic
from messaging.names import check_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Start, TopologyMode
    from messaging.routing import Broker, Routing
    from messaging.settings import Settings

logger = logging.getLogger("messaging")


class Catalogue:
    """The topics and groups of one bus. A topic or group is declared before its first use, and only once."""

    def __init__(self, routing: Routing, settings: Settings) -> None:
        self._routing = routing
        self._settings = settings
        self._topics: dict[str, TopicSpec] = {}
        self._untyped: dict[str, Topic[Any]] = {}
        self._declared: dict[str, TopicSpec] = {}
        self._groups: set[GroupSpec] = set()
        self._warned: set[str] = set()
        self._declaring: dict[Broker, asyncio.Lock] = {}
        self._first_uses: Counter[str] = Counter()
        """Topics by who waits to hear that they are declared."""

    def spec(self, topic: Topic[Any]) -> TopicSpec:
        """The topic with the settings applied.

        Raises ConfigurationError when the program describes one topic in two ways.
        """
        settings = self._settings.topic(topic.name)
        spec = TopicSpec(
            name=topic.name,
            ordered=topic.ordered if settings.ordered is None else settings.ordered,
            partitions=topic.partitions if settings.partitions is None else settings.partitions,
            retention=topic.retention if settings.retention is None else settings.retention,
            native=topic.native if settings.native is None else settings.native,
        )
        if spec.partitions < 1:
            raise ConfigurationError(
                f"Topic {spec.name} has {spec.partitions} partitions; it needs one at least"
            )
        known = self._topics.setdefault(topic.name, spec)
        if known != spec:
            raise ConfigurationError(f"Topic {spec.name} is described in two ways: {known} and {spec}")
        return known

    def group(
        self,
        topic: TopicSpec,
        name: str,
        *,
        ordered: bool | None = None,
        start: Start = "latest",
        native: str | None = None,
    ) -> GroupSpec:
        """A group of the topic. Raises ConfigurationError for order that the topic does not keep."""
        settings = self._settings.subscription(topic.name, name)
        wanted = ordered if settings.ordered is None else settings.ordered
        if wanted and not topic.ordered:
            raise ConfigurationError(
                f"Group {name} wants the order that topic {topic.name} does not keep: declare Topic(ordered=True)"
            )
        return GroupSpec(
            topic=topic,
            name=check_group(name),
            ordered=topic.ordered if wanted is None else wanted,
            start=start,
            native=native,
        )

    def known_group(self, topic: Topic[Any], name: str, ordered: bool | None) -> GroupSpec:
        """The group as this bus has declared it; else as the topic and `ordered` describe it."""
        spec = self.spec(topic)
        if ordered is None:
            for known in self._groups:
                if (known.topic.name, known.name) == (spec.name, name):
                    return known
        return self.group(spec, name, ordered=ordered)

    def untyped(self, name: str) -> Topic[Any]:
        """The topic of this name as a plain string names it: untyped payloads, otherwise as already described."""
        topic = self._untyped.get(name)
        if topic is None:
            known = self._topics.get(name)
            topic = (
                Topic(name)
                if known is None
                else Topic(
                    name,
                    ordered=known.ordered,
                    partitions=known.partitions,
                    retention=known.retention,
                    native=known.native,
                )
            )
            self._untyped[name] = topic
        return topic

    def declared(self, topic: Topic[Any]) -> TopicSpec | None:
        """The topic's spec, if it was declared on the broker by this bus and nobody waits in `declare_topic`."""
        return None if topic.name in self._first_uses else self._declared.get(topic.name)

    async def declare_topic(self, topic: Topic[Any]) -> TopicSpec:
        """Declare the topic. Callers go on in the order of their calls, so that publishing keeps it (7)."""
        spec = self.spec(topic)
        self._first_uses[spec.name] += 1
        try:
            await self.declare((), (spec,))
        finally:
            self._first_uses[spec.name] -= 1
            if not self._first_uses[spec.name]:
                del self._first_uses[spec.name]
        return spec

    async def declare(
        self, groups: Sequence[GroupSpec], topics: Sequence[TopicSpec], mode: TopologyMode | None = None
    ) -> None:
        """Declare on the broker what was not declared before; `mode` goes before the settings' topology."""
        mode = mode or self._settings.topology or "declare"
        wanted: dict[Broker, tuple[dict[str, TopicSpec], list[GroupSpec]]] = {}
        for spec in (*topics, *(group.topic for group in groups)):
            wanted.setdefault(self._routing.of(spec.name), ({}, []))[0][spec.name] = spec
        for group in groups:
            wanted[self._routing.of(group.topic.name)][1].append(group)
        for broker, (its_topics, its_groups) in wanted.items():
            async with self._declaring.setdefault(broker, asyncio.Lock()):
                new_topics = tuple(spec for name, spec in its_topics.items() if name not in self._declared)
                new_groups = tuple(group for group in its_groups if group not in self._groups)
                if new_topics or new_groups:
                    await broker.adapter.declare(Topology(new_topics, new_groups, mode))
                    self._declared.update((spec.name, spec) for spec in new_topics)
                    self._groups.update(new_groups)

    def forget(self, group: GroupSpec) -> None:
        """The group was deleted."""
        self._groups = {
            known
            for known in self._groups
            if (known.topic.name, known.name) != (group.topic.name, group.name)
        }

    def warn_unrouted(self, topic: str) -> None:
        """Say once that nobody gets what is published to this topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(
                "Topic %s has no group: what is published to it now reaches nobody. Declare the group first "
                "(run its app, or bus.declare(topic, groups=[...])), or publish with mandatory=True.",
                topic,
                extra={"topic": topic},
            )
