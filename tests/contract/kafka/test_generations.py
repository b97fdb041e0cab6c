"""What Kafka keeps of a topic's generations."""

import asyncio
from dataclasses import replace

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import ConfigurationError
from messaging_kafka.records import Parcel
from tests.contract.kafka.support import Bench, brokers_of

ORDERS = TopicSpec("orders", ordered=True, partitions=2)


async def test_of_two_operators_who_begin_at_once_one_is_refused(bench: Bench):
    one, two = await bench.adapter(), await bench.adapter()
    await bench.group(one, ORDERS)
    five, seven = (replace(ORDERS, generation=2, partitions=number) for number in (5, 7))

    results = await asyncio.gather(
        one.begin_generation(five), two.begin_generation(seven), return_exceptions=True
    )

    (refused,) = [one for one in results if one is not None]
    assert isinstance(refused, ConfigurationError)
    assert "somebody else began it" in str(refused)


async def test_beginning_twice_is_no_error(bench: Bench):
    one, two = await bench.adapter(), await bench.adapter()
    await bench.group(one, ORDERS)
    new = replace(ORDERS, generation=2, partitions=5)
    await one.declare(Topology(topics=[new]))

    await one.begin_generation(new)
    await two.begin_generation(new)

    assert await two.generations(TopicSpec("orders")) == [ORDERS, new]


async def test_a_former_generation_that_was_grown_by_hand_is_read_whole(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERS)
    await brokers_of(adapter).grow(adapter._session.names.topic(ORDERS), 3)
    new = replace(ORDERS, generation=2, partitions=5)
    other = await bench.adapter()
    await other.declare(Topology(topics=[new]))
    await other.begin_generation(new)

    former, latest = await other.generations(TopicSpec("orders"))

    assert (former.partitions, latest) == (3, new)
    await other.declare(Topology(groups=[replace(group, topic=former)]))


async def test_a_deleted_group_has_finished_nothing(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERS)
    assert await adapter.finish(group, 1)
    assert await adapter.finished(group) == {1}

    await adapter.delete_group(group)
    await bench.group(adapter, ORDERS)

    assert await adapter.finished(group) == set()


@pytest.mark.parametrize("partition", [0, 1])
async def test_a_partition_is_not_finished_while_a_redriven_message_waits_beside_it(
    bench: Bench, partition: int
):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERS)
    redriven = Parcel(adapter._session.names.redrive(group), 0, b"ann", b"x", [])
    await adapter._session.writer.write([redriven])

    assert await adapter.finish(group, partition) is (partition == 1)
