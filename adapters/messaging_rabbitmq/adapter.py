"""RabbitMQ behind the SPI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import HEALTH_TIMEOUT, Adapter, BrokerHealth, Capabilities, Capability
from messaging.errors import MessagingError
from messaging.shielded import shielded
from messaging_rabbitmq.connection import Link
from messaging_rabbitmq.consumer import SharedConsumer
from messaging_rabbitmq.dead_letters import RabbitMQDeadLetters
from messaging_rabbitmq.generations import Generations
from messaging_rabbitmq.names import Names
from messaging_rabbitmq.partitioned import PartitionedConsumer
from messaging_rabbitmq.publisher import Publisher
from messaging_rabbitmq.replies import RabbitMQInbox, send_replies
from messaging_rabbitmq.sender import Sender
from messaging_rabbitmq.session import Session
from messaging_rabbitmq.settings import read_settings
from messaging_rabbitmq.status import group_infos
from messaging_rabbitmq.topology import TopologyKeeper

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
            sender=Sender(publishing, settings),
            topology=TopologyKeeper(consuming, names, settings),
            clock=context.clock,
            member=context.member,
        )
        self._publisher = Publisher(self._session)
        # What was deleted together with the broker's data must be looked for again.
        consuming.on_loss.add(lambda _: self._session.topology.forget())
        self._generations = Generations(consuming, names)
        consuming.on_loss.add(lambda _: self._generations.forget())
        self._capabilities = _capabilities(settings)
        self._looking: asyncio.Task[Sequence[GroupInfo]] | None = None
        """What the probes of health wait for."""

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> RabbitMQAdapter:
        """See `Adapter.from_url`."""
        return cls(read_settings(url, context), context)

    @property
    def capabilities(self) -> Capabilities:
        """See `Adapter.capabilities`."""
        return self._capabilities

    @property
    def native(self) -> Any:
        """See `Adapter.native`."""
        return self._session.publishing.current

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Adapter.open`."""
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
        """See `Adapter.close`."""
        session = self._session
        await asyncio.gather(session.publishing.close(), session.consuming.close())
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        await self._session.topology.declare(topology)

    # --- publish, consume, reply, look -------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """See `Adapter.publish`."""
        return await self._publisher.publish(messages)

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        """See `Adapter.consumer`."""
        kind = PartitionedConsumer if subscription.group.ordered else SharedConsumer
        return kind(self._session, subscription, ownership)

    async def reply_inbox(self) -> ReplyInbox:
        """See `Adapter.reply_inbox`."""
        inbox = RabbitMQInbox(self._session)
        await inbox.open()
        return inbox

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        """See `Adapter.reply`."""
        return await send_replies(self._session, replies)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        """See `Adapter.dead_letters`."""
        return RabbitMQDeadLetters(self._session, group)

    async def groups(self) -> Sequence[GroupInfo]:
        """See `Adapter.groups`."""
        return await group_infos(self._session, registered=True)

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`."""
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
        await self._generations.finish(group, partition)
        return True

    async def finished(self, group: GroupSpec) -> Collection[int]:
        """See `Adapter.finished`."""
        return await self._generations.finished(group)

    async def health(self) -> BrokerHealth:
        """See `Adapter.health`."""
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
