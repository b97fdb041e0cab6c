"""What somebody deletes by hand: told, and made anew with all that belongs to it."""

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import TopicNotFound, TopologyLost
from tests.contract.sqs.support import Bench, ids, nothing, outgoing, publish, receive

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
UNORDERED = TopicSpec("orders", partitions=2)


async def lost(consumer) -> TopicNotFound:
    with pytest.raises(TopicNotFound) as told:
        for _ in range(5):
            await consumer.receive(1, 1.0)
    return told.value


async def test_a_queue_that_is_deleted_alone_is_told_and_declared_anew(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await nothing(consumer, 0.1)
    await adapter._topics.queues.delete(await adapter._topics.queue_url(group))

    assert isinstance(await lost(consumer), TopologyLost)
    await consumer.close()
    await adapter.declare(Topology(groups=[group]))
    await publish(adapter, group.topic, "new")

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["new"]


async def test_a_deleted_group_is_not_made_anew_by_its_members(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await nothing(consumer, 0.1)
    await (await bench.adapter()).delete_group(group)

    assert not isinstance(await lost(consumer), TopologyLost)


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_topic_that_is_made_anew_reaches_the_groups_it_had(bench: Bench, topic: TopicSpec):
    """Whoever declares the topic alone, as a publisher does, declares no group of it."""
    adapter, publisher = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, topic)
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "before", key="k")
    await adapter._connection.call("sns", "delete_topic", TopicArn=adapter._topics.state(topic).arn)

    (gone,) = await publisher.publish([outgoing(topic, "gone", key="k")])
    health = await adapter.health()
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "after", key="k")

    assert isinstance(gone, TopicNotFound)
    assert not health.connected
    assert topic.name in (health.error or "")
    assert set(ids(await receive(bench.consumer(adapter, group), 2))) == {"before", "after"}
    assert (await adapter.health()).connected
