"""One Redis for all tests here, and a bench of adapters in a namespace of each test's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from messaging.adapter import (
    AdapterContext,
    Done,
    GroupSpec,
    Outgoing,
    RawDelivery,
    Settlement,
    Subscription,
    TopicSpec,
    Topology,
)
from messaging.clock import SystemClock
from messaging.message import Ack, Message
from messaging.partition import partition_of
from messaging_contracts import brokers
from messaging_redis import RedisAdapter

pytestmark = pytest.mark.redis


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contract/redis" in item.path.as_posix():
            item.add_marker(pytest.mark.redis)


class Owner:
    """What a consumer tells its dispatcher, written down."""

    def __init__(self) -> None:
        self.revoked: list[int] = []
        self.lost: list[RawDelivery] = []
        self.finish: Callable[[], Any] | None = None

    async def on_revoke(self, partitions, deadline) -> None:
        self.revoked += partitions
        if self.finish is not None:
            await self.finish()

    def on_lost(self, deliveries, reason) -> None:
        self.lost += deliveries


class Bench:
    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = "t" + uuid4().hex[:12]
        self._adapters: list[RedisAdapter] = []
        self._consumers: list[Any] = []

    def made(self, url: str | None = None, **options: Any) -> RedisAdapter:
        context = AdapterContext(
            clock=SystemClock(), namespace=self.namespace, member="m" + uuid4().hex[:8], options=options
        )
        return RedisAdapter.from_url(url or self.url, context)

    async def adapter(self, url: str | None = None, **options: Any) -> RedisAdapter:
        adapter = self.made(url, **options)
        await adapter.open()
        self._adapters.append(adapter)
        return adapter

    async def group(
        self, adapter: RedisAdapter, *, ordered: bool = False, partitions: int = 4, **more: Any
    ) -> GroupSpec:
        topic = TopicSpec(
            "orders", ordered=ordered, partitions=partitions, retention=more.pop("retention", None)
        )
        group = GroupSpec(topic, more.pop("name", "billing"), ordered=ordered, **more)
        await adapter.declare(Topology((topic,), (group,)))
        return group

    def consumer(self, adapter: RedisAdapter, group: GroupSpec, *, owner: Owner | None = None) -> Any:
        consumer = adapter.consumer(Subscription(group, prefetch=100, concurrency=10), owner or Owner())
        self._consumers.append(consumer)
        return consumer

    def message(self, number: int, key: str | None = None, **more: Any) -> Message:
        return Message(id=f"m{number}", topic="orders", body=b"body %d" % number, key=key, **more)

    def outgoing(self, topic: TopicSpec, number: int, key: str | None = None, **more: Any) -> Outgoing:
        partition = number % topic.partitions if key is None else partition_of(key, topic.partitions)
        return Outgoing(topic, self.message(number, key), partition, **more)

    async def publish(
        self, adapter: RedisAdapter, topic: TopicSpec, count: int, keys: int = 0, first: int = 0
    ) -> list[Any]:
        """Messages first..first+count-1; with `keys`, message n has key n % keys."""
        batch = [
            self.outgoing(topic, n, str(n % keys) if keys else None) for n in range(first, first + count)
        ]
        return list(await adapter.publish(batch))

    async def receive(self, consumer: Any, count: int, within: float = 5.0) -> list[RawDelivery]:
        """Exactly `count` deliveries, or an error."""
        found: list[RawDelivery] = []
        until = time.monotonic() + within
        while len(found) < count:
            left = until - time.monotonic()
            assert left > 0, f"{len(found)} of {count} deliveries within {within} s"
            found += await consumer.receive(count - len(found), left)
        return found

    async def settle(self, consumer: Any, deliveries, outcome=None, **more: Any) -> list[Any]:
        settlements = [Settlement(delivery, outcome or Ack(), **more) for delivery in deliveries]
        return list(await consumer.settle(settlements))

    async def drain(self, consumer: Any, count: int, within: float = 10.0) -> list[RawDelivery]:
        """Receive and acknowledge exactly `count`."""
        found: list[RawDelivery] = []
        until = time.monotonic() + within
        while len(found) < count:
            left = until - time.monotonic()
            assert left > 0, f"{len(found)} of {count} deliveries within {within} s"
            batch = list(await consumer.receive(50, left))
            assert all(isinstance(result, Done) for result in await self.settle(consumer, batch))
            found += batch
        return found

    async def stop_short(self, consumer: Any) -> None:
        """The member stops like a process that is killed: nothing is given back."""
        self._consumers.remove(consumer)
        await consumer._background.stop()
        for task in (consumer._reading, getattr(consumer, "_waking", None)):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        consumer._closed = True

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.close()
        for adapter in self._adapters:
            await adapter.close()
        cleaner = self.made()
        try:
            await cleaner.open()
        except Exception:  # the test has ended its own broker
            return
        if cleaner._settings.mode != "cluster":
            keys = [key async for key in cleaner.native.scan_iter(match=f"*{self.namespace}*", count=1000)]
            if keys:
                await cleaner.native.delete(*keys)
        await cleaner.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with brokers.start("redis") as broker:
        yield broker.url


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    bench = Bench(redis_url)
    yield bench
    await bench.close()


@pytest.fixture
def new_owner() -> type[Owner]:
    return Owner


@pytest.fixture
async def own() -> AsyncIterator[Any]:
    """A Redis of the test's own, to kill or to configure, with a bench on it."""
    async with AsyncExitStack() as stack:

        async def start(url: Callable[[str], str] = str, **options: Any) -> tuple[Any, Bench]:
            broker = stack.enter_context(brokers.start("redis", own=True, **options))
            bench = Bench(url(broker.url))
            stack.push_async_callback(bench.close)
            return broker, bench

        yield start


@pytest.fixture
async def cluster() -> AsyncIterator[Any]:
    """Three nodes that share the slots, with a bench on them."""
    with brokers.redis_cluster() as nodes:
        bench = Bench(nodes.url)
        yield nodes, bench
        await bench.close()
