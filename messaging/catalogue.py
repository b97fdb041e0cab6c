"""What this bus knows of topics and groups: settings applied, declared on their broker once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.backoff import LEFT_ALONE, Backoff
from messaging.clock import sleep
from messaging.errors import (
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
    PublishError,
    TopicNotFound,
    is_fatal,
)
from messaging.message import Topic
from messaging.names import check_group
from messaging.together import Together

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from messaging.adapter import Adapter, GroupInfo, Start, TopologyMode
    from messaging.clock import Clock
    from messaging.routing import Broker, Routing
    from messaging.settings import Settings

logger = logging.getLogger("messaging")

MOST_PARTITIONS = 10_000
"""Of one topic. A program that owns an ordered group keeps something for each of them."""


def kept_apart(adapter: Adapter) -> bool:
    """Whether this broker can change a topic."""
    return adapter.capabilities.generations.level != "unsupported"


class Catalogue:
    """The topics and groups of one bus. A topic or group is declared before its first use, and only once."""

    def __init__(self, routing: Routing, settings: Settings, clock: Clock) -> None:
        self._routing = routing
        self._settings = settings
        self._clock = clock
        self._topics: dict[str, TopicSpec] = {}
        self._untyped: dict[str, Topic[Any]] = {}
        self._kept: dict[str, tuple[TopicSpec, ...]] = {}
        """The generations of each topic that was declared, oldest first."""
        self._known_until: dict[str, float] = {}
        """For how long the last of them is the one to write to, in `Clock.monotonic` seconds."""
        self._again: set[str] = set()
        """Topics to be declared once more with their next use."""
        self._lost_since: dict[str, float] = {}
        """Since when the broker has no such topic any more."""
        self._groups: set[GroupSpec] = set()
        self._modes: dict[tuple[str, str], TopologyMode] = {}
        """Of the groups that were declared in another mode than the settings'."""
        self._unordered: set[tuple[str, str]] = set()
        """Topics and groups of them that give order up, whatever the topic does."""
        self._warned: set[str] = set()
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By topic: of several, in the order of their names. What is known of a topic changes under its lock only."""
        self._declaring: defaultdict[Broker, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while a broker is asked or told something; taken after a topic's, and never while publishes end."""
        self._first_uses: Counter[str] = Counter()
        """Topics by who waits to hear that they are declared."""
        self._together: dict[str, Together[TopicSpec]] = {}
        for broker in routing.brokers:
            broker.refusals.unrouted, broker.refusals.lost = self._warn_unrouted, self._lose

    def spec(self, topic: Topic[Any]) -> TopicSpec:
        """The topic with the settings applied; of `untyped` as it is described, as soon as it is.

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
        # What untyped code passes may be anything.
        if type(spec.partitions) is not int or not 1 <= spec.partitions <= MOST_PARTITIONS:
            raise ConfigurationError(
                f"Topic {spec.name} has {spec.partitions!r} partitions; it takes 1 to {MOST_PARTITIONS}, each of which "
                f"is a stream or a queue of its own on some broker"
            )
        if spec.retention is not None and not 0 < spec.retention < inf:
            raise ConfigurationError(
                f"Topic {spec.name} has a retention of {spec.retention:g} s; it must be above 0, or None for no bound"
            )
        known = self._topics.get(spec.name)
        if self._untyped.get(spec.name) is topic:
            return known or spec
        if known is None:
            known = self._topics[spec.name] = spec
            if spec.name in self._untyped:
                self._describe(spec)
        if known != spec:
            raise ConfigurationError(f"Topic {spec.name} is described in two ways: {known} and {spec}")
        return known

    def _describe(self, spec: TopicSpec) -> None:
        """What was declared by a plain name is declared once more, as it is described now: the broker compares."""
        if spec.name in self._kept:
            self._again.add(spec.name)
        self._groups = {
            group for group in self._groups if group.topic.name != spec.name or group.topic == spec
        }

    def group(
        self,
        topic: TopicSpec,
        name: str,
        *,
        ordered: bool | None = None,
        start: Start = "latest",
        native: str | None = None,
    ) -> GroupSpec:
        """A group of the topic; a `start` without a zone is UTC. Raises ConfigurationError for order that the topic
        does not keep, and for a `start` that is none.
        """
        if start not in ("latest", "earliest") and not isinstance(start, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
            raise ConfigurationError(
                f'Group {name} of topic {topic.name} has start={start!r}; it takes "latest", "earliest" or a datetime'
            )
        name = check_group(name)
        settings = self._settings.subscription(topic.name, name)
        wanted = ordered if settings.ordered is None else settings.ordered
        if wanted and not topic.ordered:
            raise ConfigurationError(
                f"Group {name} wants the order that topic {topic.name} does not keep: declare Topic(ordered=True)"
            )
        if wanted is False:
            self._unordered.add((topic.name, name))
        return GroupSpec(
            topic=topic,
            name=name,
            ordered=topic.ordered if wanted is None else wanted,
            # Without a zone, `timestamp()` takes the machine's own, which every other time of ours does not.
            start=start.replace(tzinfo=UTC)
            if isinstance(start, datetime) and start.tzinfo is None
            else start,
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
        """The topic of this name as a plain string names it: untyped payloads, otherwise as described (`spec`)."""
        topic = self._untyped.get(name)
        if topic is None:
            topic = self._untyped[name] = Topic(name)
        return topic

    def declared(self, topic: Topic[Any]) -> TopicSpec | None:
        """The generation to write to, if this bus knows it and nobody waits in `declare_topic`."""
        name = topic.name
        kept = self._kept.get(name)
        if kept is None or self._clock.monotonic() >= self._known_until[name]:
            return None
        if not (self._first_uses or self._lost_since or self._again):  # as it is mostly, of any topic
            return kept[-1]
        unsettled = name in self._first_uses or name in self._lost_since or name in self._again
        return None if unsettled else kept[-1]

    def _is_new(self, topic: str) -> bool:
        """Whether it has to be declared, for the first time or once more."""
        return topic not in self._kept or topic in self._again

    async def declare_topic(self, topic: Topic[Any]) -> TopicSpec:
        """Declare the topic, or look for its generation. Callers go on in the order of their calls (7)."""
        spec = self.spec(topic)
        with self.using(spec.name):
            together = self._together.setdefault(spec.name, Together())
            return await together.get(lambda: self._write_generation(topic))

    async def _write_generation(self, topic: Topic[Any]) -> TopicSpec:
        name = topic.name
        broker = self._routing.of(name)
        async with self._changing[name]:  # once: who waits for it twice would be overtaken
            self._leave_alone(name)
            while True:
                spec = self.spec(topic)
                if self._is_new(name):
                    await self._declare(broker, {name: spec}, ())
                try:
                    kept = await self._refresh(spec)
                except PublishError:
                    raise
                except MessagingError as error:
                    raise PublishError(f"nothing was published to topic {name}: {error}") from error
                if not self._is_new(name):  # else it was described meanwhile
                    return kept[-1]

    @contextmanager
    def using(self, topic: str) -> Generator[None]:
        """Meanwhile `declared` knows no generation of this topic to write to."""
        self._first_uses[topic] += 1
        try:
            yield
        finally:
            self._first_uses[topic] -= 1
            if not self._first_uses[topic]:
                del self._first_uses[topic]

    # --- generations ---------------------------------------------------------------------------------------------

    def kept(self, spec: TopicSpec) -> Sequence[TopicSpec]:
        """The topic's generations as this bus knows them, oldest first; the last is written."""
        return self._kept.get(spec.name, (spec,))

    def in_generation(self, group: GroupSpec, spec: TopicSpec) -> GroupSpec:
        """The group as it is on this generation of its topic."""
        if spec == group.topic:
            return group
        ordered = spec.ordered and (spec.name, group.name) not in self._unordered
        return replace(group, topic=spec, ordered=ordered)

    async def refresh(self, spec: TopicSpec, *, at_once: bool = False) -> Sequence[TopicSpec]:
        """Look whether a declared topic has a new generation, unless that was known lately; all that are kept.

        The groups of this bus are declared on a new one, and what was being published to the last one is finished.
        """
        async with self._changing[spec.name]:
            return await self._refresh(spec, at_once=at_once)

    async def _refresh(self, spec: TopicSpec, *, at_once: bool = False) -> Sequence[TopicSpec]:
        known = self.kept(spec)
        if not at_once and self._clock.monotonic() < self._known_until.get(spec.name, 0.0):
            return known
        async with self._declaring[self._routing.of(spec.name)]:
            kept, until = await self._look(spec)
        if kept != known and spec.name in self._kept:
            with self.using(spec.name):
                await self._move(spec.name, known, kept)
        self._known_until[spec.name] = until
        return kept

    async def _look(self, spec: TopicSpec) -> tuple[tuple[TopicSpec, ...], float]:
        """What the broker keeps, and until when that counts.

        Raises ConfigurationError where the program describes none of these generations.
        """
        adapter = self._routing.of(spec.name).adapter
        if spec.native is not None or not kept_apart(adapter):
            return (spec,), inf
        until = self._clock.monotonic() + self._settings.generation_interval
        kept = tuple(await adapter.generations(spec))
        known = self._kept.get(spec.name, (spec,))
        if known[-1].generation > max((one.generation for one in kept), default=1):
            kept = await self._record_again(adapter, known, kept)
        if not any(one.generation > 1 for one in kept):
            return (spec,), until  # what differs, `declare` tells
        described = f"{spec.partitions} partitions, ordered={spec.ordered}"
        if all((one.partitions, one.ordered) != (spec.partitions, spec.ordered) for one in kept):
            raise ConfigurationError(
                f"Topic {spec.name} has {kept[-1].partitions} partitions, ordered={kept[-1].ordered}, in generation "
                f"{kept[-1].generation}, and this program asks for {described}: say the same, or begin a new generation"
            )
        return kept, until

    async def _record_again(
        self, adapter: Adapter, known: tuple[TopicSpec, ...], kept: tuple[TopicSpec, ...]
    ) -> tuple[TopicSpec, ...]:
        """The broker has lost its record of generations. Who went back would leave what is in the last one unread."""
        if self._settings.topology != "declare":
            return kept
        name = known[-1].name
        groups = [
            replace(
                self.in_generation(group, one), start="earliest"
            )  # what is there by now came after the loss
            for one in known
            for group in self._groups
            if group.topic.name == name and self._modes.get((name, group.name), "declare") == "declare"
        ]
        try:
            await adapter.declare(Topology(known, groups, "declare"))
            for one in known:
                if one.generation > 1:
                    await adapter.begin_generation(one)
        except ConfigurationError:  # somebody has begun anew with other numbers
            return kept
        logger.error(
            "%s has lost the record of the generations of topic %s: it is made anew, up to generation %d.",
            *(adapter.capabilities.broker, name, known[-1].generation),
            extra={"topic": name, "generation": known[-1].generation},
        )
        return known

    async def _move(self, name: str, known: Sequence[TopicSpec], kept: tuple[TopicSpec, ...]) -> None:
        broker = self._routing.of(name)
        new = [one for one in kept if one not in known]
        groups = [group for group in self._groups if group.topic.name == name]
        async with self._declaring[broker]:
            for one in new:
                its_groups = [self.in_generation(group, one) for group in groups]
                await broker.adapter.declare(Topology((one,), tuple(its_groups), self._settings.topology))
        if known[-1].ordered:
            await broker.publisher.idle(name)
        self._kept[name] = kept

    async def declare(
        self,
        groups: Sequence[GroupSpec],
        topics: Sequence[TopicSpec],
        mode: TopologyMode | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Declare on the broker what was not declared before; `mode` goes before the settings' topology.

        `again`: what was, too. It may have been deleted since, and a start compares with the broker's record (16).
        Where the connection breaks meanwhile, it is tried again for as long as connecting may take.
        """
        wanted: dict[Broker, tuple[dict[str, TopicSpec], list[GroupSpec]]] = {}
        for spec in (*topics, *(group.topic for group in groups)):
            wanted.setdefault(self._routing.of(spec.name), ({}, []))[0][spec.name] = spec
        for group in groups:
            wanted[self._routing.of(group.topic.name)][1].append(group)
        for broker, (its_topics, its_groups) in wanted.items():
            async with AsyncExitStack() as changing:
                for name in sorted(its_topics):
                    await changing.enter_async_context(self._changing[name])
                await self._persist(broker, its_topics, its_groups, mode, again=again)

    async def _persist(
        self,
        broker: Broker,
        topics: Mapping[str, TopicSpec],
        groups: Sequence[GroupSpec],
        mode: TopologyMode | None,
        *,
        again: bool,
    ) -> None:
        backoff = Backoff()
        until = self._clock.monotonic() + self._settings.connect_timeout
        while True:
            try:
                if again:
                    await self._forget(topics.values(), groups)
                await self._declare(broker, topics, groups, mode)
            except ConnectionFailed as error:
                wait = backoff.next()
                if is_fatal(error) or self._clock.monotonic() + wait >= until:
                    raise
                logger.info(
                    "Declaring %s was interrupted: %s. Trying again.",
                    *(", ".join(topics), error),
                    extra={"topics": sorted(topics)},
                )
                await sleep(self._clock, wait)
            else:
                return

    async def _forget(self, topics: Iterable[TopicSpec], groups: Iterable[GroupSpec]) -> None:
        """Declare these anew when they are next asked for; a new generation is moved to first, as it is always."""
        for spec in topics:
            if spec.name in self._kept:
                await self._refresh(spec, at_once=True)
                self._again.add(spec.name)
        self._groups.difference_update(groups)

    async def renew(self, group: GroupSpec) -> bool:
        """Declare a group of ours, and its topic, anew: the broker has lost them.

        False where it may not be declared. Raises what `declare` raises.
        """
        mode = self._modes.get((group.topic.name, group.name)) or self._settings.topology
        if mode != "declare":
            return False
        await self.declare([group], [group.topic], mode, again=True)
        return True

    def _lose(self, topic: str) -> None:
        """The broker has no such topic any more: the first publish after `LEFT_ALONE` seconds declares it anew."""
        self._lost_since.setdefault(topic, self._clock.monotonic())

    def _leave_alone(self, topic: str) -> None:
        """Raises TopicNotFound until the time of a lost topic is over.

        Whoever has seen that it is gone declares it before it publishes, even if others have made it anew: it may not
        be connected with all of its groups yet.
        """
        if topic not in self._lost_since:
            return
        left = self._lost_since[topic] + LEFT_ALONE - self._clock.monotonic()
        if left > 0:
            raise TopicNotFound(
                f"nothing was published: topic {topic} was deleted on the broker. It is left alone for {left:.1f} s "
                f"more, then the next publish declares it anew"
            )
        self._again.add(topic)

    async def _declare(
        self,
        broker: Broker,
        topics: Mapping[str, TopicSpec],
        groups: Sequence[GroupSpec],
        mode: TopologyMode | None = None,
    ) -> None:
        """Each on every generation that is kept of its topic."""
        async with self._declaring[broker]:
            looked = {name: await self._look(spec) for name, spec in topics.items() if self._is_new(name)}
            new_topics = [one for kept, _ in looked.values() for one in kept]
            groups = [group for group in groups if group not in self._groups]
            new_groups: list[GroupSpec] = []
            for group in groups:
                kept, _ = looked.get(group.topic.name) or (self.kept(group.topic), 0.0)
                new_groups += [self.in_generation(group, one) for one in kept]
            if new_topics or new_groups:
                mode = mode or self._settings.topology or "declare"
                await broker.adapter.declare(Topology(tuple(new_topics), tuple(new_groups), mode))
        for name, (kept, until) in looked.items():
            self._kept[name], self._known_until[name] = kept, until
            self._lost_since.pop(name, None)
            described = self._topics.get(name, topics[name]) == topics[name]
            (self._again.discard if described else self._again.add)(name)
        self._groups.update(groups)
        if mode is not None:
            self._modes |= {(group.topic.name, group.name): mode for group in groups}

    def forget(self, group: GroupSpec) -> None:
        """The group was deleted."""
        self._groups = {
            known
            for known in self._groups
            if (known.topic.name, known.name) != (group.topic.name, group.name)
        }

    def _warn_unrouted(self, topic: str) -> None:
        """Say once that nobody gets what is published to this topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(
                "Topic %s has no group: what is published to it now reaches nobody. Declare the group first "
                "(run its app, or bus.declare(topic, groups=[...])), or publish with mandatory=True.",
                topic,
                extra={"topic": topic},
            )


def merged(infos: Sequence[GroupInfo]) -> list[GroupInfo]:
    """One for each group: its generations together."""
    found: dict[tuple[str, str], GroupInfo] = {}
    for info in infos:
        known = found.get((info.topic, info.group))
        if known is not None:
            ages = [age for age in (known.oldest, info.oldest) if age is not None]
            info = replace(  # noqa: PLW2901  what is known of the group so far
                info,
                lag=_sum(known.lag, info.lag),
                members=None if known.members is None else max(known.members, info.members or 0),
                dead_letters=_sum(known.dead_letters, info.dead_letters),
                oldest=max(ages) if ages else None,
                stuck=known.stuck or info.stuck,
            )
        found[info.topic, info.group] = info
    return list(found.values())


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
