"""Adapters on a real Kafka, and what most tests do with them."""

import asyncio
from collections.abc import Collection
from typing import ClassVar

from messaging.adapter import Consumer, RawDelivery
from messaging.errors import ConnectionFailed
from messaging_kafka import KafkaAdapter
from messaging_kafka.brokers import Brokers
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.membership import Membership
from tests.contract.bench import AdapterBench

QUICK = {"heartbeat": 0.2, "join_delay": 0}
"""Options of members that notice soon who comes and goes."""
MORTAL = {**QUICK, "session": 1, "operation_timeout": 2}
"""Options of members whose death is noticed soon, and that a machine which stands still takes for dead as well."""


class Bench(AdapterBench[KafkaAdapter, KafkaConsumer]):
    kind: ClassVar = KafkaAdapter

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


async def owned(consumer: Consumer, number: int | None = None, within: float = 10.0) -> Collection[int]:
    """The partitions that a member owns, as soon as it owns any, or so many."""
    async with asyncio.timeout(within):
        while True:
            partitions = consumer.status().partitions or ()
            if partitions and number in {None, len(partitions)}:
                return partitions
            await consumer.receive(1, 0.05, paused=range(1000))
