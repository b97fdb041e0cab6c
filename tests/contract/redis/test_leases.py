"""Leases are kept whatever else this process asks of Redis."""

import asyncio

import pytest

from messaging.adapter import Done

LEASE = 2.0


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_lease_is_kept_while_all_connections_for_commands_are_in_use(bench, new_owner, ordered):
    adapter = await bench.adapter(lease=LEASE, partition_lease=LEASE, block=0.1, max_connections=1)
    group = await bench.group(adapter, ordered=ordered)
    owner = new_owner()
    consumer = bench.consumer(adapter, group, owner=owner)
    await bench.publish(adapter, group.topic, 1)
    deliveries = await bench.receive(consumer, 1)

    key = f"{bench.namespace}-never"
    busy = asyncio.create_task(adapter._connection.call(key, "BLPOP", key, 1.4 * LEASE))
    while not busy.done():
        await asyncio.sleep(0.15)
        assert await consumer.extend(deliveries, LEASE) == [
            True
        ]  # no later than that, or the lease had ended

    assert owner.lost == []
    assert await bench.settle(consumer, deliveries) == [Done()]


async def test_what_keeps_a_lease_is_connected_before_it_is_needed(own):
    _, bench = await own()  # nobody else connects there
    adapter = await bench.adapter(lease=LEASE)
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 1)
    consumer = bench.consumer(adapter, group)
    deliveries = await bench.receive(consumer, 1)

    connected = await adapter.native.info("stats")
    assert await consumer.extend(deliveries, LEASE) == [True]

    again = await adapter.native.info("stats")
    assert again["total_connections_received"] == connected["total_connections_received"]


async def test_health_is_connected_while_anything_is_answered(bench):
    adapter = await bench.adapter(lease=LEASE, max_connections=1)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    deliveries = await bench.receive(consumer, 1)

    key = f"{bench.namespace}-never"
    busy = asyncio.create_task(adapter._connection.call(key, "BLPOP", key, 1.5))
    probe = asyncio.create_task(adapter.health())
    await asyncio.sleep(0)  # the probe has begun, and waits for the one connection
    assert await consumer.extend(deliveries, LEASE) == [True]

    health = await probe
    assert health.connected
    assert "did not tell the figures" in health.error
    await busy


async def test_a_fence_is_larger_than_all_before_it_though_redis_has_lost_them(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True, partitions=1)
    await bench.publish(adapter, group.topic, 2, keys=1)
    former = bench.consumer(adapter, group)
    (before,) = await bench.receive(former, 1)
    await former.close()

    leases = adapter._topology.group_keys(group).leases
    await adapter.native.delete(leases)
    (after,) = await bench.receive(bench.consumer(adapter, group), 1)

    assert after.fence > before.fence


async def test_a_dead_member_is_followed_soon_though_the_clock_of_redis_was_set_back(bench):
    adapter = await bench.adapter(partition_lease=0.5)
    group = await bench.group(adapter, ordered=True, partitions=1)
    await bench.publish(adapter, group.topic, 1, keys=1)
    dead = bench.consumer(adapter, group)
    await bench.receive(dead, 1)
    await bench.stop_short(dead)

    # What was written before the clock was set back by an hour is an hour ahead.
    keys = adapter._topology.group_keys(group)
    for member, until in await adapter.native.zrange(keys.members, 0, -1, withscores=True):
        await adapter.native.zadd(keys.members, {member: until + 3_600_000})
    await adapter.native.hincrby(keys.leases, "beat", 3_600_000)

    assert await bench.receive(bench.consumer(adapter, group), 1)
