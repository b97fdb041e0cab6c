"""The memory adapter: one connection to one broker of this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from messaging.adapter import Adapter, BrokerHealth, Capabilities, Capability
from messaging.errors import Closed, TopicNotFound
from messaging_memory.broker import Broker, Connection
from messaging_memory.consumer import MemoryConsumer
from messaging_memory.dead_letters import MemoryDeadLetters
from messaging_memory.ownership import OwnedGroup
from messaging_memory.publisher import Publisher
from messaging_memory.replies import MemoryInbox, Replier
from messaging_memory.settings import MemorySettings
from messaging_memory.topology import TopologyKeeper, physical_group

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

_NATIVE = Capability("native")


class MemoryAdapter(Adapter):
    """See `messaging.adapter.Adapter`.

    `broker` is for tests that hold the broker; without it the URL's name decides.
    """

    name: ClassVar[str] = "memory"

    def __init__(
        self, context: AdapterContext, settings: MemorySettings | None = None, *, broker: Broker | None = None
    ) -> None:
        self._context = context
        self._settings = settings or MemorySettings()
        self._given = broker
        self._consumers: list[Consumer] = []
        self._connect(broker or Broker(self._settings.name, clock=context.clock))

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> MemoryAdapter:
        return cls(context, MemorySettings.from_url(url, context.options))

    def _connect(self, broker: Broker) -> None:
        namespace, maximum = self._context.namespace, self._settings.max_message_bytes
        self._open = False
        self._broker = broker
        self._connection = Connection(broker)
        self._topology = TopologyKeeper(broker, namespace=namespace, history=self._settings.history)
        self._publisher = Publisher(broker, namespace=namespace, maximum=maximum)
        self._replier = Replier(broker, namespace=namespace, maximum=maximum)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            broker="memory",
            groups=_NATIVE,
            order=_NATIVE,
            delayed_retry=_NATIVE,
            dead_letters=_NATIVE,
            redrive=_NATIVE,
            requests=_NATIVE,
            history=Capability("native", "handled messages are kept as far as the option history says"),
            no_group=_NATIVE,
            generations=_NATIVE,
            idempotent_publish=_NATIVE,
            crash_guard=Capability(
                "native", "a member that is lost; the broker does not outlive the process"
            ),
            max_message_bytes=self._settings.max_message_bytes,
            durability="none",
            fenced=True,
        )

    @property
    def native(self) -> Broker:
        """The broker."""
        return self._broker

    async def open(self) -> None:
        if self._open:
            return
        shared = bool(self._settings.name) and self._given is None
        if shared:
            self._connect(Broker.named(self._settings.name, self._context.clock))
        self._broker.connect(self._connection, registered=shared)
        self._open = True

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for consumer in self._consumers:
            await consumer.close()
        self._consumers.clear()
        for inbox in list(self._connection.inboxes):
            await inbox.close()
        self._broker.disconnected(self._connection)

    def crash(self) -> None:
        """Die as a process does that is killed: nothing is handed over, nothing is told. For tests."""
        self._broker.crash(self._connection)

    def cut(self) -> None:
        """Lose the connection, as a network does; the next call connects again. For tests."""
        self._connection.drop()
        self._broker.touch()

    def lapse(self) -> None:
        """End all leases that this adapter's members hold, as if they had not been extended. For tests."""
        for member in list(self._connection.members):
            member.group.lapse(member)
        self._broker.touch()

    async def declare(self, topology: Topology) -> None:
        self._ensure()
        self._topology.declare(topology)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        self._ensure()
        results = self._publisher.publish(messages)
        await asyncio.sleep(0)  # a confirmation never comes within the call: consumers get their turn
        return results

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        if not self._open:
            raise Closed("the memory adapter is not open")
        consumer = MemoryConsumer(
            self._connection, self._topology, subscription, ownership, lease=self._settings.lease
        )
        self._consumers.append(consumer)
        return consumer

    async def reply_inbox(self) -> ReplyInbox:
        self._ensure()
        return MemoryInbox(self._connection, self._replier.address(self._context.member))

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        self._ensure()
        return self._replier.reply(replies)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        return MemoryDeadLetters(
            self._connection,
            self._ensure,
            self._topology,
            group,
            maximum=self._settings.max_message_bytes,
        )

    async def groups(self) -> Sequence[GroupInfo]:
        self._ensure()
        return self._infos()

    async def delete_group(self, group: GroupSpec) -> None:
        self._ensure()
        try:
            topic = self._topology.topic(group.topic)
        except TopicNotFound:
            return
        self._broker.delete_group(topic, physical_group(group))

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        self._ensure()
        return self._topology.generations(topic)

    async def begin_generation(self, topic: TopicSpec) -> None:
        self._ensure()
        self._topology.begin_generation(topic)

    async def end_generation(self, topic: TopicSpec) -> None:
        self._ensure()
        self._topology.topic(topic).ended = True

    async def ended(self, topic: TopicSpec) -> bool:
        self._ensure()
        return self._topology.topic(topic).ended

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        self._ensure()
        found = self._topology.group(group)
        return isinstance(found, OwnedGroup) and found.finish(partition)

    async def finished(self, group: GroupSpec) -> Collection[int]:
        self._ensure()
        return self._topology.group(group).finished

    async def health(self) -> BrokerHealth:
        if not self._open or not self._broker.reachable:
            state = "disconnected" if self._open else "not open"
            return BrokerHealth(connected=False, error=f"memory broker {self._broker.name!r} is {state}")
        return BrokerHealth(connected=True, groups=self._infos())

    def _infos(self) -> Sequence[GroupInfo]:
        now = self._broker.clock.time()
        infos: list[GroupInfo] = []
        for name, spec in self._topology.topics.items():
            if (topic := self._broker.topics.get(name)) is not None:
                topic.expire(now)
                infos += [group.info(spec) for group in topic.groups.values()]
        return infos

    def _ensure(self) -> None:
        if not self._open:
            raise Closed(
                "the memory adapter is not open: open it first, and do not use it after it was closed"
            )
        self._connection.ensure()
