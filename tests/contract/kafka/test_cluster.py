"""Three brokers: what one of them that hangs or is away costs, and what is told where two are.

The cluster is our own.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from messaging.adapter import TopicSpec
from messaging.errors import PublishError, PublishUncertain
from messaging.message import Receipt
from messaging_contracts.brokers import KafkaCluster, kafka_cluster
from messaging_contracts.brokers.kafka_protocol import brokers_of as living_brokers
from messaging_contracts.brokers.process import NativeBroker
from messaging_kafka import KafkaAdapter
from messaging_kafka.library import Place
from tests.contract.bench import outgoing
from tests.contract.kafka.support import Bench, brokers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # four JVMs are started, and some of them again

AWAY_AFTER = 4.0
"""Seconds until the others go on without a broker that is silent."""
WITHIN = AWAY_AFTER + 8.0
"""Less than a publish or a look at the cluster may take otherwise."""
ORDERS = TopicSpec("orders", ordered=True, partitions=6)


@pytest.fixture(scope="module")
def running() -> Iterator[KafkaCluster]:
    config = {"broker.session.timeout.ms": str(int(AWAY_AFTER * 1000)), "broker.heartbeat.interval.ms": "500"}
    with kafka_cluster(config=config) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: KafkaCluster) -> Iterator[KafkaCluster]:
    """Whole again after each test."""
    yield running
    running.mend()


@pytest.fixture
async def bench(cluster: KafkaCluster):
    async with AsyncExitStack() as stack:
        yield Bench(cluster.url, stack)


async def until_counted(cluster: KafkaCluster, living: int) -> None:
    """Wait until a broker that runs knows of so many."""
    asked = next(node for node in cluster.nodes if node.runs)
    async with asyncio.timeout(30):
        while await asyncio.to_thread(living_brokers, asked.url, 5) != living:
            await asyncio.sleep(0.1)


async def publish_to_all(adapter: KafkaAdapter, round: int) -> list[Receipt | PublishError]:
    """One message to each partition, in one call."""
    return list(
        await adapter.publish(
            [outgoing(ORDERS, f"{round}-{number}", key=str(number), partition=number) for number in range(6)]
        )
    )


async def test_a_topic_that_is_made_while_a_broker_is_down_has_all_its_copies(
    bench: Bench, cluster: KafkaCluster
) -> None:
    cluster.nodes[2].kill()
    adapter = await bench.adapter()
    await until_counted(cluster, 2)
    group = await bench.group(adapter, ORDERS)
    metadata = await adapter.native.fetch_all_metadata()
    names = [name for name in metadata.topics() if name.startswith(f"messaging.{bench.namespace}.")]
    copies = {
        name: len(metadata._partitions[name][number].replicas)
        for name in names
        for number in metadata.partitions_for_topic(name)
    }
    assert group.name == "billing"
    assert len(copies) == 4
    assert set(copies.values()) == {3}, copies
    assert all(isinstance(one, Receipt) for one in await publish_to_all(adapter, 1))


async def test_a_bus_opens_although_the_first_address_hangs(
    bench: Bench, cluster: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)  # aiokafka's own order of the addresses
    cluster.nodes[0].pause()
    async with asyncio.timeout(WITHIN):
        adapter = await bench.adapter()
        await brokers_of(adapter).partitions(["nothing"])


async def test_a_bus_goes_on_when_the_only_address_that_it_was_given_dies(cluster: KafkaCluster) -> None:
    async with AsyncExitStack() as stack:
        bench = Bench(cluster.nodes[0].url, stack)
        adapter = await bench.adapter()
        await bench.group(adapter, ORDERS)
        assert all(isinstance(one, Receipt) for one in await publish_to_all(adapter, 1))
        cluster.nodes[0].kill()
        await until_counted(cluster, 2)
        async with asyncio.timeout(WITHIN):
            _ = await publish_to_all(adapter, 2)  # learns of the new leaders
            assert [one for one in await publish_to_all(adapter, 3) if not isinstance(one, Receipt)] == []


async def test_a_broker_that_hangs_holds_publishes_up_until_another_leads(
    bench: Bench, cluster: KafkaCluster
) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, ORDERS)
    assert all(isinstance(one, Receipt) for one in await publish_to_all(adapter, 1))
    hung = node_that_leads(cluster, adapter, 0)
    hung.pause()
    async with asyncio.timeout(WITHIN):
        first = await publish_to_all(adapter, 2)
        second = await publish_to_all(adapter, 3)
    assert {type(one) for one in first} <= {Receipt, PublishUncertain}
    assert isinstance(first[0], PublishUncertain)
    assert all(isinstance(one, Receipt) for one in second)


async def test_publishes_go_on_while_the_record_of_groups_cannot_be_read(
    bench: Bench, cluster: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging_kafka.publisher.GROUPS_KNOWN_FOR", 0.0)
    careless = await bench.adapter(replication=1)
    await bench.group(careless, TopicSpec("seed", ordered=True, partitions=1))
    adapter = await bench.adapter()
    await bench.group(adapter, ORDERS)
    assert all(isinstance(one, Receipt) for one in await publish_to_all(adapter, 1))
    registry = adapter._session.names.registry
    await brokers_of(adapter).partitions([registry])
    leader = brokers_of(adapter).leader(Place(registry, 0))
    assert leader is not None
    cluster.nodes[leader - 1].kill()
    await until_counted(cluster, 2)
    async with asyncio.timeout(WITHIN):
        _ = await publish_to_all(adapter, 2)  # learns of the new leaders
        assert [one for one in await publish_to_all(adapter, 3) if not isinstance(one, Receipt)] == []


async def test_a_publish_that_too_few_brokers_can_keep_fails(bench: Bench, cluster: KafkaCluster) -> None:
    adapter = await bench.adapter(confirm_timeout=5)
    await bench.group(adapter, ORDERS)
    for node in cluster.nodes[1:]:
        node.kill()
    await until_counted(cluster, 1)
    assert not [one for one in await publish_to_all(adapter, 1) if isinstance(one, Receipt)]
    for node in cluster.nodes[1:]:
        node.restart()
    async with asyncio.timeout(60):
        while [one for one in await publish_to_all(adapter, 2) if not isinstance(one, Receipt)]:
            await asyncio.sleep(0.5)


def node_that_leads(cluster: KafkaCluster, adapter: KafkaAdapter, partition: int) -> NativeBroker:
    """Brokers are numbered from 1."""
    names = adapter._session.names
    leader = brokers_of(adapter).leader(Place(names.topic(ORDERS), partition))
    assert leader is not None
    return cluster.nodes[leader - 1]
