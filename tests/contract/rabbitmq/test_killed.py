"""A broker that is killed while it makes a queue: the queue is there afterwards, and never answers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
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
from tests.contract.bench import ids, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

TIERS = (125, 250, 500, 1000)
DELAYING = 3
"""Tests that need a group of which a tier does not answer: each takes one."""
OTHERS = 2
"""Of all else that is being made so many: what is just made when the broker is killed may answer."""
SOON = 2.0
"""Seconds for which a queue may be silent here: most tests wait for it."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with start("rabbitmq", own=True, native=True) as broker:
        yield broker


@pytest.fixture
async def bench(broker: Broker) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(broker.url, stack)


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "ANSWER", SOON)
        yield


@dataclass
class Victims:
    """What the broker was making when it was killed, and what does not answer of it."""

    namespace: str
    delaying: list[tuple[GroupSpec, float]]
    """Each with the seconds of a silent tier."""
    marked: list[GroupSpec]
    """Their queue of marks."""
    foreign: list[TopicSpec]
    """Their queue for other programs' routing keys, made for a group whose declaration did not end."""
    cut_off: list[GroupSpec]
    """One or more of their queues: they were being declared."""

    def suffice(self) -> bool:
        return len(self.delaying) == DELAYING and all((self.marked, self.foreign, self.cut_off))


@pytest.fixture(scope="module")
def victims(broker: Broker) -> Victims:
    """All tests share one kill: to start the broker again takes longer than any of them."""
    for _ in range(5):  # killed a moment too late, it makes nothing that is silent
        if (victims := asyncio.run(kill_while_it_makes_queues(broker))).suffice():
            return victims
    pytest.fail("too few queues were being made when the broker was killed")


@pytest.fixture
def after(bench: Bench, victims: Victims) -> Bench:
    """The bench that has the victims."""
    bench.namespace = victims.namespace
    return bench


async def kill_while_it_makes_queues(broker: Broker) -> Victims:
    async with AsyncExitStack() as stack:
        bench = Bench(broker.url, stack)
        adapter = await bench.adapter()
        names = adapter._session.names
        delaying = [await bench.group(adapter, TopicSpec(f"orders-{n}")) for n in range(DELAYING)]
        one, eight = (TopicSpec("", ordered=True, partitions=number) for number in (1, 8))
        marked = [await bench.group(adapter, replace(one, name=f"marked-{n}")) for n in range(OTHERS)]
        foreign = [await begun(adapter, TopicSpec(f"foreign-{n}", partitions=2)) for n in range(OTHERS)]
        cut_off = [GroupSpec(replace(eight, name=f"cut-{n}"), "billing", ordered=True) for n in range(OTHERS)]
        queues = {
            names.tier(group, time): tier_arguments(names, group, time)
            for group in delaying
            for time in TIERS
        }
        queues |= {names.guard(group, 0): quorum() for group in marked}
        queues |= {names.ingress(topic): quorum(single_active_consumer=True) for topic in foreign}

        declaring = [asyncio.create_task(adapter.declare(Topology(groups=[group]))) for group in cut_off]
        await has(adapter, names.queue(cut_off[0], 1))
        await kill_while_it_makes(broker, queues)
        for declaration in declaring:
            with suppress(ConnectionFailed):  # cut off it is
                await declaration

        asked = [*queues, *(queue for group in cut_off for queue in names.declared(group))]
        silent = set(await silent_queues(adapter._session.settings, asked))
        tiers = [(group, time) for group in delaying for time in TIERS if names.tier(group, time) in silent]
        return Victims(
            bench.namespace,
            [(group, time / 1000) for group, time in dict(reversed(tiers)).items()],
            [group for group in marked if names.guard(group, 0) in silent],
            [topic for topic in foreign if names.ingress(topic) in silent],
            [group for group in cut_off if not silent.isdisjoint(names.declared(group))],
        )


async def kill_while_it_makes(broker: Broker, queues: Mapping[str, dict[str, Any]]) -> None:
    """These, which come with their arguments, each on a channel of its own; and start it again."""
    connection = await aiormq.connect(broker.url)
    channels = [await connection.channel() for _ in queues]
    made = [
        asyncio.create_task(channel.queue_declare(queue, durable=True, arguments=arguments))
        for channel, (queue, arguments) in zip(channels, queues.items(), strict=True)
    ]
    await asyncio.wait(made, return_when=asyncio.FIRST_COMPLETED)
    broker.kill()
    await asyncio.gather(*made, return_exceptions=True)
    with suppress(AMQPError, OSError):
        await connection.close()
    await asyncio.to_thread(broker.restart)


async def begun(adapter: RabbitMQAdapter, topic: TopicSpec, group: str = "billing") -> TopicSpec:
    """The topic, with a group whose declaration has not ended."""
    await adapter.declare(Topology(topics=[topic]))
    async with adapter._session.topology.registry_of(topic, create=True) as entries:
        assert entries is not None
        await entries.remove(group)
        await entries.begin(group, ordered=topic.ordered)
    return topic


async def has(adapter: RabbitMQAdapter, queue: str) -> None:
    """Wait until the queue is declared."""
    while True:
        channel = await adapter.native.channel()
        with suppress(ChannelNotFoundEntity):
            await channel.queue_declare(queue, passive=True)
            return


async def test_what_a_new_delay_has_confirmed_is_there_after_the_broker_was_killed(
    bench: Bench, broker: Broker
) -> None:
    """Before all others: a queue that is made meanwhile would seal it."""
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


async def test_a_delay_does_not_wait_in_a_queue_that_never_answers(
    after: Bench, victims: Victims, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "messaging")
    group, seconds = victims.delaying[0]
    member = await after.adapter()
    await after.group(member, group.topic)
    await publish(member, group.topic, "m1")
    consumer = after.consumer(member, group)
    deliveries = await receive(consumer, 1)

    began = time.monotonic()
    await settle(consumer, deliveries, Retry(), after=seconds)
    again = await receive(consumer, 1)

    assert (ids(again), again[0].attempt) == (["m1"], 2)
    assert time.monotonic() - began >= seconds
    told = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    tier = member._session.names.tier(group, round(seconds * 1000))
    assert len(told) == 1 and tier in told[0] and group.name in told[0]


async def test_a_queue_that_does_not_answer_holds_up_no_other_group(after: Bench, victims: Victims) -> None:
    group, seconds = victims.delaying[1]
    member = await after.adapter()
    groups = [await after.group(member, group.topic, name) for name in (group.name, "audit")]
    await publish(member, group.topic, "m1")
    consumers = [after.consumer(member, one) for one in groups]
    deliveries = [await receive(consumer, 1) for consumer in consumers]

    held, free = (
        asyncio.create_task(settle(consumer, taken, Retry(), after=seconds))
        for consumer, taken in zip(consumers, deliveries, strict=True)
    )

    assert await free == [Done()]
    assert not held.done()
    assert await held == [Done()]


async def test_a_queue_that_does_not_answer_holds_up_the_publishes_to_its_own_topic_only(
    after: Bench, victims: Victims
) -> None:
    group, seconds = victims.delaying[1]
    member = await after.adapter()
    names, held, free = member._session.names, TopicSpec("held"), (await after.group(member)).topic
    await member.declare(Topology(topics=[held]))
    channel = await member.native.channel()
    await channel.queue_bind(names.tier(group, round(seconds * 1000)), names.exchange(held), "0")
    # More than the broker takes for a channel that waits, before it reads nothing of the connection any more.
    waiting = [
        asyncio.create_task(member.publish([outgoing(held, f"{call}-{number}") for number in range(100)]))
        for call in range(6)
    ]
    while not member._session.sender.ports.unconfirmed:
        await asyncio.sleep(0)

    await publish(member, free, *(f"m{number}" for number in range(500)))

    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_a_queue_that_confirms_nothing_is_asked_again(
    after: Bench, broker: Broker, victims: Victims
) -> None:
    """It could not be asked before: the broker did not answer anybody."""
    group, seconds = victims.delaying[2]
    member = await after.adapter(connect_timeout=2.0, confirm_timeout=2.0)
    await after.group(member, group.topic)
    member._session.topology.queues.exists(member._session.names.tier(group, round(seconds * 1000)))
    await publish(member, group.topic, "m1")
    consumer = after.consumer(member, group)
    deliveries = await receive(consumer, 1)

    broker.pause()
    try:
        (failed,) = await settle(consumer, deliveries, Retry(), after=seconds)
    finally:
        broker.resume()
    assert isinstance(failed, SettleError)

    assert await settle(consumer, deliveries, Retry(), after=seconds) == [Done()]
    assert ids(await receive(consumer, 1)) == ["m1"]


async def test_a_suspect_is_isolated_though_the_queue_of_marks_was_cut_off(
    after: Bench, victims: Victims
) -> None:
    member = await after.adapter(confirm_timeout=2.0)
    group = await after.group(member, victims.marked[0].topic)
    await publish(member, group.topic, "m1", key="k")
    consumer = after.consumer(member, group)
    (delivery,) = await receive(consumer, 1)

    assert await consumer.isolate(delivery)

    member._session.consuming.abort()  # as with the end of its process
    await consumer.close()
    (again,) = await receive(after.consumer(await after.adapter(), group), 1)
    assert (again.message.id, again.guard) == ("m1", "tripped")


async def test_a_broker_that_stands_still_loses_nothing_of_a_group_that_is_declared_again(
    bench: Bench, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await bench.adapter()
    group = await bench.group(member)
    await begun(member, group.topic)
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
    after: Bench, victims: Victims
) -> None:
    """The queue for other programs' routing keys is of all groups."""
    topic = victims.foreign[0]
    member = await after.adapter()
    consumer = after.consumer(member, await after.group(member, topic, "audit"))
    await consumer.receive(1, 0)
    channel = await member.native.channel()
    await channel.basic_publish(b"m1", exchange=member._session.names.exchange(topic), routing_key="any")

    assert [one.message.body for one in await receive(consumer, 1)] == [b"m1"]


async def test_a_group_whose_declaration_was_cut_off_is_declared_again(
    after: Bench, victims: Victims
) -> None:
    topic = victims.cut_off[0].topic
    member = await after.adapter()
    group = await after.group(member, topic)
    for partition in range(topic.partitions):
        await publish(member, topic, f"{partition}-a", f"{partition}-b", partition=partition)

    got = ids(await receive(after.consumer(member, group), 2 * topic.partitions))

    for partition in range(topic.partitions):
        assert [one for one in got if one.startswith(f"{partition}-")] == [f"{partition}-a", f"{partition}-b"]
