"""What SQS keeps of a topic's generations, and where each of them is."""

import asyncio
from dataclasses import replace

from messaging.adapter import DeadLetterStore, TopicSpec, Topology
from messaging.errors import ConfigurationError
from messaging.message import Reject
from tests.contract.bench import ids, publish, receive, settle
from tests.contract.sqs.support import Bench

ORDERS = TopicSpec("orders", ordered=True, partitions=2)
FIVE = replace(ORDERS, generation=2, partitions=5)


async def begin(adapter, *generations: TopicSpec) -> None:
    for one in generations:
        await adapter.generations(one)
        await adapter.declare(Topology(topics=[one]))
        await adapter.begin_generation(one)
        await adapter.generations(one)


async def letters(store: DeadLetterStore) -> list[str]:
    async with store.scan() as found:
        return [letter.message.id async for letter in found]


async def test_of_two_operators_who_begin_at_once_one_is_refused(any_bench: Bench):
    one, two = await any_bench.adapter(), await any_bench.adapter()
    await any_bench.group(one, ORDERS)

    results = await asyncio.gather(
        one.begin_generation(FIVE), two.begin_generation(replace(FIVE, partitions=7)), return_exceptions=True
    )

    (refused,) = [one for one in results if one is not None]
    assert isinstance(refused, ConfigurationError)
    assert "somebody else began it" in str(refused)


async def test_beginning_twice_is_no_error_and_seen_by_others(any_bench: Bench):
    one, two = await any_bench.adapter(), await any_bench.adapter()
    await any_bench.group(one, ORDERS)
    assert await two.generations(TopicSpec("orders")) == [ORDERS]

    await begin(one, FIVE, FIVE)

    assert await two.generations(TopicSpec("orders")) == [ORDERS, FIVE]


async def test_partitions_alone_change_the_record_and_no_queue(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERS)
    await publish(adapter, ORDERS, "before", key="ann")

    await begin(adapter, FIVE)
    await publish(adapter, FIVE, "after", key="ann")
    consumer = bench.consumer(adapter, replace(group, topic=FIVE))
    received = []
    for _ in range(2):  # a queue keeps the next of a key until this one is settled
        (delivery,) = await receive(consumer, 1)
        await settle(consumer, [delivery], Reject("no"), failure="{}")
        received.append(delivery)

    assert ids(received) == ["before", "after"]
    assert [(one.generation, one.dead_letters) for one in await adapter.groups()] == [(2, 2)]
    assert await letters(adapter.dead_letters(group)) == ["before", "after"]
    assert await letters(adapter.dead_letters(replace(group, topic=FIVE))) == []


async def test_another_order_has_queues_of_its_own(bench: Bench):
    adapter = await bench.adapter()
    loose, again = replace(FIVE, ordered=False), replace(FIVE, generation=3)
    await bench.group(adapter, ORDERS)
    await begin(adapter, loose, again)

    groups = [await bench.group(adapter, topic) for topic in (loose, again)]
    for topic in (ORDERS, loose, again):
        await publish(adapter, topic, str(topic.generation), key="ann")
    received = [await receive(bench.consumer(adapter, group), 1) for group in groups]

    assert [ids(one) for one in received] == [["2"], ["3"]]
    assert sorted(one.generation for one in await adapter.groups()) == [1, 2, 3]
