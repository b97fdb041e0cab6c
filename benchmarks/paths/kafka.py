"""Kafka: aiokafka by hand, FastStream."""

# pyright: reportMissingImports=false
# What is compared with is installed by `make bench` only.
from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Incomplete, Measured, Tally, publishing
from benchmarks.path import BYTES, OURS, Contender, Path
from benchmarks.paths import ours
from benchmarks.payload import Order, body, fresh, number_of, prepared_orders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PARTITIONS = 8
READ = 500


def _servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0].strip("/")


@asynccontextmanager
async def _topic(url: str) -> AsyncIterator[str]:
    """A topic, which is gone afterwards."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    name = fresh("topic")
    admin = AIOKafkaAdminClient(bootstrap_servers=_servers(url))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1)])
        yield name
        await admin.delete_topics([name])
    finally:
        await admin.close()


@asynccontextmanager
async def _producer(url: str) -> AsyncIterator[Any]:
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=_servers(url), acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send_and_wait(url: str, messages: int, *, callers: int = 256) -> Measured:
    async with _topic(url) as topic, _producer(url) as producer:
        payloads = [body(number) for number in range(messages)]
        await producer.send_and_wait(topic, b"first")
        return await publishing(
            lambda number: producer.send_and_wait(topic, payloads[number], key=b"c%d" % (number % 1000)),
            messages,
            callers=callers,
        )


async def send_and_wait_one_by_one(url: str, messages: int) -> Measured:
    return await send_and_wait(url, messages, callers=1)


async def send_futures(url: str, messages: int) -> Measured:
    """Nobody waits for the single message: all futures are awaited at the end."""
    import time

    async with _topic(url) as topic, _producer(url) as producer:
        payloads = [body(number) for number in range(messages)]
        await producer.send_and_wait(topic, b"first")
        start = time.perf_counter()
        sent = [
            await producer.send(topic, payload, key=b"c%d" % (number % 1000))
            for number, payload in enumerate(payloads)
        ]
        for future in sent:
            await future
        return Measured(messages / (time.perf_counter() - start), messages)


async def getmany_and_commit(url: str, messages: int) -> Measured:
    from aiokafka import AIOKafkaConsumer

    tally = Tally(messages)
    async with _topic(url) as topic:
        await _fill(url, topic, messages)
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=_servers(url),
            group_id=fresh("group"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            while not tally.all.is_set():
                batches = await consumer.getmany(timeout_ms=10_000, max_records=READ)
                if not batches:
                    raise Incomplete("no message came for 10 s")
                for records in batches.values():
                    for record in records:
                        tally.handled(number_of(record.value or b""))
                await consumer.commit()
        finally:
            await consumer.stop()
        return tally.result()


async def _fill(url: str, topic: str, messages: int) -> None:
    async with _producer(url) as producer:
        sent = [
            await producer.send(topic, body(number), key=b"c%d" % (number % 1000))
            for number in range(messages)
        ]
        for future in sent:
            await future


async def faststream_publish(url: str, messages: int) -> Measured:
    from faststream.kafka import KafkaBroker

    async with _topic(url) as topic, KafkaBroker(_servers(url), acks="all") as broker:
        orders = prepared_orders(messages)
        await broker.publish(orders[0], topic)
        return await publishing(
            lambda number: broker.publish(orders[number], topic, key=b"c%d" % (number % 1000)),
            messages,
            callers=256,
        )


async def faststream_consume(url: str, messages: int) -> Measured:
    """An acknowledgement for each message."""
    from faststream import AckPolicy
    from faststream.kafka import KafkaBroker

    tally = Tally(messages)
    async with _topic(url) as topic:
        await _fill(url, topic, messages)
        broker = KafkaBroker(_servers(url))

        @broker.subscriber(
            topic, group_id=fresh("group"), auto_offset_reset="earliest", ack_policy=AckPolicy.REJECT_ON_ERROR
        )
        async def handle(order: Order) -> None:
            tally.handled(order.number)

        async with broker:
            await broker.start()
            return await tally.measured()


PATHS = (
    Path(
        "Kafka publish",
        "kafka",
        "acks=all, 256 callers at once",
        20_000,
        (
            Contender(OURS, ours.publish),
            Contender(BYTES, ours.publish_bytes),
            Contender("aiokafka send_and_wait", send_and_wait, target=1.5, like=BYTES),
            Contender("aiokafka send, futures", send_futures, target=0.8, like=BYTES),
            Contender("FastStream", faststream_publish, share=0.5),
        ),
        limit="the typed payload, and a call with a future of its own: half of the library's time, which is as much "
        "as that of `send_and_wait`; headers and batch of a record are 4 us",
    ),
    Path(
        "Kafka consume",
        "kafka",
        "handled and committed",
        20_000,
        (
            Contender(OURS, ours.consume),
            Contender(BYTES, ours.consume_bytes),
            Contender("aiokafka getmany and commit", getmany_and_commit, target=0.6, like=BYTES),
            Contender("FastStream, an ack per message", faststream_consume, share=0.01, target=100),
        ),
        least=10_000,  # several times what one fetch brings
        limit="headers made a message, a validated payload, a worker for each message, the record of what is settled "
        "out of order, and the garbage collector: a dozen objects for the headers of each record until it is settled",
    ),
    Path(
        "Kafka publish, one at a time",
        "kafka",
        "each awaited before the next",
        1_000,
        (
            Contender(OURS, ours.publish_one_by_one),
            Contender(BYTES, ours.publish_bytes_one_by_one),
            Contender("aiokafka send_and_wait", send_and_wait_one_by_one, target=0.95, like=BYTES),
        ),
        limit="the round trip; most of the processor's time is that of aiokafka's connection, which both have",
    ),
    ours.in_order("Kafka", "kafka", 50),
)
