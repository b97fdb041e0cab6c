"""Topics and groups on the broker: created, verified, compared, remembered, deleted.

The number of partitions is Kafka's own record; order, groups and their beginnings are in the registry. A group's first
position is committed when it is declared, so that it misses nothing from then on; a group whose position has expired is
an error, never a silent jump (18).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from math import inf, isfinite
from typing import TYPE_CHECKING

from messaging.adapter import Topology
from messaging.backoff import LEFT_ALONE
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_kafka import library, tiers
from messaging_kafka.brokers import BY_BROKER, KEPT_BY_AGE, SAFE_COPIES, Committed, NewTopic
from messaging_kafka.connection import translate
from messaging_kafka.library import Errors, KafkaError, Place
from messaging_kafka.names import recorded
from messaging_kafka.records import COPY_ROOM
from messaging_kafka.registry import age

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import GroupSpec, Start, TopicSpec, TopologyMode
    from messaging_kafka.brokers import Brokers
    from messaging_kafka.names import Names
    from messaging_kafka.registry import Fields, Name, Record, Registry
    from messaging_kafka.settings import KafkaSettings

logger = logging.getLogger("messaging")

DEAD_PARTITIONS = 2
"""The letters, and the marks of those that were redriven or purged."""
EXPIRY_BOUND = 86400.0
"""Seconds within which no broker forgets a group's position (`offsets.retention.minutes` is a week)."""
MEMBERS_GO = 0.2
"""Seconds between two attempts to say where a group begins that has members already: the broker sends no event."""
MISSED_FOR = 30.0
"""Seconds after which it is another time that something is missed: others have made it anew meanwhile."""
NEVER = -inf
COPIES_KEPT = 7 * 86400.0
"""Seconds for which retries and redriven messages are kept at least, however short their topic's retention. A retry
is written anew at each step of its delay, an hour at most: what this bounds is how long a group may be away.
"""


@dataclass(slots=True)
class TopicState:
    """What this process knows about one topic."""

    spec: TopicSpec
    physical: str
    mode: TopologyMode
    partitions: int
    found: bool = False
    """The broker is known to have it."""
    routed: bool = False
    """It had a group when it was last looked at."""
    looked: float = NEVER
    """When that was (monotonic seconds)."""


class TopologyKeeper:
    """All topics and groups that this adapter was told of."""

    def __init__(self, brokers: Brokers, names: Names, registry: Registry, settings: KafkaSettings) -> None:
        self._brokers = brokers
        self._names = names
        self._settings = settings
        self.registry = registry
        self.topics: dict[tuple[str, str | None], TopicState] = {}
        """By what the registry calls a topic, and the name that it was adopted by."""
        self.groups: dict[tuple[str, str], GroupSpec] = {}
        """By what the registry calls the topic, and the name of the group."""
        self.creates = True
        """Whether topics may be made here: not where all that was declared was only to be verified or remembered."""
        self._modes: set[TopologyMode] = set()
        self._declared: set[tuple[str, str]] = set()
        """Groups that may be declared here, called as in `groups`."""
        self._missed: dict[tuple[str, str], float] = {}
        """When their dead letters were missed first, in monotonic seconds."""
        self._restoring = asyncio.Lock()

    # --- topics ------------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        self._modes.add(topology.mode)
        self.creates = "declare" in self._modes
        topics = {_known_by(topic): topic for topic in topology.topics}
        for group in topology.groups:
            topics.setdefault(_known_by(group.topic), group.topic)
        states = [
            TopicState(topic, self._names.topic(topic), topology.mode, topic.partitions)
            for topic in topics.values()
        ]
        if topology.mode != "off":
            await self._topics(states, topology)
        for state in states:
            self.topics[_known_by(state.spec)] = state
        if topology.mode != "off":
            await self._groups(topology)
        for group in topology.groups:
            key = recorded(group.topic), group.name
            self.groups[key] = group
            if topology.mode == "declare":
                self._declared.add(key)

    async def state(self, topic: TopicSpec) -> TopicState:
        """The topic, declared or looked for now. Raises what `declare` raises, and TopicNotFound."""
        state = self.topics.get(_known_by(topic))
        if state is None:
            await self.declare(Topology(topics=(topic,)))
            state = self.topics[_known_by(topic)]
        if not state.found:
            there = await self._brokers.partitions([state.physical])
            if state.physical not in there:
                raise self._missing(state)
            if state.mode != "off":
                self._compare_partitions(state, there[state.physical])
            state.partitions, state.found = there[state.physical], True
        return state

    def _missing(self, state: TopicState) -> TopicNotFound:
        return TopicNotFound(
            f"topic {state.spec.name} does not exist: Kafka at {self._settings.address} has no topic "
            f"{state.physical}. Declare it first, or let the topology setting declare it."
        )

    async def _topics(self, states: Sequence[TopicState], topology: Topology) -> None:
        wanted = {
            state.physical: NewTopic(state.physical, state.spec.partitions, self._config(state.spec))
            for state in states
            if state.spec.native is None
        }
        if topology.mode == "declare":
            for group in topology.groups:
                wanted |= {one.name: one for one in self._companions(group)}
            if wanted:
                wanted[self.registry.topic.name] = self.registry.topic
        names = list(dict.fromkeys([*wanted, *(state.physical for state in states)]))
        there = await self._brokers.partitions(names)
        if topology.mode == "declare":
            missing = [one for name, one in wanted.items() if name not in there]
            if missing:
                for state in states:
                    if state.physical not in there:
                        await self._begin_anew(state)
                await self._create(missing)
                there |= await self._brokers.partitions([one.name for one in missing])
        for state in states:
            if state.physical not in there:
                raise self._missing(state)
            self._compare_partitions(state, there[state.physical])
            state.found = True
        await self._compare_order([state for state in states if state.spec.native is None], topology.mode)

    async def _begin_anew(self, state: TopicState) -> None:
        """The topic is about to be made, perhaps once more: groups from before begin with its first message.

        Where they once began is a place in another log, and so are their positions, which Kafka deletes with it.
        """
        await self.registry.refresh()
        groups = self.registry.groups(recorded(state.spec))
        starts = [0] * state.spec.partitions
        anew: dict[Name, Fields] = {
            ("group", recorded(state.spec), name): {**record.fields, "starts": starts, "anew": True}
            for name, record in groups.items()
        }
        if anew:
            await self.registry.replace(anew)

    async def begins(self, group: GroupSpec, partitions: Sequence[int]) -> dict[int, int]:
        """Where a group begins in partitions of which it has no position.

        Raises TopicNotFound where its topic is deleted, and its positions with it; ConfigurationError where its
        position is forgotten, not before all had the time to tell of a deletion: members of it end for good.
        """
        state = TopicState(group.topic, self._names.topic(group.topic), "verify", group.topic.partitions)
        for left in (LEFT_ALONE, 0.0):
            # In this order: whoever makes a topic anew says first where its groups begin.
            if state.physical not in await self._brokers.partitions([state.physical]):
                raise self._missing(state)
            await self.registry.refresh()
            begins = {partition: self._start(group, partition) for partition in partitions}
            known = {partition: start for partition, start in begins.items() if start is not None}
            if len(known) == len(begins):
                return known
            await asyncio.sleep(left)
        raise self.expired(group)

    def _start(self, group: GroupSpec, partition: int) -> int | None:
        """Where a group begins that has no position; None where the position is forgotten.

        A partition that was added to the topic is read from its beginning. Of a topic that was made anew while
        the group had members, nobody else could commit where it begins.
        """
        if self.newer(group, partition):
            return 0
        record = self.registry.get(_name(group))
        if record is None or not record.fields.get("anew") or age(record) > EXPIRY_BOUND:
            return None
        starts = record.fields.get("starts", ())
        return int(starts[partition]) if partition < len(starts) else None

    async def recorded(self, group: GroupSpec) -> bool:
        """Whether the group is on record: whoever deletes a group takes it out."""
        await self.registry.refresh()
        return self.registry.get(_name(group)) is not None

    async def restore(self, group: GroupSpec) -> bool:
        """Make the topic of a group's dead letters anew, which was missed here; whether it is there now.

        Not before it was left alone, not of a group that was deleted, and not where the group may not be declared.
        Raises what `declare` raises.
        """
        key, now = (recorded(group.topic), group.name), time.monotonic()
        if key not in self._declared:
            return False
        since = self._missed.get(key, -inf)
        if now - since > MISSED_FOR:
            since = self._missed[key] = now
        if now - since < LEFT_ALONE:
            return False
        async with self._restoring:
            if not await self.recorded(group):
                return False
            dead = self._names.dead(group)
            made = await self._create([one for one in self._companions(group) if one.name == dead])
            self._missed.pop(key, None)
        if made:
            logger.warning(
                "The dead letters of group %s of topic %s were deleted on Kafka: topic %s is made anew, what was in it "
                "is lost",
                group.name,
                group.topic.name,
                dead,
                extra={"topic": group.topic.name, "group": group.name},
            )
        return True

    async def _create(self, topics: Sequence[NewTopic]) -> set[str]:
        if not topics:
            return set()
        copies = await self._brokers.replication(topics[0].name)
        if copies >= SAFE_COPIES:
            topics = [
                NewTopic(one.name, one.partitions, {**one.config, "min.insync.replicas": "2"})
                for one in topics
            ]
        return await self._brokers.create(topics, copies)

    def _config(self, topic: TopicSpec, *, room: int = 64 * 1024, at_least: float = 0.001) -> dict[str, str]:
        retention = self._settings.retention if topic.retention is None else topic.retention
        kept = max(retention, at_least)
        return {
            **KEPT_BY_AGE,
            **BY_BROKER,
            "retention.ms": str(int(kept * 1000)) if isfinite(kept) else "-1",
            "max.message.bytes": str(self._settings.max_message_bytes + room),
        }

    def _companions(self, group: GroupSpec) -> list[NewTopic]:
        """What a group has beside its topic."""
        names, topic = self._names, group.topic
        passing = self._config(topic, room=COPY_ROOM, at_least=COPIES_KEPT)
        letters = self._config(topic, room=COPY_ROOM, at_least=inf)
        dead = NewTopic(names.dead(group), DEAD_PARTITIONS, letters)
        if group.ordered:
            return [dead, NewTopic(names.redrive(group), topic.partitions, passing)]
        return [dead, NewTopic(names.retry(group), tiers.TIERS + topic.partitions, passing)]

    def _compare_partitions(self, state: TopicState, stored: int) -> None:
        state.partitions = stored
        if stored != state.spec.partitions and state.spec.native is None:
            raise differs(state.spec, stored)

    async def _compare_order(self, states: Sequence[TopicState], mode: TopologyMode) -> None:
        if not states:
            return
        await self.registry.refresh()
        if mode == "declare":
            await self.registry.add(
                {
                    _record(state.spec): _topic_fields(state.spec)
                    for state in states
                    if self.registry.get(_record(state.spec)) is None
                }
            )
        for state in states:
            _compare_topic(state.spec, self.registry.get(_record(state.spec)))

    # --- groups ------------------------------------------------------------------------------------------------

    async def _groups(self, topology: Topology) -> None:
        if not topology.groups:
            return
        await self.registry.refresh()
        if topology.mode == "declare":
            new: dict[Name, Fields] = {}
            for group in topology.groups:
                if self.registry.get(_name(group)) is None:
                    new[_name(group)] = {"ordered": group.ordered, "starts": await self._starts(group)}
            await self.registry.add(new)
        for group in topology.groups:
            record = self.registry.get(_name(group))
            if record is None and topology.mode == "verify" and group.native is None:
                raise TopicNotFound(
                    f"group {group.name} of topic {group.topic.name} does not exist on Kafka at "
                    f"{self._settings.address}: declare it first, or let the topology setting declare it."
                )
            if record is not None:
                _compare_group(group, record)
                if topology.mode == "declare":
                    await self._begin(group, record)
            state = self.topics[_known_by(group.topic)]
            state.routed, state.looked = True, time.monotonic()

    async def _starts(self, group: GroupSpec) -> list[int]:
        """Where the group begins, for each partition of its topic."""
        state = self.topics[_known_by(group.topic)]
        places = [Place(state.physical, number) for number in range(state.partitions)]
        latest = await self._brokers.offsets(dict.fromkeys(places, library.LATEST), committed=True)
        found = await self._brokers.offsets(dict.fromkeys(places, _moment(group.start)), committed=True)
        return [found[place] if found[place] >= 0 else latest[place] for place in places]

    async def _begin(self, group: GroupSpec, record: Record) -> None:
        """Commit the first positions, where that was not done."""
        topic = self._names.topic(group.topic)
        name = self._names.group(group)
        starts = [int(one) for one in record.fields.get("starts", ())]
        places = [Place(topic, number) for number in range(len(starts))]
        until = time.monotonic() + self._settings.operation_timeout
        while True:
            committed = await self._brokers.committed(name, places)
            absent = {
                place: Committed(start)
                for place, start in zip(places, starts, strict=True)
                if place not in committed
            }
            if not absent:
                return
            if age(record) > EXPIRY_BOUND:
                raise self.expired(group)
            try:
                await self._brokers.begin(name, absent)
            except (Errors.UnknownMemberIdError, Errors.IllegalGenerationError):
                # It has members: of those who declared it with us, or of a group of this name that was deleted.
                known = group.native is not None or record.fields.get("anew")  # they know where it begins
                if known or time.monotonic() > until:
                    return
                await asyncio.sleep(MEMBERS_GO)
            except KafkaError as error:
                raise translate(error, f"declaring group {group.name}", self._settings.address) from error
            else:
                return

    def newer(self, group: GroupSpec, partition: int) -> bool:
        """Whether a partition was added to the topic after the group was declared: the group begins with it."""
        record = self.registry.get(_name(group))
        return record is not None and 0 < len(record.fields.get("starts", ())) <= partition

    async def fit(self, group: GroupSpec, partitions: int) -> None:
        """The redrive topic of an ordered group has as many partitions as its topic, which others may have given more.

        Raises ConfigurationError naming both where it has fewer and nothing may be made here.
        """
        name = self._names.redrive(group)
        if not group.ordered:
            return
        there = (await self._brokers.partitions([name])).get(name)
        if there is None or there >= partitions:  # who reads it tells that it is gone
            return
        if not self.creates:
            raise ConfigurationError(
                f"topic {group.topic.native or group.topic.name} has {partitions} partitions on Kafka, and {name}, "
                f"which group {group.name} needs beside it, has {there}: give it as many, or let a member declare its "
                f"topology"
            )
        await self._brokers.grow(name, partitions)

    def expired(self, group: GroupSpec) -> ConfigurationError:
        """The error for a group whose position the broker has forgotten."""
        return ConfigurationError(
            f"group {group.name} of topic {group.topic.name} was declared, but Kafka has no position of it any more: "
            f"no member was there for offsets.retention.minutes, or the topic was deleted and made "
            f"again. Delete the group and declare it again with the start that is right."
        )

    async def check(self, group: GroupSpec, *, refresh: bool = True) -> None:
        """Raises TopicNotFound where the topic is absent, ConfigurationError where the group is, or differs.

        Without `refresh`, by what was read of the registry last.
        """
        topic, dead = self._names.topic(group.topic), self._names.dead(group)
        state = TopicState(group.topic, topic, "verify", group.topic.partitions)
        there = await self._brokers.partitions([topic, dead])
        if topic not in there:
            raise self._missing(state)
        self._compare_partitions(state, there[topic])
        if refresh:
            await self.registry.refresh()
        if group.topic.native is None:
            _compare_topic(group.topic, self.registry.get(_record(group.topic)))
        record = self.registry.get(_name(group))
        if dead not in there or record is None:
            raise ConfigurationError(
                f"group {group.name} of topic {group.topic.name} does not exist on Kafka at {self._settings.address}: "
                f"it has no dead letters; declare it first"
            )
        _compare_group(group, record)

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`. Of an adopted consumer group, only what is ours beside it."""
        names = self._names
        await self.registry.refresh()
        finished = [
            name for name in self.registry.of("finished", recorded(group.topic)) if name[2] == group.name
        ]
        known = [_name(group)] if self.registry.get(_name(group)) is not None else []
        if known or finished:
            # First: a member that finds a topic gone, and its group on record, makes it anew.
            await self.registry.remove(*known, *finished)
        if group.native is None:
            await self._brokers.delete_group(names.group(group))
        companions = [names.dead(group), names.retry(group), names.redrive(group)]
        there = await self._brokers.partitions(companions)
        await self._brokers.delete(list(there))
        self.groups.pop((recorded(group.topic), group.name), None)
        self._declared.discard((recorded(group.topic), group.name))
        state = self.topics.get(_known_by(group.topic))
        if state is not None:
            state.routed = False
            state.looked = NEVER

    def registered(self, topic: TopicSpec) -> bool:
        """Whether the topic has a group, as far as the registry was read."""
        return bool(self.registry.groups(recorded(topic)))


def differs(topic: TopicSpec, stored: int) -> ConfigurationError:
    """The error for a topic that has another count of partitions than the program asks for."""
    return ConfigurationError(
        f"topic {topic.name} has {stored} partitions on Kafka, and this program asks for {topic.partitions}: the "
        f"broker's record counts. Set the same in the topic or its settings, or change it by `messaging generations "
        f"begin`. A topic that was grown by hand has lost the order of its keys."
    )


def _name(group: GroupSpec) -> Name:
    return ("group", recorded(group.topic), group.name)


def _record(topic: TopicSpec) -> Name:
    return ("topic", recorded(topic))


def _known_by(topic: TopicSpec) -> tuple[str, str | None]:
    return recorded(topic), topic.native


def _topic_fields(topic: TopicSpec) -> Fields:
    return {"ordered": topic.ordered, "partitions": topic.partitions}


def _moment(start: Start) -> int:
    if isinstance(start, datetime):
        return max(0, int(start.timestamp() * 1000))
    return library.EARLIEST if start == "earliest" else library.LATEST


def _compare_topic(topic: TopicSpec, record: Record | None) -> None:
    if record is not None and bool(record.fields.get("ordered")) != topic.ordered:
        asked, stored = _spoken(topic.ordered), _spoken(not topic.ordered)
        raise ConfigurationError(
            f"topic {topic.name} is {stored} on Kafka, and this program asks for {asked}: the broker's record counts. "
            f"Correct the program, or change it by `messaging generations begin`."
        )


def _compare_group(group: GroupSpec, record: Record) -> None:
    if bool(record.fields.get("ordered")) != group.ordered:
        asked, stored = _spoken(group.ordered), _spoken(not group.ordered)
        raise ConfigurationError(
            f"group {group.name} of topic {group.topic.name} is {stored} on Kafka, and this program asks for {asked}: "
            f"subscribe alike, or delete the group, or use another group name"
        )


def _spoken(ordered: bool) -> str:
    return "ordered" if ordered else "unordered"
