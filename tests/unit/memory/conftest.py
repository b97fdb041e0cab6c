from collections.abc import Callable
from itertools import count

import pytest

from messaging.adapter import (
    AdapterContext,
    GroupSpec,
    Outgoing,
    Settlement,
    Subscription,
    TopicSpec,
    Topology,
)
from messaging.message import Ack, Message
from messaging.testing import VirtualClock
from messaging_memory import Broker, MemoryAdapter
from messaging_memory.settings import MemorySettings


class Owner:
    """A dispatcher's place: records what it is told; `hand_over` is awaited by `on_revoke`."""

    def __init__(self, hand_over: Callable | None = None) -> None:
        self.revoked: list[tuple[list[int], float]] = []
        self.lost: list = []
        self.hand_over = hand_over

    async def on_revoke(self, partitions, deadline):
        self.revoked.append((sorted(partitions), deadline))
        if self.hand_over is not None:
            await self.hand_over(partitions)

    def on_lost(self, deliveries, reason):
        self.lost += [delivery.message.id for delivery in deliveries]


class World:
    """One broker on a virtual clock, one adapter on it, and a topic with a group."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.broker = Broker("test", clock=self.clock)
        self.adapter = MemoryAdapter(AdapterContext(clock=self.clock, member="m"), broker=self.broker)
        self.adapters = [self.adapter]
        self.topic = TopicSpec("orders", partitions=2)
        self.group = GroupSpec(self.topic, "billing")
        self._ids = count(1)

    async def another(self, **settings) -> MemoryAdapter:
        adapter = MemoryAdapter(
            AdapterContext(clock=self.clock, member=f"m{len(self.adapters)}"),
            MemorySettings(**settings),
            broker=self.broker,
        )
        self.adapters.append(adapter)
        await adapter.open()
        return adapter

    async def declare(self, *groups: GroupSpec, ordered: bool = False, partitions: int = 2, **topic) -> None:
        self.topic = TopicSpec("orders", ordered=ordered, partitions=partitions, **topic)
        self.group = GroupSpec(self.topic, "billing", ordered=ordered)
        await self.adapter.declare(Topology([self.topic], groups or [self.group]))

    def outgoing(self, body: bytes = b"x", *, id=None, key=None, partition=0, mandatory=False, **fields):
        name = self.topic.name
        fields = {"type": name, **fields}
        message = Message(id=id or f"m{next(self._ids)}", topic=name, body=body, key=key, **fields)
        return Outgoing(self.topic, message, partition, mandatory)

    async def publish(self, *messages: Outgoing):
        return await self.adapter.publish(messages)

    def consumer(self, owner: Owner | None = None, *, group=None, adapter=None):
        subscription = Subscription(group or self.group, prefetch=1000, concurrency=10)
        return (adapter or self.adapter).consumer(subscription, owner or Owner())

    async def drained(self, consumer) -> list:
        """Everything that can be received now, acknowledged."""
        got = []
        while batch := await consumer.receive(100, 0):
            got += batch
            await consumer.settle([Settlement(delivery, Ack()) for delivery in batch])
        return got


@pytest.fixture
async def world():
    world = World()
    await world.adapter.open()
    yield world
    for adapter in world.adapters:
        await adapter.close()


@pytest.fixture
def owner():
    return Owner


def ids(deliveries):
    return [delivery.message.id for delivery in deliveries]
