"""Adapters on a real Kafka, and what most tests do with them."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from messaging.adapter import (
    AdapterContext,
    Consumer,
    GroupSpec,
    Outgoing,
    RawDelivery,
    Settlement,
    Start,
    Subscription,
    TopicSpec,
    Topology,
)
from messaging.clock import SystemClock
from messaging.errors import ConnectionFailed
from messaging.message import Ack, Message, Receipt
from messaging.partition import partition_of
from messaging_kafka import KafkaAdapter
from messaging_kafka.brokers import Brokers
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.membership import Membership

QUICK = {"session": 1, "heartbeat": 0.2, "join_delay": 0, "operation_timeout": 2}
"""Options of members that notice deaths soon."""


class Recorder:
    """An ownership that records what it is told."""

    def __init__(self) -> None:
        self.lost: list[RawDelivery] = []
        self.revoked: list[int] = []
        self.on_revoked: Callable[[Collection[int]], Awaitable[None]] | None = None

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        self.revoked += partitions
        if self.on_revoked is not None:
            await self.on_revoked(partitions)

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        self.lost += deliveries


@dataclass
class Bench:
    """Adapters on one broker, and what most tests do with them."""

    url: str
    stack: AsyncExitStack
    namespace: str = field(default_factory=lambda: "t" + secrets.token_hex(6))

    async def adapter(self, url: str | None = None, **options: object) -> KafkaAdapter:
        adapter = self.unopened(url, **options)
        await adapter.open()
        return adapter

    def unopened(self, url: str | None = None, **options: object) -> KafkaAdapter:
        context = AdapterContext(
            clock=SystemClock(), namespace=self.namespace, member=secrets.token_hex(4), options=options
        )
        adapter = KafkaAdapter.from_url(url or self.url, context)
        self.stack.push_async_callback(adapter.close)
        return adapter

    async def group(
        self,
        adapter: KafkaAdapter,
        topic: TopicSpec | None = None,
        name: str = "billing",
        *,
        ordered: bool | None = None,
        start: Start = "latest",
    ) -> GroupSpec:
        topic = topic or TopicSpec("orders", partitions=2)
        group = GroupSpec(topic, name, topic.ordered if ordered is None else ordered, start)
        await adapter.declare(Topology(groups=[group]))
        return group

    def consumer(
        self,
        adapter: KafkaAdapter,
        group: GroupSpec,
        ownership: Recorder | None = None,
        *,
        prefetch: int = 100,
    ) -> KafkaConsumer:
        subscription = Subscription(group, prefetch, concurrency=10)
        consumer = adapter.consumer(subscription, ownership or Recorder())
        assert isinstance(consumer, KafkaConsumer)
        self.stack.push_async_callback(consumer.close)
        return consumer

    async def clean(self) -> None:
        """Delete every topic of this namespace."""
        adapter = await self.adapter()
        names = await topics_of(adapter, f"messaging.{self.namespace}.")
        await brokers_of(adapter).delete(names)


def membership(consumer: KafkaConsumer) -> Membership:
    """What keeps a consumer in its group, once it has received."""
    assert consumer._partitions is not None
    return consumer._partitions.membership


def brokers_of(adapter: KafkaAdapter) -> Brokers:
    """What the tests ask the brokers with."""
    return adapter._session.brokers


async def topics_of(adapter: KafkaAdapter, beginning: str) -> list[str]:
    """The names of the topics that begin so."""
    metadata = await adapter.native.fetch_all_metadata()
    return sorted(name for name in metadata.topics() if name.startswith(beginning))


def outgoing(
    topic: TopicSpec, id: str, *, key: str | None = None, partition: int | None = None, **more: object
) -> Outgoing:
    if partition is None:
        partition = 0 if key is None else partition_of(key, topic.partitions)
    fields = {"body": id.encode(), "headers": {}} | {k: v for k, v in more.items() if k != "mandatory"}
    message = Message(id=id, topic=topic.name, key=key, **fields)  # type: ignore[arg-type]
    return Outgoing(topic, message, partition, mandatory=bool(more.get("mandatory")))


async def publish(adapter: KafkaAdapter, topic: TopicSpec, *ids: str, **more: object) -> None:
    results = await adapter.publish([outgoing(topic, id, **more) for id in ids])  # type: ignore[arg-type]
    assert all(isinstance(result, Receipt) for result in results), results


async def receive(consumer: Consumer, number: int, within: float = 10.0) -> list[RawDelivery]:
    """So many deliveries."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(within):
        while len(deliveries) < number:
            deliveries += await consumer.receive(number - len(deliveries), 0.5)
    return deliveries


async def receive_through(consumer: Consumer, number: int, within: float = 30.0) -> list[RawDelivery]:
    """So many deliveries, as the dispatcher receives them: again after each failed connection."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(within):
        while len(deliveries) < number:
            try:
                deliveries += await consumer.receive(number - len(deliveries), 0.5)
            except ConnectionFailed:
                await asyncio.sleep(0.1)
    return deliveries


async def nothing(consumer: Consumer, during: float = 0.4) -> None:
    assert list(await consumer.receive(10, during)) == []


async def owned(consumer: Consumer, number: int | None = None, within: float = 10.0) -> Collection[int]:
    """The partitions that a member owns, as soon as it owns any, or so many."""
    async with asyncio.timeout(within):
        while True:
            partitions = consumer.status().partitions or ()
            if partitions and number in {None, len(partitions)}:
                return partitions
            await consumer.receive(1, 0.05, paused=range(1000))


async def ack(consumer: Consumer, deliveries: Sequence[RawDelivery]) -> None:
    await settle(consumer, deliveries, Ack())


async def settle(consumer: Consumer, deliveries: Sequence[RawDelivery], outcome, **more):
    return await consumer.settle([Settlement(one, outcome, **more) for one in deliveries])


def ids(deliveries: Sequence[RawDelivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]
