"""What somebody deletes by hand: told, and made anew with all that belongs to it."""

import pytest

from messaging.adapter import Done, TopicSpec, Topology
from messaging.errors import LeaseLost, TopicNotFound, TopologyLost
from messaging.message import Reject
from messaging_sqs import lost_letters
from tests.contract.bench import (
    handled,
    health_naming,
    healthy,
    ids,
    nothing,
    outgoing,
    publish,
    receive,
    settle,
)
from tests.contract.sqs.support import Bench, intercept

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
    await adapter._topology.queues.delete(await adapter._topology.queue_url(group))

    assert isinstance(await lost(consumer), TopologyLost)
    await consumer.close()
    await adapter.declare(Topology(groups=[group]))
    await publish(adapter, group.topic, "new")

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["new"]


async def test_a_suspect_whose_queue_is_deleted_before_it_is_marked_is_lost(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "poison")
    (delivery,) = await receive(consumer, 1)
    await adapter._topology.queues.delete(await adapter._topology.queue_url(group))

    with pytest.raises(LeaseLost):
        await consumer.isolate(delivery)


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
    await adapter._connection.call("sns", "delete_topic", TopicArn=adapter._topology.state(topic).arn)

    (gone,) = await publisher.publish([outgoing(topic, "gone", key="k")])
    health = await health_naming(adapter, topic.name)
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "after", key="k")

    assert isinstance(gone, TopicNotFound)
    assert not health.connected
    assert set(ids(await handled(bench.consumer(adapter, group), 2))) == {"before", "after"}
    await healthy(adapter)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone is left alone for no time."""
    monkeypatch.setattr(lost_letters, "LEFT_ALONE", 0.0)


async def delete_dead(adapter, group) -> None:
    await adapter._topology.queues.delete(await adapter._topology.dead_url(group))


async def rejected(bench: Bench, adapter, group):
    """A member, and a delivery of its that is to become a dead letter."""
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "bad", key="k")
    return consumer, await receive(consumer, 1)


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_dead_letters_that_are_deleted_alone_are_none_and_the_next_one_makes_their_queue_anew(
    any_bench: Bench, topic: TopicSpec, at_once, caplog
):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, topic)
    consumer, deliveries = await rejected(any_bench, adapter, group)
    await delete_dead(adapter, group)
    dead = adapter.dead_letters(group)

    assert await dead.count() == 0
    async with dead.scan() as letters:
        assert [letter async for letter in letters] == []
    assert [info.dead_letters for info in await adapter.groups()] == [0]
    assert await settle(consumer, deliveries, Reject("bad")) == [Done()]
    assert await dead.count() == 1
    assert "what was in it is lost" in caplog.text


async def test_deleted_dead_letters_are_left_alone_at_first_and_the_message_stays_ours(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer, deliveries = await rejected(bench, adapter, group)
    await delete_dead(adapter, group)

    (early,) = await settle(consumer, deliveries, Reject("bad"))

    assert "made anew" in repr(early)
    assert await consumer.extend(deliveries, 30.0) == [True]


async def test_deleted_dead_letters_are_not_made_anew_where_the_topology_is_only_verified(
    bench: Bench, at_once
):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.declare(Topology(groups=[group], mode="verify"))
    consumer, deliveries = await rejected(bench, adapter, group)
    await delete_dead(adapter, group)

    (refused,) = await settle(consumer, deliveries, Reject("bad"))
    await (await bench.adapter()).declare(Topology(groups=[group]))

    assert "declare the group" in repr(refused)
    assert await settle(consumer, deliveries, Reject("bad")) == [Done()]


@pytest.mark.parametrize("late", ["get_queue_attributes", "create_queue"], ids=["looks", "makes"])
async def test_a_member_with_a_dead_letter_to_store_does_not_make_a_deleted_group_anew(
    bench: Bench, at_once, monkeypatch, late: str
):
    """Somebody deletes the group just when the member looks for its dead letters, or just when it makes them anew."""
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    consumer, deliveries = await rejected(bench, adapter, group)
    await delete_dead(adapter, group)

    async def overtaken(call, parameters):
        await other.delete_group(group)
        return await call(**parameters)

    with monkeypatch.context() as patched:
        intercept(adapter, patched, late, overtaken)
        (refused,) = await settle(consumer, deliveries, Reject("bad"))

    assert "it was deleted" in repr(refused)
    assert await other._topology.queues.find(other._topology.names.dead(group)) is None
    assert not isinstance(await lost(consumer), TopologyLost)


async def test_dead_letters_that_are_made_anew_while_their_group_is_deleted_are_deleted_with_it(
    bench: Bench, at_once, monkeypatch
):
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    consumer, deliveries = await rejected(bench, adapter, group)

    async def overtaken(call, parameters):
        answer = await call(**parameters)
        if "dead" in parameters["QueueUrl"]:
            await settle(consumer, deliveries, Reject("bad"))
        return answer

    intercept(other, monkeypatch, "delete_queue", overtaken)
    await other.delete_group(group)

    assert await other._topology.queues.find(other._topology.names.dead(group)) is None
    assert not isinstance(await lost(consumer), TopologyLost)
