"""Kafka behind the SPI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import HEALTH_TIMEOUT, Adapter, BrokerHealth, Capabilities, Capability, GroupInfo
from messaging.errors import MessagingError
from messaging_kafka.brokers import Brokers
from messaging_kafka.connection import Link
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.dead_letters import KafkaDeadLetters, LetterMarks
from messaging_kafka.generations import Generations
from messaging_kafka.names import Names, recorded
from messaging_kafka.publisher import Publisher
from messaging_kafka.registry import Registry
from messaging_kafka.replies import KafkaReplies
from messaging_kafka.session import Session
from messaging_kafka.settings import read_settings
from messaging_kafka.status import group_infos
from messaging_kafka.topology import TopologyKeeper
from messaging_kafka.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import (
        AdapterContext,
        Consumer,
        GroupSpec,
        Outgoing,
        Ownership,
        ReplyInbox,
        Subscription,
        TopicSpec,
        Topology,
    )
    from messaging.errors import PublishError
    from messaging.message import Message, Receipt
    from messaging_kafka.settings import KafkaSettings

ANSWER_MARGIN = 10.0
"""Seconds that aiokafka itself waits beyond our own bounds, so that ours count."""


class KafkaAdapter(Adapter):
    """Topics as topics, groups as consumer groups. `native` is aiokafka's client, None while not connected."""

    name: ClassVar[str] = "kafka"
    shares: ClassVar[int] = 2

    def __init__(self, settings: KafkaSettings, context: AdapterContext) -> None:
        self._settings = settings
        longest = max(settings.confirm_timeout, settings.operation_timeout, 2 * settings.session)
        link = Link(settings, patience=longest + ANSWER_MARGIN)
        brokers, names = Brokers(link), Names(settings.namespace)
        writer = Writer(brokers)
        topology = TopologyKeeper(brokers, names, Registry(brokers, writer, names.registry), settings)
        self._session = Session(
            settings=settings,
            names=names,
            link=link,
            brokers=brokers,
            writer=writer,
            topology=topology,
            clock=context.clock,
            member=context.member,
        )
        self._publisher = Publisher(self._session)
        self._replies = KafkaReplies(self._session)
        self._generations = Generations(self._session)
        self._capabilities = _capabilities(settings)
        self._marks: dict[tuple[str, str], LetterMarks] = {}

    def __repr__(self) -> str:
        return f"KafkaAdapter({self._settings.address!r})"

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> KafkaAdapter:
        """See `Adapter.from_url`."""
        return cls(read_settings(url, context), context)

    @property
    def capabilities(self) -> Capabilities:
        """See `Adapter.capabilities`."""
        return self._capabilities

    @property
    def native(self) -> Any:
        """Aiokafka's client."""
        return self._session.link.client

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Adapter.open`. Raises ConfigurationError for a server that is too old."""
        await self._session.link.open()
        self._capabilities = _capabilities(self._settings, await self._session.brokers.version())

    async def close(self) -> None:
        """See `Adapter.close`."""
        await self._session.link.close()

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        await self._session.topology.declare(topology)

    # --- publish, consume, reply, look -------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """See `Adapter.publish`."""
        return await self._publisher.publish(messages)

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        """See `Adapter.consumer`."""
        return KafkaConsumer(self._session, subscription, ownership)

    async def reply_inbox(self) -> ReplyInbox:
        """See `Adapter.reply_inbox`."""
        return await self._replies.inbox()

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        """See `Adapter.reply`."""
        return await self._replies.send(replies)

    def dead_letters(self, group: GroupSpec) -> KafkaDeadLetters:
        """See `Adapter.dead_letters`."""
        marks = self._marks.setdefault((recorded(group.topic), group.name), LetterMarks())
        return KafkaDeadLetters(self._session, group, marks)

    async def groups(self) -> Sequence[GroupInfo]:
        """See `Adapter.groups`."""
        return await group_infos(self._session, self.dead_letters, registered=True)

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`."""
        self._marks.pop((recorded(group.topic), group.name), None)
        await self._session.topology.delete_group(group)

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        """See `Adapter.generations`."""
        return await self._generations.kept(topic)

    async def begin_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.begin_generation`."""
        await self._generations.begin(topic)

    async def end_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.end_generation`."""
        await self._generations.end(topic)

    async def ended(self, topic: TopicSpec) -> bool:
        """See `Adapter.ended`."""
        return await self._generations.ended(topic)

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """See `Adapter.finish`."""
        return await self._generations.finish(group, partition)

    async def finished(self, group: GroupSpec) -> Collection[int]:
        """See `Adapter.finished`."""
        return await self._generations.finished(group)

    async def health(self) -> BrokerHealth:
        """See `Adapter.health`. Where the figures of many groups take longer than a probe may, they are unknown."""
        session, address = self._session, self._settings.address
        reached = asyncio.create_task(session.brokers.reach(), name="messaging-kafka-probe")
        figures = asyncio.create_task(
            group_infos(session, self.dead_letters, registered=False), name="messaging-kafka-figures"
        )
        tasks = (reached, figures)
        try:
            await asyncio.wait(tasks, timeout=HEALTH_TIMEOUT, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        failures = [
            error for task in tasks if not task.cancelled() and (error := task.exception()) is not None
        ]
        for error in failures:
            if not isinstance(error, MessagingError):
                raise error
            return BrokerHealth(connected=False, error=str(error))
        if reached.cancelled():
            return BrokerHealth(connected=False, error=f"Kafka at {address} did not answer within a second")
        if figures.cancelled():
            return BrokerHealth(
                connected=True,
                groups=[GroupInfo(one.topic.name, one.name) for one in session.topology.groups.values()],
                error=f"Kafka at {address} did not tell the figures of its groups within a second",
            )
        return BrokerHealth(connected=True, groups=figures.result())


def _capabilities(settings: KafkaSettings, version: str = "") -> Capabilities:
    return Capabilities(
        broker="Kafka",
        version=version,
        groups=Capability("native", "a consumer group for each group"),
        order=Capability(
            "emulated",
            "partitions have one owner at a time; failed messages are held by the member, and what is done beyond "
            "them is kept with the committed position",
        ),
        delayed_retry=Capability(
            "emulated",
            "a topic whose partitions are delays in steps of powers of two; held in the member where ordered",
        ),
        dead_letters=Capability("emulated", "a topic for each group"),
        redrive=Capability(
            "emulated", "a topic for each group beside the main one; letters that are gone are marked"
        ),
        requests=Capability("emulated", "a shared reply topic, of which each requester reads a partition"),
        history=Capability("native", "as long as the topic's retention"),
        no_group=Capability("emulated", "the record of groups, looked at before publishing"),
        crash_guard=Capability(
            "emulated", "take-overs after a crash are counted in the metadata of the committed position"
        ),
        generations=Capability(
            "emulated", "topics of their own, and the record of topics says which are kept"
        ),
        idempotent_publish=Capability(
            "native",
            "producer ids and sequence numbers; for as long as the process that published knows them",
        ),
        lateness=0.5,
        max_message_bytes=settings.max_message_bytes,
        durability="process crash",
        fenced=True,
    )
