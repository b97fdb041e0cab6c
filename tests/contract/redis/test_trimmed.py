"""Entries that somebody removes while a member handles them: what becomes of it is stored all the same (1)."""

import pytest

from messaging.adapter import Done, Hold
from messaging.message import Ack, Reject, Release, Retry


async def trim(adapter, group) -> None:
    keys = adapter._topology.group_keys(group)
    redrives = [keys.redrive(partition) for partition in range(group.topic.partitions)]
    for stream in (*keys.topic.streams, keys.retry, *redrives):
        if await adapter.native.exists(stream):
            await adapter.native.xtrim(stream, maxlen=0, approximate=False)


@pytest.mark.parametrize("outcome", [Retry(), Release()])
@pytest.mark.parametrize("after", [0.0, 0.3])
async def test_what_was_trimmed_while_it_was_handled_is_tried_again(bench, outcome, after, caplog):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3)
    for attempt in (1, 2):  # of the second, the copy was trimmed
        deliveries = await bench.receive(consumer, 3)
        await trim(adapter, group)
        results = await bench.settle(consumer, deliveries, outcome, after=after, failure="{}")
        assert results == [Done()] * 3
        assert {one.attempt for one in deliveries} == ({attempt} if isinstance(outcome, Retry) else {1})
    again = await bench.receive(consumer, 3)
    assert {one.message.id for one in again} == {"m0", "m1", "m2"}
    assert {one.message.body for one in again} == {one.message.body for one in deliveries}
    assert "removed from its stream" in caplog.text


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_was_trimmed_while_it_was_handled_is_a_dead_letter_and_comes_back(bench, ordered):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=ordered)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3)
    for _ in range(2):  # of the second, the redriven copy was trimmed
        deliveries = await bench.receive(consumer, 3)
        await trim(adapter, group)
        assert await bench.settle(consumer, deliveries, Reject("bad"), failure="{}") == [Done()] * 3
        store = adapter.dead_letters(group)
        assert await store.count() == 3
        async with store.scan() as letters:
            found = [letter async for letter in letters]
            assert {letter.message.body for letter in found} == {one.message.body for one in deliveries}
            await store.redrive([(letter, letter.message, None) for letter in found])
    assert {one.message.id for one in await bench.receive(consumer, 3)} == {"m0", "m1", "m2"}


async def test_an_ordered_group_holds_what_was_trimmed_and_is_done_with_it(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    deliveries = await bench.receive(consumer, 1)
    await trim(adapter, group)
    (held,) = await bench.settle(consumer, deliveries, Retry(), after=0.1, failure="{}")
    assert isinstance(held, Hold)
    assert await bench.settle(consumer, deliveries, Ack()) == [Done()]
