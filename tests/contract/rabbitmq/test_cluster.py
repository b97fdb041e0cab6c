"""A cluster of three nodes, of which one is killed."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from messaging.adapter import Consumer, TopicSpec
from messaging.message import Receipt
from messaging_contracts.brokers import rabbitmq_cluster
from messaging_rabbitmq import RabbitMQAdapter, connection, members
from messaging_rabbitmq.ports import RENEWED
from tests.contract.bench import ack, healthy, ids, outgoing, publish, receive
from tests.contract.rabbitmq.support import Bench

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def store(adapter: RabbitMQAdapter, name: str) -> None:
    """One to each partition, however often: its queue may be electing a leader, its connection gone."""
    for partition in range(2):
        one = outgoing(ORDERED, f"{name}{partition}", partition=partition)
        async with asyncio.timeout(30):
            while not isinstance((await adapter.publish([one]))[0], Receipt):
                await asyncio.sleep(0.05)


async def handled(consumer: Consumer, number: int) -> list[list[str]]:
    """What came, by partition, each once."""
    names: dict[str, int] = {}
    async with asyncio.timeout(30):
        while len(names) < number:
            deliveries = await receive(consumer, 1, 30)
            names.update(dict.fromkeys(ids(deliveries), 0))
            await ack(consumer, deliveries)
    return [[name for name in names if name.endswith(part)] for part in "01"]


@pytest.mark.timeout(400)  # three nodes start
async def test_an_ordered_group_goes_on_and_balances_without_the_node_that_counted_its_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "AGAIN", 0.5)
    monkeypatch.setattr(connection, "randrange", lambda hosts: 0 * hosts)  # the node that is killed
    with rabbitmq_cluster() as nodes:
        first, *others = nodes
        async with AsyncExitStack() as stack:
            bench = Bench(first.url, stack)
            group = await bench.group(await bench.adapter(), ORDERED)
            adapter, other = [await bench.adapter(node.url) for node in others]
            monkeypatch.setattr(
                connection, "randrange", lambda _: 0
            )  # the node that is killed is tried first
            of_all = await bench.adapter(
                "amqp://guest:guest@" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
            )
            await bench.group(of_all, ORDERED)
            one = bench.consumer(adapter, group)
            assert await one.receive(1, 0.1) == ()

            await asyncio.to_thread(first.kill)
            for name, publisher in (("a", adapter), ("b", of_all)):
                await store(publisher, name)
            assert await handled(one, 4) == [["a0", "b0"], ["a1", "b1"]]

            await bench.group(other, ORDERED)  # a program starts meanwhile
            two = bench.consumer(other, group)
            async with asyncio.timeout(30):
                while {len(each.status().partitions or ()) for each in (one, two)} != {1}:
                    await one.receive(1, 0.1)
                    await two.receive(1, 0.1)
            (info,) = (await healthy(other)).groups
            assert info.members == 2
            assert set(one.status().partitions or ()).isdisjoint(two.status().partitions or ())


async def test_what_was_published_while_its_queue_had_no_leader_is_not_refused_for_ever(bench: Bench) -> None:
    # Told here as if by the broker: RabbitMQ takes nothing more of such a channel.
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", partitions=1))
    ports = adapter._session.sender.ports
    await publish(adapter, group.topic, "a")
    (before,) = ports._all
    before.opened -= RENEWED
    assert before.ended is not None
    before.send(1)
    ports.unconfirmed += 1
    before.ended(1, True)

    await publish(adapter, group.topic, "b")

    assert before not in ports._all
    assert ports.unconfirmed == 0
