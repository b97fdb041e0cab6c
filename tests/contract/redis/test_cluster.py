"""Three nodes of a Redis Cluster."""

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConnectionFailed
from messaging.message import Receipt, Reject, Retry
from tests.contract.bench import healthy
from tests.contract.redis.stores import keeps_keys


def cluster_url(nodes):
    return nodes.url.replace("redis://", "redis+cluster://") if "+cluster" not in nodes.url else nodes.url


async def test_everything_works_on_a_cluster_with_topics_on_different_nodes(cluster):
    nodes, bench = cluster
    adapter = await bench.adapter(cluster_url(nodes))
    topics = [TopicSpec(f"topic{n}", ordered=n % 2 == 0, partitions=3) for n in range(6)]
    groups = [GroupSpec(topic, "billing", ordered=topic.ordered) for topic in topics]
    await adapter.declare(Topology(topics, groups))

    results = await adapter.publish(
        [bench.outgoing(topic, n, str(n % 5)) for n in range(20) for topic in topics]
    )

    assert all(type(result) is Receipt for result in results)
    assert len({adapter._connection.shard(adapter._topology.keys(topic).record) for topic in topics}) > 1
    for group in groups:
        consumer = bench.consumer(adapter, group)
        deliveries = await bench.receive(consumer, 20)
        await bench.settle(consumer, deliveries[:5], Retry("no"), after=0.1)
        await bench.settle(consumer, deliveries[5:10], Reject("no"))
        await bench.settle(consumer, deliveries[10:])
        if group.ordered:
            await bench.settle(consumer, deliveries[:5])
        else:
            await bench.drain(consumer, 5)
        assert await adapter.dead_letters(group).count() == 5
        await consumer.close()
    inbox = await adapter.reply_inbox()
    await adapter.reply([(inbox.address, bench.message(1))])
    assert [reply.id for reply in await inbox.receive(5, 10)] == ["m1"]
    await inbox.close()
    assert len((await healthy(adapter)).groups) == 6


async def test_an_idempotency_store_on_a_cluster_keeps_keys_on_all_nodes(cluster):
    nodes, _ = cluster

    await keeps_keys(cluster_url(nodes), count=20)


async def test_a_slot_that_moved_is_followed_without_a_loss(cluster):
    nodes, bench = cluster
    adapter = await bench.adapter(cluster_url(nodes))
    # An empty slot moves as a whole: the topic's first key comes after the move, the adapter's map is from before.
    topic = TopicSpec("orders", partitions=2)
    record = adapter._topology.keys(topic).record
    slot = adapter.native.keyslot(record)
    owner = adapter._connection.shard(record)
    target = next(node for node in adapter.native.get_primaries() if f"{node.host} {node.port}" != owner)
    target_id = await adapter.native.execute_command("CLUSTER", "MYID", target_nodes=target)
    for node in adapter.native.get_primaries():
        await adapter.native.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id, target_nodes=node)

    group = await bench.group(adapter, partitions=2)
    results = await bench.publish(adapter, group.topic, 10)
    got = await bench.drain(bench.consumer(adapter, group), 10)

    assert all(type(result) is Receipt for result in results)
    assert len(got) == 10
    assert adapter._connection.shard(record) != owner


async def test_an_unreachable_cluster_says_where_it_looked(bench):
    with pytest.raises(ConnectionFailed, match="127.0.0.1:1"):
        await bench.made("redis+cluster://127.0.0.1:1").open()
