"""Adapters on a real RabbitMQ, and what most tests do with them."""

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
    Subscription,
    TopicSpec,
    Topology,
)
from messaging.clock import SystemClock
from messaging.message import Ack, Message, Receipt
from messaging.partition import partition_of
from messaging_rabbitmq import RabbitMQAdapter


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
    groups: list[GroupSpec] = field(default_factory=list)

    async def adapter(self, url: str | None = None, **options: object) -> RabbitMQAdapter:
        adapter = self.unopened(url, **options)
        await adapter.open()
        return adapter

    def unopened(self, url: str | None = None, **options: object) -> RabbitMQAdapter:
        context = AdapterContext(
            clock=SystemClock(), namespace=self.namespace, member=secrets.token_hex(4), options=options
        )
        adapter = RabbitMQAdapter.from_url(url or self.url, context)
        self.stack.push_async_callback(adapter.close)
        return adapter

    async def group(
        self,
        adapter: RabbitMQAdapter,
        topic: TopicSpec | None = None,
        name: str = "billing",
        *,
        ordered: bool | None = None,
    ) -> GroupSpec:
        topic = topic or TopicSpec("orders", partitions=2)
        group = GroupSpec(topic, name, topic.ordered if ordered is None else ordered)
        await adapter.declare(Topology(groups=[group]))
        if group not in self.groups:
            self.groups.append(group)
        return group

    def consumer(
        self,
        adapter: RabbitMQAdapter,
        group: GroupSpec,
        ownership: Recorder | None = None,
        *,
        prefetch: int = 100,
    ) -> Consumer:
        subscription = Subscription(group, prefetch, concurrency=10)
        consumer = adapter.consumer(subscription, ownership or Recorder())
        self.stack.push_async_callback(consumer.close)
        return consumer


def outgoing(
    topic: TopicSpec, id: str, *, key: str | None = None, partition: int | None = None, **more: object
):
    if partition is None:
        partition = 0 if key is None else partition_of(key, topic.partitions)
    fields = {"body": id.encode(), "headers": {}} | {k: v for k, v in more.items() if k != "mandatory"}
    message = Message(id=id, topic=topic.name, key=key, **fields)  # type: ignore[arg-type]
    return Outgoing(topic, message, partition, mandatory=bool(more.get("mandatory")))


async def publish(adapter: RabbitMQAdapter, topic: TopicSpec, *ids: str, **more: object) -> None:
    results = await adapter.publish([outgoing(topic, id, **more) for id in ids])  # type: ignore[arg-type]
    assert all(isinstance(result, Receipt) for result in results), results


async def receive(consumer: Consumer, number: int, within: float = 5.0) -> list[RawDelivery]:
    """So many deliveries."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(within):
        while len(deliveries) < number:
            deliveries += await consumer.receive(number - len(deliveries), 0.5)
    return deliveries


async def nothing(consumer: Consumer, during: float = 0.3) -> None:
    assert await consumer.receive(10, during) == ()


async def ack(consumer: Consumer, deliveries: Sequence[RawDelivery]) -> None:
    await settle(consumer, deliveries, Ack())


async def settle(consumer: Consumer, deliveries: Sequence[RawDelivery], outcome, **more):
    return await consumer.settle([Settlement(one, outcome, **more) for one in deliveries])


def ids(deliveries: Sequence[RawDelivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]
