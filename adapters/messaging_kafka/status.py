"""What the brokers tell of groups: how much waits, who is a member, how many dead letters there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.adapter import GroupInfo, GroupSpec
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_kafka import library, progress
from messaging_kafka.brokers import Committed
from messaging_kafka.library import Place
from messaging_kafka.names import recorded
from messaging_kafka.topology import differs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging_kafka.dead_letters import KafkaDeadLetters
    from messaging_kafka.session import Session

NAMED = 3
"""Partitions that an error names."""


async def group_infos(
    session: Session, letters: Callable[[GroupSpec], KafkaDeadLetters], *, registered: bool
) -> Sequence[GroupInfo]:
    """The groups that this adapter has declared; with `registered`, all of their topics that the broker keeps."""
    topology = session.topology
    groups = dict(topology.groups)
    if registered or groups:
        await topology.registry.refresh()  # once for all
    if registered:
        for state in list(topology.topics.values()):
            for name, record in topology.registry.groups(recorded(state.spec)).items():
                known = groups.get((recorded(state.spec), name), GroupSpec(state.spec, name))
                ordered = bool(record.fields.get("ordered"))
                groups[recorded(state.spec), name] = replace(known, ordered=ordered)
        groups = {
            key: group
            for key, group in groups.items()
            if group.native is not None or topology.registry.get(("group", *key)) is not None
        }
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_info(session, group, letters(group))) for group in groups.values()]
    except BaseExceptionGroup as errors:  # the others follow from the first
        raise errors.exceptions[0] from None
    return [info for one in asked if (info := one.result()) is not None]


async def _info(session: Session, group: GroupSpec, letters: KafkaDeadLetters) -> GroupInfo | None:
    """None where the group is gone."""
    try:
        state = await session.topology.state(group.topic)
        name = session.names.group(group)
        beside = session.names.redrive(group) if group.ordered else session.names.retry(group)
        there = await session.brokers.partitions([state.physical, beside, session.names.dead(group)])
        unled = [
            Place(topic, number)
            for topic, count in there.items()
            for number in range(count)
            if session.brokers.leader(Place(topic, number)) is None
        ]
        stored = there.get(state.physical, state.partitions)
        if state.mode != "off" and group.topic.native is None and stored != group.topic.partitions:
            # Its members end by it within half a minute; those of other programs may have the other count already.
            return _unknown(group, str(differs(group.topic, stored)))
        if unled:
            named = ", ".join(f"partition {place.partition} of {place.topic}" for place in unled[:NAMED])
            more = f" and {len(unled) - NAMED} more" if len(unled) > NAMED else ""
            return _unknown(
                group,
                f"group {group.name} of topic {group.topic.name}: no broker leads {named}{more} at Kafka "
                f"{session.settings.address}. What is in there waits until one that has a copy is back",
            )
        places = [
            Place(topic, number)
            for topic in (state.physical, beside)
            for number in range(there.get(topic, 0))
        ]
        lag = await _lag(session, group, state.physical, places)
        members = await session.brokers.members([name])
        dead = await letters.counted(refresh=False)
    except (TopicNotFound, ConfigurationError):
        return None
    return GroupInfo(
        group.topic.name,
        group.name,
        lag=lag,
        members=len(members.get(name, ())),
        dead_letters=dead,
        generation=group.topic.generation,
        ordered=group.ordered,
    )


async def _lag(session: Session, group: GroupSpec, main: str, places: Sequence[Place]) -> int:
    """How many messages the group has not handled in these partitions, those of `main` among them.

    A partition of `main` without a position counts only where it came after the group: it is read from its beginning.
    """
    committed = await session.brokers.committed(session.names.group(group), places)
    ends = await session.brokers.offsets(dict.fromkeys(places, library.LATEST))
    known = {
        place: committed.get(place, Committed(0))
        for place in ends
        if place in committed or place.topic != main or session.topology.newer(group, place.partition)
    }
    short = [place for place, position in known.items() if ends[place] < position.offset]
    starts = await session.brokers.offsets(dict.fromkeys(short, library.EARLIEST)) if short else {}
    # A log that ends before the position is read from its beginning.
    known |= {place: Committed(start) for place, start in starts.items()}
    return sum(progress.left(position, ends[place]) for place, position in known.items())


def _unknown(group: GroupSpec, stuck: str) -> GroupInfo:
    """A group of which the figures cannot be told."""
    return GroupInfo(
        group.topic.name, group.name, generation=group.topic.generation, ordered=group.ordered, stuck=stuck
    )
