"""Declaring: create or verify topics and groups; the broker's record is the truth (16)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.errors import ConfigurationError
from messaging.names import NameRules, physical

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec, Topology
    from messaging_memory.broker import Broker
    from messaging_memory.group import Group
    from messaging_memory.log import TopicLog

RULES = NameRules(maximum=1000)


def physical_topic(spec: TopicSpec, namespace: str | None) -> str:
    """The broker's name of a topic; an adopted one is used as it is (17)."""
    if spec.native is not None:
        return spec.native
    return physical(RULES, "topic", topic=spec.name, namespace=namespace, generation=spec.generation)


def physical_group(spec: GroupSpec) -> str:
    """The broker's name of a group, within its topic."""
    return spec.name if spec.native is None else spec.native


class TopologyKeeper:
    """What one adapter has declared, and how it looks for it."""

    def __init__(self, broker: Broker, *, namespace: str | None, history: int | None) -> None:
        self._broker = broker
        self._namespace = namespace
        self._history = history
        self.topics: dict[str, TopicSpec] = {}
        """By physical name."""

    def declare(self, topology: Topology) -> None:
        """Topics first, then groups; all of it is checked before anything is created."""
        specs = [*topology.topics, *(group.topic for group in topology.groups)]
        if topology.mode != "off":
            for spec in specs:
                self._check_topic(spec, create=topology.mode == "declare")
            for group in topology.groups:
                self._check_group(group, create=topology.mode == "declare")
        if topology.mode == "declare":
            for spec in specs:
                self._broker.create_topic(
                    physical_topic(spec, self._namespace),
                    known_as=spec.native or spec.name,
                    partitions=spec.partitions,
                    ordered=spec.ordered,
                    retention=spec.retention,
                    history=self._history,
                )
            for group in topology.groups:
                self._broker.create_group(
                    self.topic(group.topic), physical_group(group), ordered=group.ordered, start=group.start
                )
        for spec in specs:
            self.topics[physical_topic(spec, self._namespace)] = spec
        self._broker.touch()

    def generations(self, spec: TopicSpec) -> list[TopicSpec]:
        """The first, if it is there, and those that were begun."""
        first = replace(spec, generation=1)
        known = self._broker.topics.get(physical_topic(first, self._namespace))
        if known is None:
            return []
        return [
            replace(spec, generation=number, partitions=len(log.partitions), ordered=log.ordered)
            for number, log in enumerate([known, *known.successors], 1)
        ]

    def begin_generation(self, spec: TopicSpec) -> None:
        log, first = self.topic(spec), self.topic(replace(spec, generation=1))
        if log not in first.successors:
            first.successors.append(log)
        self._broker.touch()

    def topic(self, spec: TopicSpec) -> TopicLog:
        """Raises TopicNotFound."""
        return self._broker.topic(physical_topic(spec, self._namespace), known_as=spec.native or spec.name)

    def group(self, spec: GroupSpec) -> Group:
        """Raises TopicNotFound, or ConfigurationError where the broker's record of its order differs."""
        group = self._broker.group(self.topic(spec.topic), physical_group(spec))
        _same(f"group {spec.name} of topic {spec.topic.name}", "ordered", spec.ordered, group.ordered)
        return group

    def declared_group(self, spec: GroupSpec) -> Group:
        """The group, for a program that only looks. Raises TopicNotFound, or ConfigurationError where the topic has
        no such group or the broker's record of either differs.
        """
        self._check_topic(spec.topic, create=False)
        if physical_group(spec) not in self.topic(spec.topic).groups:
            raise ConfigurationError(
                f"topic {spec.topic.name!r} has no group {spec.name!r} on memory broker {self._broker.name!r}: "
                f"declare it, or correct the name"
            )
        return self.group(spec)

    def _check_topic(self, spec: TopicSpec, *, create: bool) -> None:
        if (
            create
            and spec.native is None
            and physical_topic(spec, self._namespace) not in self._broker.topics
        ):
            return
        topic = self.topic(spec)
        _same(f"topic {spec.name}", "partitions", spec.partitions, len(topic.partitions))
        _same(f"topic {spec.name}", "ordered", spec.ordered, topic.ordered)

    def _check_group(self, spec: GroupSpec, *, create: bool) -> None:
        topic = self._broker.topics.get(physical_topic(spec.topic, self._namespace))
        exists = topic is not None and physical_group(spec) in topic.groups
        if exists or not create or spec.native is not None:
            self.group(spec)


def _same(what: str, name: str, said: object, recorded: object) -> None:
    if said != recorded:
        raise ConfigurationError(
            f"{what} was created on the memory broker with {name}={recorded!r}, but the program says "
            f"{name}={said!r}: use the broker's value, or another name"
        )
