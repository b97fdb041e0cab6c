"""Positions of groups that somebody set beyond the end of their streams."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

BEYOND = "99999999999999-0"


async def set_positions(adapter, group, id):
    keys = adapter._topology.group_keys(group)
    for stream in keys.topic.streams:
        await adapter.native.xgroup_setid(stream, keys.name, id)
    return keys.topic.streams


async def told(adapter):
    health = await adapter.health()
    (info,) = health.groups
    return info.stuck


def numbers(deliveries):
    return sorted(int(delivery.message.id[1:]) for delivery in deliveries)


async def test_an_ordered_group_goes_on_where_it_was(bench, caplog):
    adapter = await bench.adapter(block=0.1)
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 20, keys=5)
    first = await bench.drain(consumer, 20)
    assert await consumer.receive(1, 0.2) == []

    await set_positions(adapter, group, BEYOND)
    assert await told(adapter) is not None
    await bench.publish(adapter, group.topic, 20, keys=5, first=20)
    with caplog.at_level(logging.ERROR, "messaging"):
        rest = await bench.drain(consumer, 20, within=4)

    assert (numbers(first), numbers(rest)) == (list(range(20)), list(range(20, 40)))
    assert "nothing is left out" in caplog.text
    assert await consumer.receive(1, 0.2) == []


async def test_a_busy_member_of_an_ordered_group_puts_it_back_too(bench, monkeypatch):
    monkeypatch.setattr("messaging_redis.partitioned._POSITIONS_LOOK", 0.2)
    adapter = await bench.adapter(block=0.1)
    group = await bench.group(adapter, ordered=True, partitions=2)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2)
    await bench.drain(consumer, 2)
    keys = adapter._topology.group_keys(group)

    await adapter.native.xgroup_setid(keys.topic.streams[1], keys.name, BEYOND)
    await bench.publish(adapter, group.topic, 1, first=3)
    got, number = [], 4
    while 3 not in numbers(got):
        assert number < 2000
        await bench.publish(adapter, group.topic, 1, first=number)
        got += await bench.drain(consumer, 1)
        number += 2

    assert await told(adapter) is None


async def without_a_trace(bench, adapter, ordered):
    """A group without members that has handled 0 to 9, and whose positions were then lost."""
    group = await bench.group(adapter, ordered=ordered, partitions=2)
    member = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 10)
    handled = await bench.drain(member, 10)
    await member.close()
    streams = await set_positions(adapter, group, BEYOND)
    await bench.publish(adapter, group.topic, 10, first=10)
    return group, streams, handled


@pytest.mark.parametrize("ordered", [False, True])
async def test_health_tells_how_to_mend_what_no_member_can_know(bench, ordered):
    adapter = await bench.adapter(block=0.1, history=0.01)
    group, streams, handled = await without_a_trace(bench, adapter, ordered)
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(10, 0.3) == []

    stuck = await told(adapter)
    await adapter._trimmer.trim(group.topic, now=True)
    last = {one.partition: one.position.partition("/")[2] for one in handled}
    for partition, stream in enumerate(streams):
        assert stream in stuck
        await adapter.native.xgroup_setid(stream, group.name, last[partition])

    assert numbers(await bench.drain(consumer, 10)) == list(range(10, 20))
    assert "XGROUP SETID <stream> billing <id>" in stuck
    assert await told(adapter) is None


async def test_what_waits_beside_a_lost_position_does_not_wake_a_member_again_and_again(bench, monkeypatch):
    adapter = await bench.adapter(block=0.1)
    group, _, _ = await without_a_trace(bench, adapter, True)
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(1, 0.3) == []
    await bench.publish(adapter, group.topic, 10, first=20)
    run, asked = consumer._connection.run, []

    async def counted(script, *args, **more):
        asked.append(script)
        return await run(script, *args, **more)

    monkeypatch.setattr(consumer._connection, "run", counted)
    assert await consumer.receive(1, 0.5) == []

    assert len(asked) < 20


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("start", ["latest", "now", "soon"])
async def test_a_start_that_a_program_asked_for_is_left_as_it_is(bench, ordered, start):
    times = {"now": datetime.now(UTC), "soon": datetime.now(UTC) + timedelta(hours=1), "latest": "latest"}
    adapter = await bench.adapter(block=0.1)
    group = await bench.group(adapter, ordered=ordered, start=times[start])
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(1, 0.2) == []

    await bench.publish(adapter, group.topic, 4)

    if start != "soon":
        await bench.drain(consumer, 4)
    assert await consumer.receive(1, 0.2) == []
    assert await told(adapter) is None
