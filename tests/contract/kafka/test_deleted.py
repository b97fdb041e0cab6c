"""A topic that an admin deletes: told, and read from its first message when it is there again."""

import asyncio

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import TopicNotFound, TopologyLost
from messaging_kafka import KafkaAdapter
from messaging_kafka.library import Place
from tests.contract.kafka.support import QUICK, Bench, ack, brokers_of, ids, publish, receive

ORDERED = TopicSpec("orders", ordered=True, partitions=1)
UNORDERED = TopicSpec("orders", partitions=1)


async def deleted(adapter: KafkaAdapter, topic: TopicSpec) -> None:
    name = adapter._session.names.topic(topic)
    await brokers_of(adapter).delete([name])
    async with asyncio.timeout(10):
        while await brokers_of(adapter).partitions([name]):
            await asyncio.sleep(0.02)


async def lost(consumer) -> TopicNotFound:
    with pytest.raises(TopicNotFound) as told:
        for _ in range(20):
            await consumer.receive(1, 0.5)
    return told.value


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_group_reads_a_topic_that_was_made_anew_from_its_first_message(
    bench: Bench, topic: TopicSpec
) -> None:
    """Neither where it was in the old one counts, nor where it began."""
    adapter, publisher = await bench.adapter(**QUICK), await bench.adapter()
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "before it began")
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(publisher, topic, "old")
    deliveries = await receive(consumer, 1)
    await ack(consumer, deliveries)
    await deleted(publisher, topic)

    assert isinstance(await lost(consumer), TopologyLost)
    await consumer.close()
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, *(f"new {number}" for number in range(4)))
    await adapter.declare(Topology(groups=[group]))

    deliveries = await receive(bench.consumer(adapter, group), 4)
    assert ids(deliveries) == [f"new {number}" for number in range(4)]


async def test_a_member_that_still_held_something_commits_nothing_of_it_to_the_new_topic(
    bench: Bench,
) -> None:
    adapter = await bench.adapter(**QUICK)
    group = await bench.group(adapter, UNORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, UNORDERED, "old 0", "old 1", "old 2")
    held = await receive(consumer, 3)
    await deleted(adapter, UNORDERED)
    assert isinstance(await lost(consumer), TopologyLost)

    await (await bench.adapter()).declare(Topology(groups=[group]))
    await ack(consumer, held)
    await consumer.close()

    names = adapter._session.names
    place = Place(names.topic(UNORDERED), 0)
    committed = await brokers_of(adapter).committed(names.group(group), [place])
    assert place not in committed or committed[place].offset == 0


async def test_a_member_of_a_deleted_group_does_not_make_its_topic_anew(bench: Bench) -> None:
    adapter = await bench.adapter(**QUICK)
    group: GroupSpec = await bench.group(adapter, UNORDERED)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    await adapter._session.topology.registry.remove(("group", "orders", "billing"))
    await deleted(adapter, UNORDERED)

    assert not isinstance(await lost(consumer), TopologyLost)
