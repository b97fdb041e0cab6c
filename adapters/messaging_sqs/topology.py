"""Topics and groups on the services: created, verified, remembered, listed and deleted.

A topic is an SNS topic, or with `fanout=client` a queue that is always empty; its tags are the record of partitions
and order (16). A group is a queue and one for its dead letters. What exists is compared, never changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from messaging.adapter import GroupInfo, GroupSpec
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_sqs.connection import Absent, Denied, Throttled
from messaging_sqs.delivery import delivery_policy, lets_send, not_let, subscribe
from messaging_sqs.lost_letters import warn_lost
from messaging_sqs.names import Names, is_fifo, owner_of, queue_name, twin
from messaging_sqs.queues import Queues
from messaging_sqs.record import (
    FORMAT,
    GENERATION,
    GROUP,
    ORDERED,
    PARTITIONS,
    TOPIC,
    WRITTEN,
    compare,
    different_order,
    group_tags,
    spoken,
    yes,
)
from messaging_sqs.settings import LONGEST_RETENTION, SHORTEST_RETENTION, SNS_DEFAULT_BYTES
from messaging_sqs.state import TopicState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import TopicSpec, Topology, TopologyMode
    from messaging_sqs.connection import Connection

logger = logging.getLogger("messaging")

Key: TypeAlias = "tuple[str, str | None, int]"
_WAITING = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed")


class TopologyKeeper:
    """All topics and groups that this adapter was told of."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._settings = connection.settings
        self.names = Names(connection.settings)
        self.queues = Queues(connection)
        self._states: dict[Key, TopicState] = {}
        self._groups: dict[tuple[Key, str], GroupSpec] = {}
        self._urls: dict[str, str] = {}

    def state(self, topic: TopicSpec) -> TopicState:
        """What is known of a topic, declared or not."""
        state = self._states.get(_key(topic))
        if state is None:
            state = self._states[_key(topic)] = self._new_state(topic, "off")
        return state

    def _new_state(self, topic: TopicSpec, mode: TopologyMode) -> TopicState:
        if topic.native is not None or self._settings.fanout == "client":
            return TopicState(topic, mode)
        return TopicState(topic, mode, self._connection.topic_arn(self.names.topic(topic)))

    async def queue_url(self, group: GroupSpec) -> str:
        """Where the group's messages are. Raises TopicNotFound."""
        return await self._url(group, group.native or self.names.queue(group))

    async def forget_queue(self, group: GroupSpec) -> bool:
        """The group's queue is gone; whether only that, and the queue for its dead letters is still there."""
        if group.native is not None:
            return False
        self._urls.pop(self.names.queue(group), None)
        return await self.queues.find(self.names.dead(group)) is not None

    async def has_queue(self, group: GroupSpec) -> bool:
        """Whether the group's own queue is there now."""
        try:
            await self.queues.attributes(await self.queue_url(group), "QueueArn")
        except (Absent, TopicNotFound):
            return False
        return True

    async def dead_url(self, group: GroupSpec) -> str:
        """Where the group's dead letters are. Raises TopicNotFound."""
        if group.native is None:
            return await self._url(group, self.names.dead(group))
        policy = (await self.queues.attributes(await self.queue_url(group), "RedrivePolicy")).get(
            "RedrivePolicy"
        )
        if policy is None:
            raise ConfigurationError(
                f"the adopted queue {group.native!r} has no queue for dead letters: give it a redrive policy"
            )
        return await self._url(group, json.loads(policy)["deadLetterTargetArn"])

    async def _url(self, group: GroupSpec, reference: str) -> str:
        url = self._urls.get(reference)
        if url is None:
            url = await self.queues.find(reference)
            if url is None:
                raise self._no_group(group, reference)
            self._urls[reference] = url
        return url

    # --- declare -----------------------------------------------------------------------------------------------

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        topics = {_key(topic): topic for topic in topology.topics}
        for group in topology.groups:
            topics.setdefault(_key(group.topic), group.topic)
        for key, topic in topics.items():
            state = self._new_state(topic, topology.mode)
            state.gone = key in self._states and self._states[key].gone
            if topic.native is not None:
                await self._adopt_topic(state, topic.native)
            elif topology.mode != "off":
                await self._declare_topic(state)
            self._states[key] = state
        for group in topology.groups:
            state = self.state(group.topic)
            if group.native is not None:
                await self._adopt_group(group, group.native)
            elif topology.mode != "off":
                await self._declare_group(group, state)
            self._groups[_key(group.topic), group.name] = group
            state.looked = -1e9

    async def verify(self, group: GroupSpec) -> None:
        """Raises TopicNotFound where topic or group is absent, ConfigurationError where the record differs (16)."""
        state = self.state(group.topic)
        if group.native is not None or state.verified:
            return
        if state.spec.native is None:
            await self._declare_topic(state)
        name = self.names.queue(group)
        if await self.queues.find(name) is None:
            if await self.queues.find(twin(name)) is not None:
                raise different_order(group)
            raise self._no_group(group, name)

    async def _declare_topic(self, state: TopicState) -> None:
        spec = state.spec
        wanted = {
            PARTITIONS: str(spec.partitions),
            ORDERED: yes(spec.ordered),
            FORMAT: WRITTEN,
            TOPIC: spec.name,
        }
        stored = await self._record(state)
        if stored is None:
            if state.arn is not None:
                other = twin(state.arn)
                if await self.queues.topic(other) is not None:
                    compare(spec, await self.queues.topic_tags(other), ordered=is_fifo(other))
            if state.mode != "declare":
                raise TopicNotFound(
                    f"topic {spec.name!r} does not exist at {self._connection.address}, and is not "
                    f"created here: run its app, or call bus.declare, where topology is 'declare'"
                )
            if state.arn is None:
                await self.queues.create(self.names.record(spec), wanted)
            else:
                await self.queues.create_topic(self.names.topic(spec), wanted)
                await self._subscribe_again(state, state.arn)
            stored = await self._record(state) or wanted
        elif state.gone and state.arn is not None and state.mode == "declare":
            await self._subscribe_again(state, state.arn)  # whoever made it anew may not have done so yet
        state.gone = False
        compare(spec, stored, ordered=None if state.arn is None else is_fifo(state.arn))
        state.verified = True

    async def tags(self, topic: TopicSpec) -> dict[str, str] | None:
        """The record of a topic that may not be declared; None where there is no topic."""
        return await self._record(self._new_state(topic, "off"))

    async def _record(self, state: TopicState) -> dict[str, str] | None:
        """The tags of a topic, None where there is no topic."""
        if state.arn is None:
            url = await self.queues.find(self.names.record(state.spec))
            return None if url is None else await self.queues.tags(url)
        attributes = await self.queues.topic(state.arn)
        if attributes is None:
            return None
        if self._connection.is_aws:
            state.limit = int(attributes.get("MaximumMessageSize", SNS_DEFAULT_BYTES))
        return await self.queues.topic_tags(state.arn)

    async def _adopt_topic(self, state: TopicState, native: str) -> None:
        spec = state.spec
        if spec.ordered != is_fifo(native):
            raise ConfigurationError(
                f"topic {spec.name!r} is {spoken(spec.ordered)} in the program, and {native!r} is "
                f"{spoken(is_fifo(native))}: say the same"
            )
        if ":sns:" in native:
            self._connection.check_region(native)
            state.arn = native
            attributes = await self.queues.topic(native)
            exists = attributes is not None
            if attributes is not None and self._connection.is_aws:
                state.limit = int(attributes.get("MaximumMessageSize", SNS_DEFAULT_BYTES))
        else:
            state.queue = await self.queues.find(native)
            exists = state.queue is not None
        if not exists:
            raise TopicNotFound(
                f"there is no {native!r} at {self._connection.address} to adopt: create it first"
            )

    # --- groups ------------------------------------------------------------------------------------------------

    async def _declare_group(self, group: GroupSpec, state: TopicState) -> None:
        name = self.names.queue(group)
        url = await self.queues.find(name)
        if url is None:
            if await self.queues.find(twin(name)) is not None:
                raise different_order(group)
            if state.mode != "declare":
                raise self._no_group(group, name)
        dead = await self.queues.find(self.names.dead(group))
        if dead is None:
            if state.mode != "declare":
                raise self._no_group(group, self.names.dead(group))
            dead = await self.queues.known(
                await self.queues.create(self.names.dead(group), group_tags(group))
            )
            if url is not None:
                warn_lost(group)
        if url is None:
            url = await self.queues.known(await self._create_queue(group, state, dead))
        self._urls[name], self._urls[self.names.dead(group)] = url, dead
        if state.arn is not None:
            await subscribe(self.queues, group, state.arn, url, create=state.mode == "declare")
        elif state.queue is None and self._settings.groups_refresh:
            await self._until_known(url)

    async def _create_queue(self, group: GroupSpec, state: TopicState, dead: str) -> str:
        dead_arn = (await self.queues.attributes(dead, "QueueArn"))["QueueArn"]
        redrive = {"deadLetterTargetArn": dead_arn, "maxReceiveCount": str(self._settings.max_receives)}
        more = {"RedrivePolicy": json.dumps(redrive)}
        if state.arn is not None:
            queue_arn = dead_arn.removesuffix(queue_name(dead)) + self.names.queue(group)
            more["Policy"] = delivery_policy(queue_arn, state.arn)
        return await self.queues.create(
            self.names.queue(group), group_tags(group), retention=self._retention(group.topic), more=more
        )

    def _retention(self, topic: TopicSpec) -> int:
        if topic.retention is None:
            return self._settings.retention
        if not SHORTEST_RETENTION <= topic.retention <= LONGEST_RETENTION:
            raise ConfigurationError(
                f"topic {topic.name!r} asks for a retention of {topic.retention:g} s; SQS keeps messages for "
                f"{SHORTEST_RETENTION} to {LONGEST_RETENTION} s"
            )
        return math.ceil(topic.retention)

    async def _subscribe_again(self, state: TopicState, arn: str) -> None:
        """The SNS topic is new: groups from before get nothing of it until their queues are subscribed."""
        try:
            known = await self._tagged(state.spec)
        except Denied as error:
            logger.warning(
                "Topic %s is new; whether it has groups from before cannot be seen: %s",
                state.spec.name,
                error,
            )
            return
        for url, group in known:
            with suppress(Absent):  # its members find that out, and declare it anew
                await subscribe(self.queues, group, arn, url, create=True)

    async def _until_known(self, url: str) -> None:
        """Wait until every publisher has looked for groups since this one was created."""
        created = int((await self.queues.attributes(url, "CreatedTimestamp")).get("CreatedTimestamp", 0))
        wait = created + 1 + self._settings.groups_refresh - self._connection.time.now()
        await asyncio.sleep(min(max(wait, 0.0), self._settings.groups_refresh + 1))

    async def _adopt_group(self, group: GroupSpec, native: str) -> None:
        if group.ordered != is_fifo(native):
            raise ConfigurationError(
                f"group {group.name!r} is {spoken(group.ordered)} in the program, and queue {native!r} is "
                f"{spoken(is_fifo(native))}: say the same"
            )
        await self.queue_url(group)
        await self.dead_url(group)

    def _no_group(self, group: GroupSpec, reference: str) -> TopicNotFound:
        return TopicNotFound(
            f"group {group.name!r} of topic {group.topic.name!r} does not exist: there is no queue "
            f"{reference!r} at {self._connection.address}. Declare it first, or use topology='declare'"
        )

    # --- look --------------------------------------------------------------------------------------------------

    async def look(self, state: TopicState, *, within: float) -> None:
        """Know the topic's queues as they were at most `within` seconds ago. Raises TopicNotFound."""
        if time.monotonic() - state.looked <= within:
            return
        asked = time.monotonic()
        async with state.looking:
            if state.looked >= asked:
                return
            started = time.monotonic()
            if state.queue is not None:
                state.queues, state.routed = (state.queue,), True
            elif state.arn is not None:
                await self._look_or_not(state, state.arn)
            else:
                state.queues = [url for url, _ in await self._tagged(state.spec)]
                state.routed = bool(state.queues)
                if not state.routed and await self.queues.find(self.names.record(state.spec)) is None:
                    raise self.absent(state)
            state.looked = started

    async def _look_or_not(self, state: TopicState, arn: str) -> None:
        """SNS delivers whether or not this publisher may look now: only `mandatory` needs to know who gets it."""
        try:
            await self._look_at_subscriptions(state, arn)
            state.blind = None
        except (Denied, Throttled) as error:
            state.blind, state.routed = error, True

    async def _look_at_subscriptions(self, state: TopicState, arn: str) -> None:
        try:
            subscriptions = [one async for one in self.queues.subscriptions(arn)]
        except Absent:
            raise self.absent(state) from None
        mine = [
            one["Endpoint"]
            for one in subscriptions
            if one["Protocol"] == "sqs" and not self._connection.is_elsewhere(one["Endpoint"])
        ]
        state.endpoints = mine
        state.strangers = len(mine) < len(subscriptions)
        state.routed = bool(subscriptions)

    async def urls(self, state: TopicState) -> list[str]:
        """Of the queues to which its SNS topic delivers; without those that are gone, to which SNS delivers in vain."""
        found: list[str] = []
        for endpoint in state.endpoints:
            with suppress(Absent):
                found.append(await self._connection.likely_url(endpoint))
        return found

    async def _own_urls(self, state: TopicState, arn: str) -> list[str]:
        """The same, of the account's own: our groups have no others, and nobody may ask for the tags of others."""
        return [url for url in await self.urls(state) if owner_of(url) in (None, owner_of(arn))]

    def absent(self, state: TopicState) -> TopicNotFound:
        return TopicNotFound(
            f"topic {state.spec.name!r} does not exist at {self._connection.address}: declare it first, or let the "
            f"topology setting declare it"
        )

    async def _tagged(self, topic: TopicSpec) -> list[tuple[str, GroupSpec]]:
        """The queues of the topic's groups, by their tags, in any order of the groups."""
        urls = await self.queues.named_like(self.names.queues_of(topic))
        return await self._groups_of(topic, urls)

    async def _groups_of(self, topic: TopicSpec, urls: Sequence[str]) -> list[tuple[str, GroupSpec]]:
        tags = await asyncio.gather(*(self.queues.tags(url) for url in urls))
        return [
            (url, GroupSpec(topic, tag[GROUP], tag.get(ORDERED) == yes(True)))
            for url, tag in zip(urls, tags, strict=True)
            if tag.get(TOPIC) == topic.name
            and GROUP in tag
            and tag.get(GENERATION, "1") == str(topic.generation)
        ]

    async def infos(self, *, strict: bool = False) -> list[GroupInfo]:
        """The groups of the declared topics. `strict`: raises TopicNotFound for one that is gone: no queue tells."""
        groups = [group for group in self._groups.values() if group.native is not None]
        cut_off: list[GroupSpec] = []
        for state in list(self._states.values()):
            if state.spec.native is not None:
                continue
            if state.arn is None:
                found = await self._tagged(state.spec)
            else:
                try:
                    await self._look_at_subscriptions(state, state.arn)
                except TopicNotFound:
                    if strict and state.verified:
                        raise
                    continue
                found = await self._groups_of(state.spec, await self._own_urls(state, state.arn))
                cut_off += self._missing(state, {group.name for _, group in found})
            groups += [group for _, group in found]
        known = await asyncio.gather(
            *(self._info(group) for group in groups), *(self._info(group, cut_off=True) for group in cut_off)
        )
        return [info for info in known if info is not None]

    def _missing(self, state: TopicState, subscribed: Collection[str]) -> list[GroupSpec]:
        """The declared groups of a topic whose queues get nothing of it."""
        key = _key(state.spec)
        return [
            group for (topic, name), group in self._groups.items() if topic == key and name not in subscribed
        ]

    async def _info(self, group: GroupSpec, *, cut_off: bool = False) -> GroupInfo | None:
        arn = None if group.native is not None else self.state(group.topic).arn
        try:
            url = await self.queue_url(group)
            queue = await self.queues.attributes(url, *_WAITING, *(("Policy",) if arn is not None else ()))
            dead = await self.dead_count(group)
        except (Absent, TopicNotFound):
            return None
        stuck: str | None = None
        if arn is not None and cut_off:
            stuck = (
                f"queue {queue_name(url)} is not subscribed to {arn}, so its group gets nothing: declare it"
            )
        elif arn is not None and not lets_send(queue.get("Policy"), arn):
            stuck = not_let(queue_name(url), arn)
        return GroupInfo(
            topic=group.topic.name,
            group=group.name,
            lag=sum(int(queue.get(name, 0)) for name in _WAITING),
            dead_letters=dead,
            generation=group.topic.generation,
            ordered=group.ordered,
            stuck=stuck,
        )

    async def dead_count(self, group: GroupSpec) -> int:
        """All dead letters, those that a scan holds included. Raises Absent or TopicNotFound.

        A group whose queue for them was deleted alone has none.
        """
        try:
            counts = await self.queues.attributes(
                await self.dead_url(group),
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            )
        except (Absent, TopicNotFound):
            if group.native is None and await self.has_queue(group):
                return 0
            raise
        return sum(int(number) for number in counts.values())

    # --- delete ------------------------------------------------------------------------------------------------

    async def delete(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`. An adopted queue is left alone."""
        self._groups.pop((_key(group.topic), group.name), None)
        if group.native is not None:
            return
        state = self.state(group.topic)
        for kind in (group, replace(group, ordered=not group.ordered)):
            # The dead letters first: a member that finds its queue gone, and them not, makes it anew. And again at
            # the end: one that had a dead letter to store meanwhile may have made them anew.
            for name in (self.names.dead(kind), self.names.queue(kind), self.names.dead(kind)):
                self._urls.pop(name, None)
                url = await self.queues.find(name)
                if url is None:
                    continue
                if state.arn is not None and name == self.names.queue(kind):
                    await self._unsubscribe(state.arn, url)
                await self.queues.delete(url)
        state.looked = -1e9

    async def _unsubscribe(self, arn: str, url: str) -> None:
        try:
            queue_arn = (await self.queues.attributes(url, "QueueArn"))["QueueArn"]
            subscription = await self.queues.subscription(arn, queue_arn)
        except Absent:
            return
        if subscription is not None:
            await self.queues.unsubscribe(subscription)


def _key(topic: TopicSpec) -> Key:
    """What tells one topic, and one generation of it, from all others."""
    return topic.name, topic.native, topic.generation
