"""Exchanges and queues: declared, verified, compared with what the broker has, deleted.

A topic is a durable direct exchange with the partition number as routing key. Unknown arguments of an exchange are
stored, and a different `alternate-exchange` is refused with the stored value in the text: the name of that alternate
carries the count of partitions and the order, so the broker's record is the truth (16). The alternate itself exists
only while the topic has a group: without one, a mandatory publish must come back.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from messaging.adapter import GroupSpec
from messaging.errors import ConfigurationError, TopicNotFound, UnsupportedCapability
from messaging_rabbitmq.answering import silent
from messaging_rabbitmq.arguments import quorum
from messaging_rabbitmq.calls import NodeAway
from messaging_rabbitmq.queues import Queues
from messaging_rabbitmq.registry import Registry
from messaging_rabbitmq.tiers import SPARES, all_tiers, with_spares

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from aiormq.abc import AbstractChannel

    from messaging.adapter import TopicSpec, Topology, TopologyMode
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.names import Names
    from messaging_rabbitmq.registry import Entries
    from messaging_rabbitmq.settings import RabbitMQSettings

logger = logging.getLogger("messaging")

LONGEST_RETENTION = 10 * 365 * 86_400.0
"""Seconds: the longest `x-message-ttl`. RabbitMQ's refusal of more reads like one of arguments that have changed."""
_STORED = re.compile(r"but current is '?p(\d+)(:ordered)?:")
"""What `Names.alternate` has written, in a text that may be cut after it."""


class TopologyKeeper:
    """Declares on throwaway channels of the connection for consuming, which a memory alarm does not stop."""

    def __init__(self, link: Link, names: Names, settings: RabbitMQSettings) -> None:
        self._link = link
        self._names = names
        self._settings = settings
        self.registry = Registry(link, settings.operation_timeout)
        self._mode: TopologyMode = "declare"
        self.topics: dict[tuple[str, int], TopicSpec] = {}
        """By name and generation."""
        self.groups: dict[tuple[str, int, str], GroupSpec] = {}
        """By the topic's name and generation, and the group's name."""
        self._modes: dict[tuple[str, int, str], TopologyMode] = {}
        self._known_exchanges: set[str] = set()
        self._gone_exchanges: set[str] = set()
        """Of topics that a publish found missing, until they are declared."""
        self.queues = Queues(link, names, settings, lambda group: self._modes.get(_place(group), "declare"))
        self._known_shapes: set[str] = set()

    def forget(self) -> None:
        """Check again what was known to exist."""
        self._known_exchanges.clear()
        self._known_shapes.clear()
        self.queues.forget()

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        topics = {(topic.name, topic.generation): topic for topic in topology.topics}
        for group in topology.groups:
            topics.setdefault((group.topic.name, group.topic.generation), group.topic)
        if topology.mode == "declare":
            for topic in topics.values():
                _check_retention(topic)
        for place, topic in topics.items():
            if topology.mode != "off":
                await self._topic(topic, topology.mode)
            self.topics[place] = topic
        for group in topology.groups:
            self._check(group)
            if topology.mode != "off":
                await self._group(group, topology.mode)
            self.groups[_place(group)] = group
            self._modes[_place(group)] = topology.mode

    async def recorded(self, group: GroupSpec) -> bool:
        """Whether the broker's record has the group: a group that is deleted is taken out of it."""
        if group.native is not None or group.topic.native is not None:
            return False
        return group.name in await self.registry.groups(self._names.registry(group.topic))

    def unsure(self, topic: TopicSpec) -> None:
        """What is published to the topic is not confirmed: look with the next publish whether it is still there."""
        self._known_exchanges.discard(self._names.exchange(topic))

    async def exchange_exists(self, topic: TopicSpec) -> None:
        """Raises TopicNotFound. Asked of the broker once a connection: a publish to a missing exchange would cost
        the channel, and with many in flight the connection.
        """
        exchange = self._names.exchange(topic)
        if exchange in self._known_exchanges:
            return
        async with self._link.throwaway(f"looking for topic {topic.name}") as channel:
            try:
                await channel.exchange_declare(exchange, passive=True)
            except ChannelNotFoundEntity:
                self._gone_exchanges.add(exchange)
                raise TopicNotFound(
                    f"topic {topic.name} does not exist: RabbitMQ at {self._link.address} has no exchange "
                    f"{exchange!r}. Declare it first, or let the topology setting declare it."
                ) from None
        self._known_exchanges.add(exchange)

    # --- topics ------------------------------------------------------------------------------------------------

    async def _topic(self, topic: TopicSpec, mode: TopologyMode) -> None:
        exchange = self._names.exchange(topic)
        if mode == "verify" or topic.native is not None:
            self._known_exchanges.discard(exchange)
            await self.exchange_exists(topic)
        if topic.native is not None:
            return
        # Whoever made it anew may not have bound all groups yet.
        known = mode == "verify" or (await self._has_exchange(topic) and exchange not in self._gone_exchanges)
        # Read before it is made: one that nobody can bind would take messages, and keep them for no group.
        former = [] if known else await self._former_groups(topic)
        async with self._link.throwaway(f"declaring topic {topic.name}") as channel:
            try:
                await channel.exchange_declare(
                    exchange,
                    durable=True,
                    arguments={"alternate-exchange": self._names.alternate(topic)},
                )
            except ChannelPreconditionFailed as error:
                raise _different(topic, str(error)) from error
            except ChannelAccessRefused:
                # In mode `verify` the user may lack the permission that a comparison needs.
                if mode == "declare":
                    raise
        for group in former:
            async with self._link.throwaway(f"binding group {group.name} to topic {topic.name}") as channel:
                with suppress(ChannelNotFoundEntity):  # its members find that out, and declare it anew
                    await self._bind(channel, group)
        self._gone_exchanges.discard(exchange)
        self._known_exchanges.add(exchange)

    async def _has_exchange(self, topic: TopicSpec) -> bool:
        self._known_exchanges.discard(self._names.exchange(topic))
        try:
            await self.exchange_exists(topic)
        except TopicNotFound:
            return False
        return True

    async def _former_groups(self, topic: TopicSpec) -> list[GroupSpec]:
        """Groups that the record has: they get nothing of a new exchange until they are bound to it.

        Those whose declaration did not end are left to the next, which may delete their queues.
        """
        async with self.registry_of(topic, create=False) as entries:
            if entries is None:
                return []
            return [
                GroupSpec(topic, name, ordered)
                for name, ordered in entries.groups.items()
                if name not in entries.begun
            ]

    async def _bind(self, channel: AbstractChannel, group: GroupSpec) -> None:
        exchange = self._names.exchange(group.topic)
        for partition in range(group.topic.partitions):
            queue = self._names.queue(group, partition if group.ordered else None)
            await channel.queue_bind(queue, exchange, str(partition))

    # --- groups ------------------------------------------------------------------------------------------------

    def _check(self, group: GroupSpec) -> None:
        if group.start != "latest":
            raise UnsupportedCapability(
                f"group {group.name} of topic {group.topic.name} cannot start at {group.start}: "
                f"RabbitMQ keeps no history. Leave `start` out."
            )
        if group.native is None and group.topic.native is not None:
            raise ConfigurationError(
                f"group {group.name} of topic {group.topic.name}: nothing is declared beside the adopted exchange "
                f"{group.topic.native!r}; name an existing queue with subscribe(native=...)"
            )
        if group.native is not None and group.ordered:
            raise UnsupportedCapability(
                f"group {group.name} of topic {group.topic.name} cannot keep order on the adopted queue "
                f"{group.native!r}: subscribe with ordered=False"
            )
        if group.native is not None and self._settings.adopted_queues == "refuse":
            raise UnsupportedCapability(
                f"group {group.name} of topic {group.topic.name}: on the adopted queue {group.native!r} delayed "
                f"retries wait in the process with their attempts, rejected messages go where the queue's own "
                f"dead-letter exchange sends them or are dropped, and a message that kills the process is not "
                f"isolated. Accept that with the option adopted_queues=limited."
            )

    async def _group(self, group: GroupSpec, mode: TopologyMode) -> None:
        if mode == "verify" or group.native is not None:
            await self._group_exists(group)
            return
        try:
            async with self.registry_of(group.topic, create=True) as entries:
                assert entries is not None
                await self._recorded_group(group, entries)
        except NodeAway as error:
            await self._take_as_it_is(group, error)
        self.queues.exists(self._names.dead(group))

    async def _recorded_group(self, group: GroupSpec, entries: Entries) -> None:
        known = entries.groups.get(group.name)
        if known is not None and known != group.ordered:
            raise _different_order(group, stored=known)
        await self._delete_silent(group, self._doubtful(group, entries))
        if known is None:
            await entries.begin(group.name, ordered=group.ordered)
        sealed = group.name not in entries.begun and await self._is_whole(group)
        if group.ordered:
            await self._members_queue(group)
        async with self._link.throwaway(f"declaring group {group.name}") as channel:
            await self._group_queues(channel, group)
            if not sealed:
                await self.queues.seal(channel, group)
            if group.name in entries.begun:
                await entries.end(group.name)
            # Not before: queues whose declaration did not end have nothing, and may be deleted.
            await self._bind(channel, group)
            await self._bind_ingress(channel, group.topic)

    async def _take_as_it_is(self, group: GroupSpec, away: NodeAway) -> None:
        """The record of the topic's groups is of one node: while it is away, a group that is there is not declared
        again. Its queues tell that it is, and whether it keeps order. Raises `away` where one of them is missing.
        """
        if not await self._is_whole(group):
            raise away
        logger.warning(
            "Group %s of topic %s is taken as it is, for what RabbitMQ at %s records of groups is away: %s",
            group.name,
            group.topic.name,
            self._link.address,
            away,
            extra={"broker": self._link.address, "topic": group.topic.name, "group": group.name},
        )

    async def _members_queue(self, group: GroupSpec) -> None:
        async with self._link.throwaway(f"declaring group {group.name}") as channel:
            with suppress(NodeAway):  # members make a spare of it
                await channel.queue_declare(self._names.members(group)[0], durable=True)

    async def _group_queues(self, channel: AbstractChannel, group: GroupSpec) -> None:
        topic = group.topic
        retention = None if topic.retention is None else max(1, round(topic.retention * 1000))
        await self.queues.declare(channel, self._names.dead(group), quorum())
        await self.queues.declare(channel, self._names.ingress(topic), quorum(single_active_consumer=True))
        if group.ordered:
            arguments = quorum(single_active_consumer=True, message_ttl=retention)
            for queue in self._names.queues(group):
                await self.queues.declare(channel, queue, arguments)
            return
        queue = self._names.queue(group)
        await self.queues.declare(channel, queue, quorum(message_ttl=retention))
        await self.queues.declare(channel, self._names.suspects(group), quorum())

    def _doubtful(self, group: GroupSpec, entries: Entries) -> list[str]:
        """Queues of declarations that did not end: if the broker was killed then, one of them never answers."""
        queues: list[str] = []
        if group.name in entries.begun:
            queues += self._names.declared(group)
        if entries.begun and entries.groups.keys() <= entries.begun:  # none has ended that has made it
            queues.append(self._names.ingress(group.topic))
        return queues

    async def _delete_silent(self, group: GroupSpec, queues: Sequence[str]) -> None:
        """Those that answer stay. The others are bound to nothing yet: no message is in them that may come back, be it
        that the nodes that have them are away.
        """
        # Asked twice, on two connections: the broker may have stood still while they were asked once.
        for queue in await silent(self._settings, await silent(self._settings, queues)):
            # Each has its own time: the broker takes five seconds for one that does not answer.
            async with self._link.throwaway(f"declaring group {group.name} again") as channel:
                await channel.queue_delete(queue)

    async def _bind_ingress(self, channel: AbstractChannel, topic: TopicSpec) -> None:
        """Last, so that what arrives there can be sent on."""
        alternate = self._names.alternate(topic)
        await channel.exchange_declare(alternate, exchange_type="fanout", durable=True)
        await channel.queue_bind(self._names.ingress(topic), alternate)

    async def _group_exists(self, group: GroupSpec) -> None:
        queues = self._names.queues(group) if group.native is not None else self._names.declared(group)
        missing = await self._missing(group, queues)
        if missing is not None:
            raise TopicNotFound(
                f"group {group.name} of topic {group.topic.name} does not exist: RabbitMQ at "
                f"{self._link.address} has no queue {missing!r}. Declare it first."
            )

    async def _is_whole(self, group: GroupSpec) -> bool:
        """Whether nobody has deleted a queue of a declared group."""
        queues = [*self._names.declared(group), self._names.ingress(group.topic)]
        return await self._missing(group, queues) is None

    async def _missing(self, group: GroupSpec, queues: Sequence[str]) -> str | None:
        """The first of these queues of a group that the broker has not."""
        async with self._link.throwaway(f"looking for group {group.name}") as channel:
            for queue in queues:
                try:
                    await channel.queue_declare(queue, passive=True)
                except ChannelNotFoundEntity:
                    return queue
        return None

    async def check(self, group: GroupSpec) -> None:
        """Raises TopicNotFound or ConfigurationError where the broker has no such topic or group, or of another shape.

        Asked of the broker once a connection for each shape.
        """
        place = f"{self._names.alternate(group.topic)} {self._names.dead(group)} {group.ordered}"
        if place in self._known_shapes:
            return
        self._known_exchanges.discard(self._names.exchange(group.topic))
        await self.exchange_exists(group.topic)
        await self._topic(group.topic, "verify")
        try:
            known = (await self.registry.groups(self._names.registry(group.topic))).get(group.name)
        except NodeAway as error:
            await self._take_as_it_is(group, error)
            return
        if known is None:
            raise ConfigurationError(
                f"topic {group.topic.name} has no group {group.name} at RabbitMQ {self._link.address}: declare it, "
                f"or correct the name"
            )
        if known != group.ordered:
            raise _different_order(group, stored=known)
        self._known_shapes.add(place)

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`. An adopted queue is left alone."""
        self.groups.pop(_place(group), None)
        if group.native is not None:
            return
        async with self.registry_of(group.topic, create=False) as entries:
            known = {} if entries is None else entries.groups
            last = entries is not None and not known.keys() - {group.name}
            recorded = replace(group, ordered=known.get(group.name, group.ordered))
            await self._delete(await self._whole(recorded), last=last)
            if entries is not None:
                await entries.remove(group.name)
        if last:
            async with self._link.throwaway(f"deleting group {group.name}") as channel:
                with suppress(ChannelPreconditionFailed, ChannelNotFoundEntity):  # in use by others, or gone
                    await channel.queue_delete(
                        self._names.registry(group.topic), if_unused=True, if_empty=True
                    )

    async def _whole(self, group: GroupSpec) -> GroupSpec:
        """The group with every partition that the broker has of it, should it be described with fewer."""
        count = group.topic.partitions
        if group.ordered:
            async with self._link.throwaway(f"looking for the partitions of group {group.name}") as channel:
                with suppress(ChannelNotFoundEntity):  # that was the last one
                    while True:
                        await channel.queue_declare(self._names.queue(group, count), passive=True)
                        count += 1
        return replace(group, topic=replace(group.topic, partitions=count))

    async def _delete(self, group: GroupSpec, *, last: bool) -> None:
        names = self._names
        queues = names.declared(group)
        queues += [names.tier(group, time) for tier in all_tiers() for time in with_spares(tier)]
        if group.ordered:
            queues += names.members(group)
            numbers = product(range(group.topic.partitions), range(1 + SPARES))
            queues += [names.guard(group, partition, spare) for partition, spare in numbers]
        self.queues.deleted(queues)
        async with self._link.throwaway(f"deleting group {group.name}") as channel:
            if last:
                await channel.exchange_delete(names.alternate(group.topic))
                await channel.queue_delete(names.ingress(group.topic))
            for queue in queues:
                await channel.queue_delete(queue)
            for partition in range(group.topic.partitions if group.ordered else 0):
                await channel.exchange_delete(names.finished(group, partition))

    def registry_of(self, topic: TopicSpec, *, create: bool) -> AbstractAsyncContextManager[Entries | None]:
        """The topic's groups, held by us alone."""
        return self.registry.held(self._names.registry(topic), create=create)


def _check_retention(topic: TopicSpec) -> None:
    if topic.native is None and topic.retention is not None and topic.retention > LONGEST_RETENTION:
        raise ConfigurationError(
            f"topic {topic.name!r} asks for a retention of {topic.retention!r} s; RabbitMQ keeps messages for "
            f"{LONGEST_RETENTION:.0f} s (ten years) at most, or without a bound where the topic has no retention"
        )


def _place(group: GroupSpec) -> tuple[str, int, str]:
    return group.topic.name, group.topic.generation, group.name


def stored_shape(refusal: str) -> tuple[int, bool] | None:
    """The partitions and the order that the broker has, out of its refusal of others."""
    stored = _STORED.search(refusal)
    return None if stored is None else (int(stored.group(1)), stored.group(2) is not None)


def _different(topic: TopicSpec, text: str) -> ConfigurationError:
    stored = stored_shape(text)
    asked = _spoken(topic.partitions, ordered=topic.ordered)
    if stored is None:
        return ConfigurationError(
            f"topic {topic.name} exists on the broker as another kind of exchange than this program asks for "
            f"({asked}): {text}"
        )
    kept = _spoken(stored[0], ordered=stored[1])
    return ConfigurationError(
        f"topic {topic.name} has {kept} on the broker, and this program asks for {asked}: the broker's record "
        f"counts. Set the same in the topic or its settings, or change it by `messaging generations begin`."
    )


def _different_order(group: GroupSpec, *, stored: bool) -> ConfigurationError:
    kept, asked = ("ordered", "unordered") if stored else ("unordered", "ordered")
    return ConfigurationError(
        f"group {group.name} of topic {group.topic.name} is {kept} on the broker, and this program asks for "
        f"{asked}: subscribe alike, or delete the group, or use another group name"
    )


def _spoken(partitions: int, *, ordered: bool) -> str:
    return f"{partitions} partitions, {'ordered' if ordered else 'unordered'}"
