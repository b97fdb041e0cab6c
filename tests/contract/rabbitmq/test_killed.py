"""A broker that is killed while it makes a queue: the queue is there afterwards, and never answers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import aiormq
import pytest
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity

from messaging.adapter import Done, GroupSpec, SettleError, TopicSpec, Topology
from messaging.errors import ConnectionFailed
from messaging.message import Retry
from messaging_contracts.brokers import Broker, start
from messaging_rabbitmq import RabbitMQAdapter, answering
from messaging_rabbitmq.answering import silent as silent_queues
from messaging_rabbitmq.arguments import quorum
from messaging_rabbitmq.tiers import tier_arguments
from tests.contract.bench import ids, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

TIERS = (125, 250, 500, 1000, 2000)
SOON = 2.0
"""Seconds for which a queue may be silent here: each test waits for it several times."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with start("rabbitmq", own=True, native=True) as broker:
        yield broker


@pytest.fixture
async def bench(broker: Broker) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(broker.url, stack)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "ANSWER", SOON)


async def kill_while_it_makes(
    bench: Bench, broker: Broker, queues: Mapping[str, dict[str, Any]]
) -> Collection[str]:
    """Those of the queues, which come with their arguments, that do not answer afterwards."""
    connection = await aiormq.connect(broker.url)
    made: list[asyncio.Task[Any]] = []
    for queue, arguments in queues.items():
        channel = await connection.channel()
        made.append(asyncio.create_task(channel.queue_declare(queue, durable=True, arguments=arguments)))
    await asyncio.wait(made, return_when=asyncio.FIRST_COMPLETED)
    broker.kill()
    await asyncio.gather(*made, return_exceptions=True)
    with suppress(AMQPError, OSError):
        await connection.close()
    await asyncio.to_thread(broker.restart)
    return await silent_queues((await bench.adapter())._session.settings, list(queues))


async def kill_while_it_makes_tiers(bench: Bench, broker: Broker) -> tuple[GroupSpec, float]:
    """The group, and the seconds of a tier of it that does not answer."""
    for attempt in range(5):  # to kill it a moment too late makes nothing that is silent
        adapter = await bench.adapter()
        group = await bench.group(adapter, name=f"billing-{attempt}")
        names = adapter._session.names
        tiers = {names.tier(group, time): tier_arguments(names, group, time) for time in TIERS}
        if silent := await kill_while_it_makes(bench, broker, tiers):
            return group, min(time for time in TIERS if names.tier(group, time) in silent) / 1000
    pytest.fail("no queue was being made when the broker was killed")


async def test_a_delay_does_not_wait_in_a_queue_that_never_answers(
    bench: Bench, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "messaging")
    group, seconds = await kill_while_it_makes_tiers(bench, broker)
    member = await bench.adapter()
    await bench.group(member, name=group.name)
    await publish(member, group.topic, "m1")
    consumer = bench.consumer(member, group)
    deliveries = await receive(consumer, 1)

    began = time.monotonic()
    await settle(consumer, deliveries, Retry(), after=seconds)
    again = await receive(consumer, 1)

    assert (ids(again), again[0].attempt) == (["m1"], 2)
    assert time.monotonic() - began >= seconds
    told = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    tier = member._session.names.tier(group, round(seconds * 1000))
    assert len(told) == 1 and tier in told[0] and group.name in told[0]


async def test_a_queue_that_does_not_answer_holds_up_no_other_group(bench: Bench, broker: Broker) -> None:
    group, seconds = await kill_while_it_makes_tiers(bench, broker)
    member = await bench.adapter()
    groups = [await bench.group(member, name=name) for name in (group.name, "audit")]
    await publish(member, group.topic, "m1")
    consumers = [bench.consumer(member, one) for one in groups]
    deliveries = [await receive(consumer, 1) for consumer in consumers]

    held, free = (
        asyncio.create_task(settle(consumer, taken, Retry(), after=seconds))
        for consumer, taken in zip(consumers, deliveries, strict=True)
    )

    assert await free == [Done()]
    assert not held.done()
    assert await held == [Done()]


async def test_a_queue_that_confirms_nothing_is_asked_again(bench: Bench, broker: Broker) -> None:
    """It could not be asked before: the broker did not answer anybody."""
    group, seconds = await kill_while_it_makes_tiers(bench, broker)
    member = await bench.adapter(connect_timeout=0.5, confirm_timeout=2.0)
    await bench.group(member, name=group.name)
    member._session.topology.queues.exists(member._session.names.tier(group, round(seconds * 1000)))
    await publish(member, group.topic, "m1")
    consumer = bench.consumer(member, group)
    deliveries = await receive(consumer, 1)

    broker.pause()
    try:
        (failed,) = await settle(consumer, deliveries, Retry(), after=seconds)
    finally:
        broker.resume()
    assert isinstance(failed, SettleError)

    publishing = member._session.publishing
    publishing.abort()  # its channel confirms nothing else for a minute
    while publishing.current is not None:
        await asyncio.sleep(0)

    assert await settle(consumer, deliveries, Retry(), after=seconds) == [Done()]
    assert ids(await receive(consumer, 1)) == ["m1"]


async def test_a_suspect_is_isolated_though_the_queue_of_marks_was_cut_off(
    bench: Bench, broker: Broker
) -> None:
    topic = TopicSpec("orders", ordered=True, partitions=1)
    for attempt in range(5):
        adapter = await bench.adapter()
        group = await bench.group(adapter, topic, f"billing-{attempt}")
        marks = adapter._session.names.guard(group, 0)
        silent = await kill_while_it_makes(bench, broker, {marks: quorum()})
        member = await bench.adapter(confirm_timeout=2.0)
        await bench.group(member, topic, group.name)
        await publish(member, topic, "m1", key="k")
        consumer = bench.consumer(member, group)
        (delivery,) = await receive(consumer, 1)

        assert await consumer.isolate(delivery)

        if silent:
            return
    pytest.fail("no queue was being made when the broker was killed")


async def test_a_broker_that_stands_still_loses_nothing_of_a_group_that_is_declared_again(
    bench: Bench, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await bench.adapter()
    group = await bench.group(member)
    async with member._session.topology.registry_of(group.topic, create=False) as entries:
        assert entries is not None
        await entries.remove(group.name)
        await entries.begin(group.name, ordered=False)
    await publish(member, group.topic, "m1")
    queue, declare, stood = member._session.names.queue(group), Channel.queue_declare, list[object]()

    async def stand_still(self: Channel, name: str = "", **options: Any) -> Any:
        if name == queue and not stood:
            broker.pause()
            stood.append(asyncio.get_running_loop().call_later(SOON + 1, broker.resume))
        return await declare(self, name, **options)

    monkeypatch.setattr(Channel, "queue_declare", stand_still)
    await bench.group(await bench.adapter())

    assert stood
    assert ids(await receive(bench.consumer(member, group), 1)) == ["m1"]


async def test_what_no_declaration_has_ended_is_made_anew_by_the_next_group(
    bench: Bench, broker: Broker
) -> None:
    """The queue for other programs' routing keys is of all groups."""
    for attempt in range(5):
        adapter = await bench.adapter()
        topic = TopicSpec(f"orders-{attempt}", partitions=2)
        await adapter.declare(Topology(topics=[topic]))
        async with adapter._session.topology.registry_of(topic, create=True) as entries:
            assert entries is not None
            await entries.begin("billing", ordered=False)
        ingress = adapter._session.names.ingress(topic)
        silent = await kill_while_it_makes(bench, broker, {ingress: quorum(single_active_consumer=True)})

        member = await bench.adapter()
        consumer = bench.consumer(member, await bench.group(member, topic, "audit"))
        await consumer.receive(1, 0)
        channel = await member.native.channel()
        await channel.basic_publish(b"m1", exchange=member._session.names.exchange(topic), routing_key="any")

        assert [one.message.body for one in await receive(consumer, 1)] == [b"m1"]
        if silent:
            return
    pytest.fail("no queue was being made when the broker was killed")


async def test_a_group_whose_declaration_was_cut_off_is_declared_again(bench: Bench, broker: Broker) -> None:
    topic = TopicSpec("orders", ordered=True, partitions=8)
    silent: list[str] = []
    for attempt in range(5):
        adapter = await bench.adapter()
        group = GroupSpec(topic, f"billing-{attempt}", ordered=True)
        await adapter.declare(Topology(topics=[topic]))
        names = adapter._session.names
        declaring = asyncio.create_task(adapter.declare(Topology(groups=[group])))
        await has(adapter, names.queue(group, attempt))
        broker.kill()
        with pytest.raises(ConnectionFailed):
            await declaring
        await asyncio.to_thread(broker.restart)
        silent += await silent_queues(adapter._session.settings, names.declared(group))

        member = await bench.adapter()
        await bench.group(member, topic, group.name)
        await publish(member, topic, *(f"{attempt}-{n}" for n in range(8)), key="k")
        got = ids(await receive(bench.consumer(member, group), 8))

        assert got == [f"{attempt}-{n}" for n in range(8)]
        if silent:
            return
    pytest.fail("no queue was being made when the broker was killed")


async def test_what_a_new_delay_has_confirmed_is_there_after_the_broker_was_killed(
    bench: Bench, broker: Broker
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m1")
    consumer = bench.consumer(adapter, group)
    assert await settle(consumer, await receive(consumer, 1), Retry(), after=0.125) == [Done()]

    broker.kill()
    await asyncio.to_thread(broker.restart)
    member = await bench.adapter()
    await member.declare(Topology(groups=[group]))

    consumer = bench.consumer(member, group)
    (came,) = await receive(consumer, 1)
    if came.attempt == 1:  # the broker had not yet written down that the original was settled
        (came,) = await receive(consumer, 1)
    assert (came.message.id, came.attempt) == ("m1", 2)


async def has(adapter: RabbitMQAdapter, queue: str) -> None:
    """Wait until the queue is declared."""
    while True:
        channel = await adapter.native.channel()
        with suppress(ChannelNotFoundEntity):
            await channel.queue_declare(queue, passive=True)
            return
