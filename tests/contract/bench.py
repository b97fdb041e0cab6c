"""Adapters on a real broker, and what most tests of one do with them."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

from messaging.adapter import (
    Adapter,
    AdapterContext,
    BrokerHealth,
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
from messaging.message import Ack, Message, Receipt
from messaging.partition import partition_of

A = TypeVar("A", bound=Adapter)
C = TypeVar("C", bound=Consumer)


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
class AdapterBench(Generic[A, C]):
    """Adapters of one kind on one broker, closed by the stack, in a namespace of the test's own."""

    kind: ClassVar[type[Adapter]]

    url: str
    stack: AsyncExitStack
    namespace: str = field(default_factory=lambda: "t" + secrets.token_hex(4))
    groups: list[GroupSpec] = field(default_factory=list)
    """All that were declared here."""

    async def adapter(self, url: str | None = None, **options: object) -> A:
        adapter = self.unopened(url, **options)
        await adapter.open()
        return adapter

    def unopened(self, url: str | None = None, **options: object) -> A:
        context = AdapterContext(
            clock=SystemClock(), namespace=self.namespace, member=secrets.token_hex(4), options=options
        )
        adapter = self.kind.from_url(url or self.url, context)
        self.stack.push_async_callback(adapter.close)
        return cast("A", adapter)

    async def group(
        self,
        adapter: A,
        topic: TopicSpec | None = None,
        name: str = "billing",
        *,
        ordered: bool | None = None,
        start: Start = "latest",
    ) -> GroupSpec:
        topic = topic or TopicSpec("orders", partitions=2)
        group = GroupSpec(topic, name, topic.ordered if ordered is None else ordered, start)
        await adapter.declare(Topology(groups=[group]))
        if group not in self.groups:
            self.groups.append(group)
        return group

    def consumer(
        self, adapter: A, group: GroupSpec, ownership: Recorder | None = None, *, prefetch: int = 100
    ) -> C:
        consumer = adapter.consumer(Subscription(group, prefetch, concurrency=10), ownership or Recorder())
        self.stack.push_async_callback(consumer.close)
        return cast("C", consumer)


def outgoing(
    topic: TopicSpec,
    id: str,
    *,
    key: str | bytes | None = None,
    partition: int | None = None,
    mandatory: bool = False,
    reply_to: str | None = None,
    **attributes: Any,
) -> Outgoing:
    if partition is None:
        partition = 0 if key is None else partition_of(key, topic.partitions)
    message = Message(id=id, topic=topic.name, key=key, **{"body": id.encode(), **attributes})
    return Outgoing(topic, message, partition, mandatory, reply_to)


async def publish(adapter: Adapter, topic: TopicSpec, *ids: str, **more: Any) -> None:
    results = await adapter.publish([outgoing(topic, id, **more) for id in ids])
    assert all(isinstance(result, Receipt) for result in results), results


async def receive(consumer: Consumer, number: int, within: float = 10.0) -> list[RawDelivery]:
    """So many deliveries."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(within):
        while len(deliveries) < number:
            deliveries += await consumer.receive(number - len(deliveries), 0.5)
    return deliveries


async def handled(consumer: Consumer, number: int) -> list[RawDelivery]:
    """So many deliveries, each acknowledged before the next is asked for.

    A FIFO queue to which they came one by one gives the next of a key to a later call only then.
    """
    deliveries: list[RawDelivery] = []
    while len(deliveries) < number:
        taken = await receive(consumer, 1)
        await ack(consumer, taken)
        deliveries += taken
    return deliveries


async def healthy(adapter: Adapter) -> BrokerHealth:
    """Its health as soon as that is in order: a probe gives a broker up that stands still for a moment."""
    async with asyncio.timeout(15):
        while not (health := await adapter.health()).connected or health.error is not None:
            await asyncio.sleep(0.05)
    return health


async def health_naming(adapter: Adapter, what: str) -> BrokerHealth:
    """Its health as soon as the error of that names it."""
    async with asyncio.timeout(15):
        while what not in ((health := await adapter.health()).error or ""):
            await asyncio.sleep(0.05)
    return health


async def nothing(consumer: Consumer, during: float = 0.4) -> None:
    assert not await consumer.receive(10, during)


async def cut_off(consumer: Consumer, turns: int) -> None:
    """Begin to receive, be cancelled after so many turns of the event loop, and close."""
    receiving = asyncio.create_task(consumer.receive(1, 1))
    for _ in range(turns):
        await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait((receiving,))
    await consumer.close()


async def ack(consumer: Consumer, deliveries: Sequence[RawDelivery]) -> None:
    await settle(consumer, deliveries, Ack())


async def settle(consumer: Consumer, deliveries: Sequence[RawDelivery], outcome, **more):
    return await consumer.settle([Settlement(one, outcome, **more) for one in deliveries])


def ids(deliveries: Sequence[RawDelivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]
