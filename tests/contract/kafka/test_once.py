"""What is sent again is stored once: with lost answers, a killed broker, and a producer id that the broker gave up."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from messaging import Bus, PublishError, PublishUncertain, Settings, Topic
from messaging.adapter import Outgoing, TopicSpec, Topology, Untraceable
from messaging.clock import SystemClock
from messaging.message import Receipt
from messaging_contracts.brokers import Broker
from messaging_contracts.faults.proxy import LOOPBACK, Proxy
from messaging_kafka import KafkaAdapter, library
from messaging_kafka.exchange import CHANNEL
from messaging_kafka.library import Place
from messaging_kafka.produce import Produce
from messaging_kafka.producers import Producer
from tests.contract.bench import ids, outgoing, receive
from tests.contract.kafka.support import Bench, brokers_of

ONE = TopicSpec("orders", ordered=True, partitions=1)


def once(id: str, topic: TopicSpec = ONE, **more: object) -> Outgoing:
    return replace(outgoing(topic, id, key="k", **more), once=id)  # type: ignore[arg-type]


def place(adapter: KafkaAdapter, topic: TopicSpec = ONE) -> Place:
    return Place(adapter._session.names.topic(topic), 0)


async def stored(adapter: KafkaAdapter) -> int:
    """How many records the partition has."""
    to = place(adapter)
    return (await brokers_of(adapter).offsets({to: library.LATEST}))[to]


async def lose_an_answer(proxy: Proxy, observer: KafkaAdapter, number: int) -> None:
    """The broker's answer to what makes its records so many is not heard, and the connection is cut."""
    proxy.lose_answers()
    try:
        async with asyncio.timeout(10):
            while await stored(observer) < number:
                await asyncio.sleep(0.01)
        await proxy.close_connections()
    finally:
        proxy.heal()


@asynccontextmanager
async def idempotent(bench: Bench, url: str) -> AsyncIterator[Bus]:
    bus = Bus(Settings(url=url, namespace=bench.namespace, idempotent_publish=True), clock=SystemClock())
    async with bus:
        yield bus


async def members(bench: Bench, way: Proxy | None = None) -> tuple[KafkaAdapter, KafkaAdapter]:
    """One who watches at the broker itself, and one who publishes, through the proxy."""
    observer = await bench.adapter()
    await bench.group(observer, ONE)
    url = bench.url if way is None else f"kafka://{LOOPBACK}:{way.port}"
    publisher = await bench.adapter(url, confirm_timeout=2)
    await publisher.declare(Topology(topics=[ONE]))
    return observer, publisher


async def test_one_copy_is_stored_where_the_answer_is_lost_and_the_connection_cut(
    fragile: Bench, proxy: Proxy
) -> None:
    observer, publisher = await members(fragile, proxy)
    await publisher.publish([once("zero")])
    message = once("one")

    publishing = asyncio.create_task(publisher.publish([message]))
    await lose_an_answer(proxy, observer, 2)
    (lost,) = await publishing
    (again,) = await publisher.publish([message])
    (same,) = await publisher.publish([message])
    (other,) = await publisher.publish([once("two")])

    assert type(lost) is PublishUncertain
    assert isinstance(again, Receipt)
    assert isinstance(same, Receipt)
    assert isinstance(other, Receipt)
    assert (again.position, same.position, other.position) == ("0/1", "0/1", "0/2")
    assert await stored(observer) == 3


async def test_batches_of_a_partition_keep_their_order_where_an_answer_is_lost(
    fragile: Bench, proxy: Proxy
) -> None:
    """Three batches of one call, and calls beside it: each message comes once, in the order of the calls."""
    observer, _ = await members(fragile, proxy)
    group = await fragile.group(observer, ONE)
    topic = Topic("orders", bytes, partitions=1, ordered=True, key=lambda _: "k")
    async with idempotent(fragile, f"kafka://{LOOPBACK}:{proxy.port}") as bus:
        await bus.publish(topic, b"", id="first")
        async with asyncio.timeout(20), asyncio.TaskGroup() as calls:
            calls.create_task(bus.publish_many(topic, [b"x" * 200_000] * 6))
            for number in range(6):
                calls.create_task(bus.publish(topic, b"small", id=f"beside {number}"))
            await lose_an_answer(proxy, observer, 2)

    deliveries = await receive(fragile.consumer(observer, group), 13)
    assert await stored(observer) == 13
    assert [len(one.message.body) for one in deliveries] == [0, *[200_000] * 6, *[5] * 6]
    assert ids(deliveries)[7:] == [f"beside {number}" for number in range(6)]


async def test_each_message_comes_once_and_in_order_when_the_broker_is_killed_while_it_is_published(
    fragile: Bench, own_broker: Broker
) -> None:
    observer, _ = await members(fragile)
    group = await fragile.group(observer, ONE)
    topic = Topic("orders", int, partitions=1, ordered=True, key=lambda _: "k")
    async with idempotent(fragile, f"{fragile.url}?confirm_timeout=2&connect_timeout=1") as bus:
        confirmed, uncertain = list[str](), list[str]()

        async def publish() -> None:
            numbers = deque(range(400))
            while numbers:
                id = f"{numbers[0]}"
                try:
                    confirmed.append((await bus.publish(topic, numbers[0], id=id, timeout=30)).id)
                except PublishUncertain:
                    uncertain.append(id)
                except PublishError:  # the broker does not have it
                    await asyncio.sleep(0.05)
                    continue
                numbers.popleft()

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish())
            while len(confirmed) < 100:
                await asyncio.sleep(0)
            await asyncio.to_thread(own_broker.kill)
            await asyncio.to_thread(own_broker.restart)
            await publishing

    got = ids(await receive(fragile.consumer(observer, group, prefetch=500), await stored(observer)))
    assert got == sorted(set(got), key=int)
    assert set(confirmed) <= set(got) <= set(confirmed) | set(uncertain)


# --- a producer id that the broker knows no more ---------------------------------------------------------------


def producer_of(adapter: KafkaAdapter) -> Producer:
    (producer,) = adapter._publisher._once._producers._producers
    return producer


async def write(adapter: KafkaAdapter, producer: int, epoch: int, sequence: int, number: int = 1) -> None:
    """As the producer would."""
    builder = library.BatchBuilder(2, 0, 0, producer, epoch, sequence, 10_000)
    for offset in range(number):
        builder.append(offset, int(time.time() * 1000), b"k", b"", [])
    to = place(adapter)
    request = Produce(1000, [(to.topic, [(to.partition, bytes(builder.build()))])])
    response = await adapter._session.link.send(request, node=brokers_of(adapter).leader(to))
    assert response.topics[0][1][0][1] == 0


@pytest.mark.parametrize("how", ["a lost sequence", "a fenced epoch"])
async def test_a_producer_id_that_the_broker_does_not_follow_is_replaced_unnoticed(
    bench: Bench, how: str
) -> None:
    """An idempotent producer of aiokafka is out of order for ever after it."""
    observer, publisher = await members(bench)
    await publisher.publish([once("one")])
    former = producer_of(publisher)
    epoch, sequence = (former.epoch, 1) if how == "a lost sequence" else (former.epoch + 1, 0)
    await write(publisher, former.id, epoch, sequence, 3)

    (two,) = await publisher.publish([once("two")])
    (three,) = await publisher.publish([once("three")])

    assert isinstance(two, Receipt)
    assert isinstance(three, Receipt)
    assert (two.position, three.position) == ("0/4", "0/5")
    assert producer_of(publisher).id != former.id


async def test_what_was_uncertain_when_the_broker_gave_the_producer_id_up_is_told_and_never_sent_again(
    fragile: Bench, proxy: Proxy
) -> None:
    observer, _ = await members(fragile, proxy)
    group = await fragile.group(observer, ONE)
    topic = Topic("orders", int, partitions=1, ordered=True, key=lambda _: "k")
    async with idempotent(fragile, f"kafka://{LOOPBACK}:{proxy.port}") as bus:
        await bus.publish(topic, 1, id="one")
        adapter = bus.adapter
        assert isinstance(adapter, KafkaAdapter)
        former = producer_of(adapter)
        proxy.black_hole()
        publishing = asyncio.create_task(bus.publish(topic, 2, id="two", timeout=20))
        connection = adapter.native._conns[1, CHANNEL]
        while not connection._requests:
            await asyncio.sleep(0)
        await write(observer, former.id, former.epoch + 1, 0)
        await proxy.close_connections()
        proxy.heal()

        with pytest.raises(Untraceable, match="two"):
            async with asyncio.timeout(5):
                await publishing
        receipt = await bus.publish(topic, 3, id="three")

    assert receipt.position == "0/2"
    assert await stored(observer) == 3
    deliveries = await receive(fragile.consumer(observer, group), 3)
    assert ids(deliveries)[::2] == ["one", "three"]
