"""SQS and SNS behind the SPI."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import HEALTH_TIMEOUT, Adapter, BrokerHealth, Capabilities, Capability
from messaging.errors import MessagingError
from messaging_sqs.batches import MOST
from messaging_sqs.connection import Connection, Denied, Throttled
from messaging_sqs.entries import LARGEST, LONGEST_DELAY, ROOM
from messaging_sqs.fifo import OrderedConsumer
from messaging_sqs.generations import Generations
from messaging_sqs.publisher import Publisher
from messaging_sqs.replies import SQSInbox, send_replies
from messaging_sqs.settings import LONGEST_HOLD, SQSSettings
from messaging_sqs.shared import SharedConsumer
from messaging_sqs.topology import TopologyKeeper

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import (
        AdapterContext,
        Consumer,
        DeadLetterStore,
        GroupInfo,
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


class SQSAdapter(Adapter):
    """Topics as SNS topics, groups as SQS queues. `native` has boto3's clients: `sqs`, `sns`."""

    name: ClassVar[str] = "sqs"
    shares: ClassVar[int] = 6
    """Full requests of 64 callers of one topic."""
    per_request: ClassVar[int] = MOST

    def __init__(self, settings: SQSSettings, member: str) -> None:
        self._settings = settings
        self._member = member or "member"
        self._connection = Connection(settings)
        self._topology = TopologyKeeper(self._connection)
        self._publisher = Publisher(self._connection, self._topology)
        self._generations = Generations(self._connection, self._topology)

    def __repr__(self) -> str:
        return f"SQSAdapter({self._connection.address!r})"

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> SQSAdapter:
        """See `Adapter.from_url`."""
        return cls(SQSSettings.from_url(url, context.options, namespace=context.namespace), context.member)

    @property
    def capabilities(self) -> Capabilities:
        """See `Adapter.capabilities`."""
        client = self._settings.fanout == "client"
        return Capabilities(
            broker="SQS" if client else "SQS and SNS",
            groups=Capability("emulated", "one send for each group's queue; not atomic")
            if client
            else Capability("native", "an SNS topic for each topic, an SQS queue for each group"),
            order=Capability(
                "native",
                "FIFO topics and queues with the key as message group; failed messages are held by the member",
            ),
            delayed_retry=Capability("emulated", "a delayed copy; beyond 900 s in several steps"),
            dead_letters=Capability("native", "a queue for each group"),
            redrive=Capability("emulated", "sent to the group's queue, then removed"),
            requests=Capability("emulated", "a queue for each requester"),
            history=Capability(
                "unsupported",
                "a queue keeps nothing that was handled; declare the group before the first publish",
            ),
            no_group=Capability("emulated", "the list of groups is looked at beside publishing"),
            crash_guard=Capability("emulated", "SQS counts hand-overs; the mark is a tag of the queue"),
            generations=Capability(
                "emulated",
                "the number of partitions is a word in the record; another order has queues of its own",
            ),
            idempotent_publish=Capability("native", "deduplication of FIFO topics: for ordered topics only"),
            max_delay=LONGEST_DELAY,
            lateness=1.0,
            max_hold=LONGEST_HOLD,
            max_message_bytes=min(self._settings.max_message_bytes, LARGEST - ROOM),
            durability="power loss" if self._connection.is_aws else "unknown",
            fenced=True,
        )

    @property
    def native(self) -> Any:
        """The clients of boto3, as `native.sqs` and `native.sns`. They block."""
        return self._connection.clients

    async def open(self) -> None:
        """See `Adapter.open`. Credentials that are missing or wrong are found here."""
        await self._connection.open()

    async def close(self) -> None:
        """See `Adapter.close`."""
        self._connection.close()

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        await self._topology.declare(self._generations.stored_topology(topology))

    def publishes_once(self, topic: TopicSpec) -> Capability:
        """See `Adapter.publishes_once`."""
        if topic.ordered:
            return self.capabilities.idempotent_publish
        return Capability(
            "unsupported", "only FIFO topics know a copy: make the topic ordered, or leave it out"
        )

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """See `Adapter.publish`."""
        return await self._publisher.publish(self._generations.stored_messages(messages))

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        """See `Adapter.consumer`."""
        kind = OrderedConsumer if subscription.group.ordered else SharedConsumer
        subscription = replace(subscription, group=self._generations.stored_group(subscription.group))
        return kind(self._connection, self._topology, subscription, ownership, self._member)

    async def reply_inbox(self) -> ReplyInbox:
        """See `Adapter.reply_inbox`."""
        inbox = SQSInbox(self._connection, self._topology)
        await inbox.open()
        return inbox

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        """See `Adapter.reply`."""
        return await send_replies(self._connection, self._topology, replies)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        """See `Adapter.dead_letters`."""
        return self._generations.dead_letters(group)

    async def groups(self) -> Sequence[GroupInfo]:
        """See `Adapter.groups`."""
        return [self._generations.told(info) for info in await self._topology.infos()]

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`."""
        await self._topology.delete(self._generations.stored_group(group))

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        """See `Adapter.generations`."""
        return await self._generations.kept(topic)

    async def begin_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.begin_generation`."""
        await self._generations.begin(topic)

    async def end_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.end_generation`: nobody waits for the end of a former generation."""

    async def ended(self, topic: TopicSpec) -> bool:
        """See `Adapter.ended`."""
        del topic
        return False

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """See `Adapter.finish`: all is finished."""
        del group, partition
        return True

    async def finished(self, group: GroupSpec) -> Collection[int]:
        """See `Adapter.finished`."""
        return self._generations.finished(group)

    async def health(self) -> BrokerHealth:
        """See `Adapter.health`. Figures at which this role may not look, or not now, are unknown, and no failure."""
        groups: Sequence[GroupInfo] = ()
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                groups = [self._generations.told(info) for info in await self._topology.infos(strict=True)]
        except TimeoutError:
            error = f"SQS at {self._connection.address} gave no answer within {HEALTH_TIMEOUT:g} s"
            return BrokerHealth(False, error=error)
        except (Denied, Throttled):
            pass  # the service has answered
        except MessagingError as error:
            return BrokerHealth(False, error=str(error))
        failed = self._connection.failed
        return BrokerHealth(failed is None, groups, failed)
