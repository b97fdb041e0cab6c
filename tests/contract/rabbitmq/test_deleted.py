"""What somebody deletes by hand: told, and made anew with all that belongs to it."""

import logging
from typing import Any

import pytest
from aiormq.channel import Channel

from messaging.adapter import DONE, SettleError, TopicSpec, Topology
from messaging.errors import ConnectionFailed, PublishError, TopicNotFound, TopologyLost
from messaging.message import Outcome, Reject, Retry
from tests.contract.bench import health_naming, healthy, ids, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

ORDERED = TopicSpec("clicks", ordered=True, partitions=2)
UNORDERED = TopicSpec("orders", partitions=2)


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_queue_that_is_deleted_alone_is_told_and_declared_anew(
    bench: Bench, topic: TopicSpec
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    channel = await adapter.native.channel()
    await channel.queue_delete(adapter._session.names.queues(group)[0])

    with pytest.raises(TopologyLost, match="deleted"):
        for _ in range(20):
            try:
                await consumer.receive(1, 0.2)
            except ConnectionFailed:  # the broker cancelled its consumer
                continue
    await consumer.close()
    await adapter.declare(Topology(groups=[group]))
    await publish(adapter, topic, "new", key="k")

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["new"]


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_queue_that_is_declared_anew_is_sealed(
    bench: Bench, topic: TopicSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a broker that is killed within a second loses what it has confirmed."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    made = list[str]()
    declare = Channel.queue_declare

    async def told(self: Channel, queue: str = "", **options: Any) -> Any:
        if not options.get("passive"):
            made.append(queue)
        return await declare(self, queue, **options)

    monkeypatch.setattr(Channel, "queue_declare", told)
    await adapter.declare(Topology(groups=[group]))
    whole, made[:] = made.copy(), ()
    await (await adapter.native.channel()).queue_delete(adapter._session.names.queues(group)[0])
    await adapter.declare(Topology(groups=[group]))

    assert made[:-1] == whole
    assert made[-1].startswith(f"{bench.namespace}::delay:{topic.name}:{group.name}:")


async def test_a_deleted_group_is_not_made_anew_by_its_members(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    await (await bench.adapter()).delete_group(group)

    with pytest.raises(TopicNotFound) as told:
        for _ in range(20):
            try:
                await consumer.receive(1, 0.2)
            except ConnectionFailed:
                continue
    assert not isinstance(told.value, TopologyLost)


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_topic_that_is_made_anew_reaches_the_groups_it_had(bench: Bench, topic: TopicSpec) -> None:
    """Whoever declares the topic alone, as a publisher does, declares no group of it."""
    adapter, publisher = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    await publish(publisher, topic, "before", key="k")
    assert ids(await receive(consumer, 1)) == ["before"]
    channel = await adapter.native.channel()
    await channel.exchange_delete(adapter._session.names.exchange(topic))

    results = [(await publisher.publish([outgoing(topic, "gone", key="k")]))[0] for _ in range(3)]
    health = await health_naming(adapter, topic.name)
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "after", key="k")

    assert all(isinstance(one, PublishError) for one in results)
    assert isinstance(results[-1], TopicNotFound)
    assert not health.connected
    assert ids(await receive(consumer, 1)) == ["after"]
    await healthy(adapter)


@pytest.mark.parametrize("outcome", [Retry("busy"), Reject("no")], ids=["tier", "dead letters"])
async def test_what_a_deleted_queue_of_a_group_held_is_said_to_be_lost(
    bench: Bench, caplog: pytest.LogCaptureFixture, outcome: Outcome
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, UNORDERED)
    await publish(adapter, UNORDERED, "lost", "first", "second")
    consumer = bench.consumer(adapter, group)
    lost, first, second = await receive(consumer, 3)
    assert await settle(consumer, [lost], outcome, after=60) == [DONE]
    names = adapter._session.names
    queue = names.tier(group, 32_000) if isinstance(outcome, Retry) else names.dead(group)
    await (await adapter.native.channel()).queue_delete(queue)
    caplog.set_level(logging.WARNING, "messaging")

    (refused,) = await settle(consumer, [first], outcome, after=60)
    stored = (
        await settle(consumer, [first], outcome, after=60),
        await settle(consumer, [second], outcome, after=60),
    )

    assert isinstance(refused, SettleError)
    assert stored == ([DONE], [DONE])
    (told,) = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert queue in told and "billing" in told and "orders" in told
