"""Partitions that nobody consumes: RabbitMQ kept their locks after their owners had gone."""

import asyncio
import logging

import pytest
from aiormq import connect

from messaging.adapter import GroupInfo, GroupSpec, TopicSpec
from messaging_rabbitmq import RabbitMQAdapter, ownership, status
from tests.contract.bench import ack, healthy, ids, publish, receive
from tests.contract.rabbitmq.support import Bench

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def kept_locked(bench: Bench, adapter: RabbitMQAdapter, group: GroupSpec) -> None:
    """Its locks stay with a connection that consumes nothing, as after a crash of the virtual host."""
    connection = await connect(bench.url)
    bench.stack.push_async_callback(connection.close)
    channel = await connection.channel()
    for partition in range(group.topic.partitions):
        await channel.queue_declare(adapter._session.names.own(group, partition), exclusive=True)


async def told(adapter: RabbitMQAdapter) -> GroupInfo:
    (info,) = (await healthy(adapter)).groups
    return info


async def test_a_lock_that_is_nobodys_keeps_no_member_from_a_partition(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ownership, "UNOWNED", 0.6)
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    await kept_locked(bench, adapter, group)
    for partition in range(2):
        await publish(adapter, ORDERED, f"a{partition}", f"b{partition}", partition=partition)
    one, two = bench.consumer(adapter, group), bench.consumer(other, group)

    with caplog.at_level(logging.WARNING, "messaging"):
        deliveries = await receive(one, 4)
        await ack(one, deliveries)
        async with asyncio.timeout(8):
            while len(two.status().partitions or ()) != 1:
                await one.receive(1, 0.1)
                await two.receive(1, 0.1)

    for partition in range(2):
        assert [each for each in ids(deliveries) if each.endswith(str(partition))] == [
            f"a{partition}",
            f"b{partition}",
        ]
    assert set(one.status().partitions or ()).isdisjoint(two.status().partitions or ())
    assert "keeps its lock" in caplog.text


async def test_health_tells_of_messages_that_the_broker_hands_to_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "UNOWNED", 0.2)
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    await kept_locked(bench, adapter, group)
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(1, 0.1) == ()
    assert (await told(adapter)).stuck is None

    await publish(adapter, ORDERED, "a", partition=1)
    async with asyncio.timeout(15):
        while (stuck := (await told(adapter)).stuck) is None:
            assert await consumer.receive(1, 0.1) == ()
    assert adapter._session.names.queue(group, 1) in stuck
    assert adapter._session.names.queue(group, 0) not in stuck

    monkeypatch.setattr(ownership, "UNOWNED", 0.0)
    await ack(consumer, await receive(consumer, 1))
    assert (await told(adapter)).stuck is None
