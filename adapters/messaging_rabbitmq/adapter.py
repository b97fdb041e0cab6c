"""RabbitMQ behind the SPI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import (
    HEALTH_TIMEOUT,
    Adapter,
    BrokerHealth,
    Capabilities,
    Capability,
    Outgoing,
    Unrouted,
)
from messaging.errors import MessagingError, NoGroup, PublishError
from messaging.failed_keys import FailedKeys
from messaging.message import make_receipt
from messaging.shielded import shielded
from messaging_rabbitmq.connection import Link
from messaging_rabbitmq.consumer import SharedConsumer
from messaging_rabbitmq.dead_letters import RabbitMQDeadLetters
from messaging_rabbitmq.generations import Generations
from messaging_rabbitmq.names import Names
from messaging_rabbitmq.partitioned import PartitionedConsumer
from messaging_rabbitmq.properties import packed
from messaging_rabbitmq.publisher import Fate, Publisher
from messaging_rabbitmq.replies import RabbitMQInbox, send_replies
from messaging_rabbitmq.session import Session
from messaging_rabbitmq.settings import read_settings
from messaging_rabbitmq.status import group_infos
from messaging_rabbitmq.topology import TopologyKeeper

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from messaging.adapter import (
        AdapterContext,
        Consumer,
        DeadLetterStore,
        GroupInfo,
        GroupSpec,
        Ownership,
        ReplyInbox,
        Subscription,
        TopicSpec,
        Topology,
    )
    from messaging.message import Message, Receipt
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.settings import RabbitMQSettings

HOLD_SHARE = 0.8
"""Of the broker's consumer timeout; the rest is for the handler and for the broker's own rounding."""


class RabbitMQAdapter(Adapter):
    """Topics as exchanges, groups as quorum queues. `native` is the connection that publishes (aiormq)."""

    name: ClassVar[str] = "rabbitmq"
    topics_apart: ClassVar[bool] = True

    def __init__(self, settings: RabbitMQSettings, context: AdapterContext) -> None:
        self._settings = settings
        names = Names(settings.namespace)
        consuming, publishing = Link(settings, "consuming"), Link(settings, "publishing")
        self._session = Session(
            settings=settings,
            names=names,
            consuming=consuming,
            publishing=publishing,
            publisher=Publisher(publishing, settings),
            topology=TopologyKeeper(consuming, names, settings),
            clock=context.clock,
            member=context.member,
        )
        self._careful: set[str] = set()
        """Ordered topics of which a message was once not confirmed."""
        # What was deleted together with the broker's data must be looked for again.
        consuming.on_loss.add(lambda _: self._session.topology.forget())
        self._generations = Generations(consuming, names)
        consuming.on_loss.add(lambda _: self._generations.forget())
        self._capabilities = _capabilities(settings)
        self._looking: asyncio.Task[Sequence[GroupInfo]] | None = None
        """What the probes of health wait for."""

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> RabbitMQAdapter:
        return cls(read_settings(url, context), context)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def native(self) -> Any:
        return self._session.publishing.current

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        session = self._session
        try:
            connection = await session.consuming.connection()
            await session.publishing.connection()
        except BaseException:  # a cancelled start leaves nothing open either
            await self.close()
            raise
        properties: dict[str, Any] = dict(connection.server_properties or {})
        self._capabilities = _capabilities(self._settings, str(properties.get("version", "")))

    async def close(self) -> None:
        session = self._session
        await asyncio.gather(session.publishing.close(), session.consuming.close())
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    async def declare(self, topology: Topology) -> None:
        await self._session.topology.declare(topology)

    # --- publish -----------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        self._session.publishing.check_open()
        results: list[Receipt | PublishError] = [_PENDING] * len(messages)
        parcels, sent, topics = self._parcels(messages, await self._missing_topics(messages), results)
        spread = not any(topic.ordered for topic in topics)
        lane = parcels[0].exchange if len(topics) == 1 and parcels else None
        failed = FailedKeys()
        for wave in self._waves(messages, sent):
            going = wave
            if failed:
                told = {at: failed.behind(messages[sent[at]]) for at in wave}
                going = [at for at in wave if told[at] is None]
                for at, behind in told.items():
                    results[sent[at]] = behind or _PENDING
            fates = await self._session.publisher.send([parcels[at] for at in going], lane, spread=spread)
            for at, fate in zip(going, fates, strict=True):
                one = messages[sent[at]]
                if fate == "stored":
                    results[sent[at]] = make_receipt(one.message.id, one.partition, None)
                    continue
                # What no queue took is not stored either where one before it failed.
                behind = failed.behind(one) if fate == "unrouted" else None
                result = results[sent[at]] = behind or _result(one, fate)
                if isinstance(result, PublishError):
                    failed.add(one, result)
                # Without a cause the broker was silent: that says nothing of the topic.
                if isinstance(fate, PublishError) and fate.__cause__ is not None:
                    self._session.topology.unsure(one.topic)
                if one.topic.ordered and isinstance(fate, PublishError):
                    self._careful.add(one.topic.name)
        return results

    async def _missing_topics(self, messages: Sequence[Outgoing]) -> dict[tuple[str, int], PublishError]:
        missing: dict[tuple[str, int], PublishError] = {}
        known: TopicSpec | None = None
        for one in messages:
            topic = one.topic
            if topic is known or _place(topic) in missing:
                continue
            try:
                await self._session.topology.exchange_exists(topic)
            except PublishError as error:
                missing[_place(topic)] = error
            except MessagingError as error:
                unsent = PublishError(f"nothing was published to topic {topic.name}: {error}")
                unsent.__cause__ = error
                missing[_place(topic)] = unsent
            else:
                known = topic
        return missing

    def _parcels(
        self,
        messages: Sequence[Outgoing],
        missing: Mapping[tuple[str, int], PublishError],
        results: list[Receipt | PublishError],
    ) -> tuple[list[Parcel], Sequence[int], Sequence[TopicSpec]]:
        """What can be sent, the places of it, and the topics in turn; the results of all else."""
        failed = FailedKeys()
        parcels: list[Parcel] = []
        sent: list[int] = []
        limit = self._settings.max_message_bytes
        table_limit = self._session.consuming.table_limit
        known: TopicSpec | None = None
        exchange = ""
        topics: list[TopicSpec] = []
        for index, one in enumerate(messages):
            topic = one.topic
            if topic is not known:
                known = topic
                exchange = self._session.names.exchange(topic)
                topics.append(topic)
            error = None
            if missing or failed:
                error = missing.get(_place(topic)) or failed.behind(one)
            if error is None:
                # An adopted exchange routes by the topic's name: it knows nothing of partitions.
                routing_key = str(one.partition) if topic.native is None else topic.name
                try:
                    parcels.append(
                        packed(
                            exchange,
                            routing_key,
                            one.message,
                            limit=limit,
                            table_limit=table_limit,
                            reply_to=one.reply_to,
                        )
                    )
                    sent.append(index)
                    continue
                except PublishError as invalid:
                    error = invalid
                    failed.add(one, invalid)
            results[index] = error
        return parcels, sent, topics

    def _waves(self, messages: Sequence[Outgoing], sent: Sequence[int]) -> Sequence[Sequence[int]]:
        """Places in `sent`, to be handed over wave by wave: each finds room at once, or not at all.

        The broker may refuse one message (basic.nack: a full queue) and take the next that is already on its way. Of
        an ordered topic where that has happened, a key's next message waits until the one before it is confirmed (7).
        """
        most = self._session.publisher.most
        if not (self._settings.confirm_each or self._careful):
            return [range(at, min(at + most, len(sent))) for at in range(0, len(sent), most)]
        waves: list[list[int]] = [[]]
        depth: dict[tuple[str, str | bytes | None], int] = {}
        for at, index in enumerate(sent):
            one = messages[index]
            wave = 0
            if one.topic.ordered and (self._settings.confirm_each or one.topic.name in self._careful):
                wave = depth.get(_lane(one), 0)
                depth[_lane(one)] = wave + 1
            if wave == len(waves):
                waves.append([])
            waves[wave].append(at)
        return [wave[at : at + most] for wave in waves for at in range(0, len(wave), most)]

    # --- consume, reply, look ----------------------------------------------------------------------------------

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        kind = PartitionedConsumer if subscription.group.ordered else SharedConsumer
        return kind(self._session, subscription, ownership)

    async def reply_inbox(self) -> ReplyInbox:
        inbox = RabbitMQInbox(self._session)
        await inbox.open()
        return inbox

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        return await send_replies(self._session, replies)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        return RabbitMQDeadLetters(self._session, group)

    async def groups(self) -> Sequence[GroupInfo]:
        return await group_infos(self._session, registered=True)

    async def delete_group(self, group: GroupSpec) -> None:
        await self._session.topology.delete_group(group)

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        return await self._generations.kept(topic)

    async def begin_generation(self, topic: TopicSpec) -> None:
        await self._generations.begin(topic)

    async def end_generation(self, topic: TopicSpec) -> None:
        await self._generations.end(topic)

    async def ended(self, topic: TopicSpec) -> bool:
        return await self._generations.ended(topic)

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        await self._generations.finish(group, partition)
        return True

    async def finished(self, group: GroupSpec) -> Collection[int]:
        return await self._generations.finished(group)

    async def health(self) -> BrokerHealth:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                # It goes on where it is slow: the next probe has what it brings.
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.create_task(self._look(), name="messaging-rabbitmq-look")
                groups = await shielded(self._looking)
        except TimeoutError:
            return BrokerHealth(
                connected=self._session.consuming.current is not None,
                error=f"RabbitMQ at {self._settings.address} did not answer within {HEALTH_TIMEOUT:g} s: it hangs, "
                f"or a queue has no leader",
                refusing=self._refusing(),
                silent=True,
            )
        except MessagingError as error:
            return BrokerHealth(connected=False, error=str(error))
        return BrokerHealth(connected=True, groups=groups, refusing=self._refusing())

    def _refusing(self) -> str | None:
        """The broker tells only a connection that has tried to publish."""
        if not self._session.publishing.blocked:
            return None
        return (
            f"RabbitMQ at {self._settings.address} has blocked this process's publishing (connection.blocked): "
            f"it is short of memory or disk"
        )

    async def _look(self) -> Sequence[GroupInfo]:
        # A process that seldom publishes has no other occasion to connect again.
        await self._session.publishing.connection()
        return await group_infos(self._session, registered=False)


_PENDING = PublishError("not sent")
"""Stands where a result will be; none may be left, for an error that many raise keeps the frames of all."""


def _lane(one: Outgoing) -> tuple[str, str | bytes | None]:
    return one.topic.name, one.message.key


def _result(one: Outgoing, fate: Fate) -> Receipt | PublishError:
    if isinstance(fate, PublishError):
        return fate
    if one.mandatory:
        return NoGroup(
            f"message {one.message.id} was not published: no group subscribes to topic {one.topic.name}. "
            f"Run the app that handles it, or declare its group."
        )
    return Unrouted(one.message.id, one.partition)


def _place(topic: TopicSpec) -> tuple[str, int]:
    return topic.name, topic.generation


def _capabilities(settings: RabbitMQSettings, version: str = "") -> Capabilities:
    native = Capability("native")
    return Capabilities(
        broker="RabbitMQ",
        version=version,
        groups=Capability("native", "a durable exchange for each topic, a quorum queue for each group"),
        order=Capability(
            "emulated",
            "a queue with a single active consumer for each partition, balanced by this adapter; failed messages "
            "are held by the member",
        ),
        delayed_retry=Capability(
            "emulated",
            "queues with a time to live, in steps of powers of two; held in the member where ordered",
        ),
        dead_letters=Capability("native", "a quorum queue for each group"),
        redrive=native,
        requests=Capability("native", "an exclusive queue for each requester"),
        history=Capability(
            "unsupported",
            "a queue keeps nothing that was handled; declare the group before the first publish",
        ),
        no_group=Capability("native", "an unroutable message comes back"),
        generations=Capability("emulated", "exchanges and queues of their own; marks tell which are kept"),
        crash_guard=Capability(
            "emulated",
            "quorum queues count hand-overs; the mark is a copy, or an entry in a queue of marks",
        ),
        lateness=0.5,
        max_hold=settings.consumer_timeout * HOLD_SHARE,
        max_message_bytes=settings.max_message_bytes,
        durability="power loss",
        fenced=True,
    )
