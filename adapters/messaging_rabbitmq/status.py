"""What the broker tells of groups: how much waits, who consumes, how many dead letters there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelNotFoundEntity

from messaging.adapter import GroupInfo, GroupSpec
from messaging.errors import TopicNotFound
from messaging_rabbitmq.members import members_of
from messaging_rabbitmq.ownership import UNOWNED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_rabbitmq.session import Session

AT_ONCE = 8
"""Channels that look at groups at the same time."""


async def group_infos(session: Session, *, registered: bool) -> Sequence[GroupInfo]:
    """The groups that this adapter has declared; with `registered`, all of their topics that the broker keeps.

    Else raises TopicNotFound where a topic of them is gone: their queues get nothing, and no queue tells that.
    """
    groups = dict(session.topology.groups)
    if registered:
        for topic in list(session.topology.topics.values()):
            if topic.native is not None:
                continue
            kept = await session.topology.registry.groups(session.names.registry(topic))
            for name, ordered in kept.items():
                place = (topic.name, topic.generation, name)
                known = groups.get(place, GroupSpec(topic, name))
                groups[place] = replace(known, ordered=ordered)
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ask(group: GroupSpec) -> GroupInfo | None:
        async with at_once:
            return await _info(session, group, of_topic=not registered)

    try:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(group)) for group in groups.values()]
    except BaseExceptionGroup as errors:  # the others follow from the first
        raise errors.exceptions[0] from None
    return [info for one in asked if (info := one.result()) is not None]


async def _info(session: Session, group: GroupSpec, *, of_topic: bool) -> GroupInfo | None:
    """None where the group is gone."""
    names = session.names
    lag = members = 0
    dead: int | None = None
    async with session.consuming.throwaway(f"looking at group {group.name}") as channel:
        try:
            for queue in names.queues(group):
                state = await channel.queue_declare(queue, passive=True)
                lag += state.message_count or 0
                members += state.consumer_count or 0
                if state.message_count and not state.consumer_count:
                    session.unread.setdefault(queue, session.clock.monotonic())
                else:
                    session.unread.pop(queue, None)
            if group.ordered:
                members = await members_of(session, group)
            elif group.native is None:
                lag += (await channel.queue_declare(names.suspects(group), passive=True)).message_count or 0
            if group.native is None:
                dead = (await channel.queue_declare(names.dead(group), passive=True)).message_count
        except ChannelNotFoundEntity:
            return None
        if of_topic and group.topic.native is None:
            exchange = names.exchange(group.topic)
            try:
                await channel.exchange_declare(exchange, passive=True)
            except ChannelNotFoundEntity:
                raise TopicNotFound(
                    f"RabbitMQ at {session.settings.address} has no exchange {exchange!r} any more: somebody deleted "
                    f"topic {group.topic.name}, and its groups get nothing until it is declared anew"
                ) from None
    return GroupInfo(
        group.topic.name,
        group.name,
        lag=lag,
        members=members,
        dead_letters=dead,
        generation=group.topic.generation,
        ordered=group.ordered,
        stuck=_stuck(session, group),
    )


def _stuck(session: Session, group: GroupSpec) -> str | None:
    """What members cannot see by themselves: the broker hands the messages of a queue to none of them (25, 26)."""
    now = session.clock.monotonic()
    queues = [
        queue for queue in session.names.queues(group) if now - session.unread.get(queue, now) >= UNOWNED
    ]
    if not queues:
        return None
    return (
        f"group {group.name} of topic {group.topic.name}: nobody consumes {', '.join(queues)} at RabbitMQ "
        f"{session.settings.address}, though messages wait there. Members take them up by themselves, each some "
        f"seconds after the last look; where that does not help, start them again, then the broker's node"
    )
