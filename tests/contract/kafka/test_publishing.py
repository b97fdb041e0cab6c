"""Publishing: batches, sizes, compression, what is refused, and that one refusal spoils nothing else."""

import asyncio
import time

import pytest

from messaging.adapter import TopicSpec, Topology, Unrouted
from messaging.errors import InvalidMessage, MessageTooLarge, NoGroup, PublishError, TopicNotFound
from messaging.message import Receipt
from messaging_kafka.brokers import NewTopic
from messaging_kafka.connection import Link
from messaging_kafka.settings import KafkaSettings
from tests.contract.bench import ids, outgoing, publish, receive
from tests.contract.kafka.support import Bench, brokers_of, topics_of

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def test_a_batch_is_stored_in_the_order_of_each_partition(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    names = [str(number) for number in range(600)]

    receipts = await adapter.publish([outgoing(ORDERED, id, partition=int(id) % 2) for id in names])
    deliveries = await receive(bench.consumer(adapter, group, prefetch=600), 600)

    for partition in (0, 1):
        assert ids([one for one in deliveries if one.partition == partition]) == names[partition::2]
    positions = {one.message.id: one.position for one in deliveries}
    assert {receipt.id: receipt.position for receipt in receipts} == positions  # type: ignore[union-attr]


async def test_what_is_larger_than_a_batch_is_several_batches(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    body = b"x" * 200_000

    results = await adapter.publish(
        [outgoing(ORDERED, str(one), partition=0, body=body) for one in range(12)]
    )
    deliveries = await receive(bench.consumer(adapter, group), 12)

    assert all(isinstance(result, Receipt) for result in results)
    assert ids(deliveries) == [str(one) for one in range(12)]


async def test_too_large_is_told_before_anything_is_sent_and_keeps_its_successors_back(bench: Bench) -> None:
    adapter = await bench.adapter(max_message_bytes=10_000)
    group = await bench.group(adapter, ORDERED)
    batch = [
        outgoing(ORDERED, "first", key="a", partition=0),
        outgoing(ORDERED, "large", key="a", partition=0, body=b"x" * 10_000),
        outgoing(ORDERED, "behind it", key="a", partition=0),
        outgoing(ORDERED, "beside it", key="b", partition=0),
        outgoing(ORDERED, "elsewhere", key="c", partition=1),
    ]

    first, large, behind, beside, elsewhere = await adapter.publish(batch)

    assert [type(result) for result in (first, beside, elsewhere)] == [Receipt] * 3
    assert isinstance(large, MessageTooLarge)
    assert "10000 fit" in str(large)
    assert "large" in str(behind)
    received = ids(await receive(bench.consumer(adapter, group), 3))
    assert sorted(received) == ["beside it", "elsewhere", "first"]


@pytest.mark.parametrize("once", [False, True], ids=["as ever", "stored once"])
async def test_a_batch_that_the_broker_refuses_poisons_no_later_one(bench: Bench, *, once: bool) -> None:
    """An idempotent producer of aiokafka is out of order for ever after one."""
    adapter = await bench.adapter(namespace=bench.namespace)
    name = adapter._session.names.topic(ORDERED)
    await brokers_of(adapter).create([NewTopic(name, 2, {"max.message.bytes": "5000"})])
    await adapter.declare(Topology(topics=[ORDERED]))
    large = outgoing(ORDERED, "large", partition=0, body=b"x" * 20_000)
    small = [outgoing(ORDERED, str(one), partition=0, body=b"x" * 2000) for one in range(6)]

    for turn in range(2):
        for one in [large, *small]:
            one.once = f"{turn} {one.message.id}" if once else None
        (refused,) = await adapter.publish([large])
        assert isinstance(refused, MessageTooLarge)
        # Together they are too large for the topic as well, one by one they are not.
        assert all(isinstance(result, Receipt) for result in await adapter.publish(small))


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_arrive_whole(bench: Bench, compression: str) -> None:
    adapter = await bench.adapter(compression=compression)
    group = await bench.group(adapter, ORDERED)
    body = b"compressible " * 5000

    await publish(adapter, ORDERED, *map(str, range(20)), partition=0, body=body)
    deliveries = await receive(bench.consumer(adapter, group), 20)

    assert {one.message.body for one in deliveries} == {body}


async def test_a_topic_that_is_not_there_is_told_at_once_and_not_made(bench: Bench) -> None:
    """aiokafka's producer waits for the whole request timeout."""
    adapter = await bench.adapter()
    topic = TopicSpec("nowhere", partitions=2)
    await adapter.declare(Topology(topics=[topic], mode="off"))
    started = time.monotonic()

    (result,) = await adapter.publish([outgoing(topic, "one")])

    assert isinstance(result, TopicNotFound)
    assert time.monotonic() - started < 6
    assert await topics_of(adapter, f"messaging.{bench.namespace}.") == []


async def test_a_topic_that_was_deleted_meanwhile_is_told_at_once(bench: Bench) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "one")
    await brokers_of(adapter).delete([adapter._session.names.topic(ORDERED)])
    started = time.monotonic()

    async with asyncio.timeout(10):
        while not isinstance(result := (await adapter.publish([outgoing(ORDERED, "two")]))[0], PublishError):
            pass  # the deletion takes a moment to reach the broker

    assert isinstance(result, TopicNotFound)
    assert time.monotonic() - started < 9


async def test_a_group_that_another_program_declares_is_seen_by_a_mandatory_publish(bench: Bench) -> None:
    publisher, other = await bench.adapter(), await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    await publisher.declare(Topology(topics=[topic]))

    (alone,) = await publisher.publish([outgoing(topic, "one")])
    (refused,) = await publisher.publish([outgoing(topic, "two", mandatory=True)])
    await bench.group(other, topic)
    (taken,) = await publisher.publish([outgoing(topic, "three", mandatory=True)])

    assert isinstance(alone, Unrouted)
    assert isinstance(refused, NoGroup)
    assert type(taken) is Receipt


async def test_a_cancelled_publish_leaves_the_connection_whole(bench: Bench) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, ORDERED)
    cancelled = [
        asyncio.create_task(adapter.publish([outgoing(ORDERED, f"cancelled {one}")])) for one in range(20)
    ]
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*cancelled, return_exceptions=True)

    await publish(adapter, ORDERED, *map(str, range(50)))


async def test_nobody_there_is_told_with_address_and_time() -> None:
    link = Link(KafkaSettings(hosts=("127.0.0.1:1",)))
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1 \(gave up after \d+\.\d s\)"):
        await link.open()
    await link.close()


async def test_a_compacted_topic_refuses_what_has_no_key_and_says_so(bench: Bench) -> None:
    adapter = await bench.adapter()
    theirs = f"messaging.{bench.namespace}.theirs"
    await brokers_of(adapter).create([NewTopic(theirs, 1, {"cleanup.policy": "compact"})])
    topic = TopicSpec("theirs", partitions=1, native=theirs)

    with_key, without, after = await adapter.publish(
        [outgoing(topic, "1", key="a"), outgoing(topic, "2", partition=0), outgoing(topic, "3", key="b")]
    )

    assert isinstance(with_key, Receipt)
    assert isinstance(without, InvalidMessage)
    assert f"topic {theirs} on Kafka is compacted" in str(without)
    assert isinstance(after, PublishError)
