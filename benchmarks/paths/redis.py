"""Redis Streams: redis-py by hand, taskiq, FastStream."""

# pyright: reportMissingImports=false
# What is compared with is installed by `make bench` only.
from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measured, Tally, asking, publishing
from benchmarks.path import BYTES, OURS, Contender, Path
from benchmarks.paths import ours
from benchmarks.payload import Order, body, fresh, number_of, order, prepared_orders
from messaging import connect
from messaging_redis.entries import encode_entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from messaging_redis.entries import Fields

GROUP = "bench"
READ = 256


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Any]:
    from redis.asyncio import Redis

    client: Any = Redis.from_url(url, socket_timeout=60)  # longer than any read here waits
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _stream(url: str) -> AsyncIterator[tuple[Any, str]]:
    """A client, and a stream with a group, which is gone afterwards."""
    async with _client(url) as client:
        stream = fresh("stream")
        await client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        try:
            yield client, stream
        finally:
            await client.delete(stream)


async def one_by_one(url: str, messages: int) -> Measured:
    async with _stream(url) as (client, stream):
        payloads = [body(number) for number in range(messages)]
        return await publishing(
            lambda number: client.xadd(stream, {"body": payloads[number]}), messages, callers=1
        )


async def same_entry_one_by_one(url: str, messages: int) -> Measured:
    """With all fields that the library's entries have, made beforehand."""
    async with connect(url) as bus:
        sent = ours.prepared(bus, ours.bodies(), map(body, range(messages)))
    entries = [_fields(encode_entry(one.message)) for one in sent]
    async with _stream(url) as (client, stream):
        return await publishing(lambda number: client.xadd(stream, entries[number]), messages, callers=1)


def _fields(entry: Fields) -> dict[bytes | str, bytes | str]:
    return dict(zip(entry[::2], entry[1::2], strict=True))


async def pipelines(url: str, messages: int) -> Measured:
    async with _stream(url) as (client, stream):
        payloads = [body(number) for number in range(messages)]

        async def send(start: int) -> None:
            pipeline = client.pipeline(transaction=False)
            for payload in payloads[start * READ : (start + 1) * READ]:
                pipeline.xadd(stream, {"body": payload})
            await pipeline.execute()

        measured = await publishing(send, -(-messages // READ), callers=1)
        return Measured(measured.rate * messages / measured.messages, messages)


async def read_and_ack(url: str, messages: int) -> Measured:
    """Batches of 256 entries of one field, acknowledged together."""
    tally = Tally(messages)
    async with _stream(url) as (client, stream):
        await _fill(client, stream, messages)
        while not tally.all.is_set():
            ((_, entries),) = await client.xreadgroup(GROUP, "one", {stream: ">"}, count=READ, block=20_000)
            for _, fields in entries:
                tally.handled(number_of(fields[b"body"]))
            await client.xack(stream, GROUP, *(position for position, _ in entries))
        return tally.result()


async def _fill(client: Any, stream: str, messages: int) -> None:
    for start in range(0, messages, READ):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + READ, messages)):
            pipeline.xadd(stream, {"body": body(number)})
        await pipeline.execute()


async def taskiq_publish(url: str, messages: int) -> Measured:
    orders = prepared_orders(messages)
    async with _taskiq(url) as (_, task):
        return await publishing(
            lambda number: task.kiq(orders[number]), messages, callers=64
        )  # more callers than connections of its pool fail


async def taskiq_consume(url: str, messages: int) -> Measured:
    from taskiq.receiver import Receiver

    tally = Tally(messages)
    async with _taskiq(url, tally) as (broker, task):
        await publishing(lambda number: task.kiq(order(number)), messages, callers=64)
        over = asyncio.Event()
        receiver = asyncio.create_task(Receiver(broker, max_async_tasks=64).listen(over))
        try:
            return await tally.measured()
        finally:
            over.set()
            await asyncio.wait((receiver,), timeout=5)


@asynccontextmanager
async def _taskiq(url: str, tally: Tally | None = None) -> AsyncIterator[tuple[Any, Any]]:
    from taskiq_redis import RedisStreamBroker

    stream = fresh("taskiq")
    broker: Any = RedisStreamBroker(
        url, queue_name=stream, consumer_id="0", max_connection_pool_size=80, xread_block=200
    )
    broker.is_worker_process = tally is not None

    @broker.task(task_name=stream)
    async def handle(order: Order) -> None:
        if tally is not None:
            tally.handled(order.number)

    await broker.startup()
    try:
        yield broker, handle
    finally:
        await broker.shutdown()
        async with _client(url) as client:
            await client.delete(stream)


async def faststream_publish(url: str, messages: int) -> Measured:
    from faststream.redis import RedisBroker

    stream, orders = fresh("faststream"), prepared_orders(messages)
    async with RedisBroker(url) as broker:
        measured = await publishing(
            lambda number: broker.publish(orders[number], stream=stream), messages, callers=256
        )
    async with _client(url) as client:
        await client.delete(stream)
    return measured


async def faststream_consume(url: str, messages: int) -> Measured:
    from faststream.redis import RedisBroker, StreamSub

    stream, tally = fresh("faststream"), Tally(messages)
    async with _client(url) as client:
        await client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    broker = RedisBroker(url)

    @broker.subscriber(stream=StreamSub(stream, group=GROUP, consumer="one", max_records=READ))
    async def handle(order: Order) -> None:
        tally.handled(order.number)

    async with broker:
        await publishing(lambda number: broker.publish(order(number), stream=stream), messages, callers=1)
        await broker.start()
        measured = await tally.measured()
    async with _client(url) as client:
        await client.delete(stream)
    return measured


async def request(url: str, requests: int) -> Measured:
    """A stream of requests that a group reads, and a stream for the replies."""
    replies = fresh("replies")
    async with _stream(url) as (client, stream), _client(url) as other:

        async def respond() -> None:
            while True:
                read = await other.xreadgroup(GROUP, "one", {stream: ">"}, count=READ, block=2000)
                for _, entries in read or ():
                    for position, fields in entries:
                        await other.xadd(replies, {"body": b"%d" % number_of(fields[b"body"])})
                        await other.xack(stream, GROUP, position)

        responder = asyncio.create_task(respond())
        last = b"0"

        async def ask(number: int) -> int:
            nonlocal last
            await client.xadd(stream, {"body": body(number)})
            ((_, ((last, fields),)),) = await client.xread({replies: last}, count=1, block=20_000)
            return int(fields[b"body"])

        try:
            return await asking(ask, requests)
        finally:
            while not responder.done():  # redis-py may swallow a cancellation that meets a reply
                responder.cancel()
                await asyncio.wait((responder,), timeout=0.1)
            await client.delete(replies)


PATHS = (
    Path(
        "Redis publish",
        "redis",
        "256 callers at once, each waits for its confirmation",
        20_000,
        (
            Contender(OURS, ours.publish),
            Contender(BYTES, ours.publish_bytes),
            Contender("redis-py one by one", one_by_one, share=0.3, target=5, like=BYTES),
            Contender("redis-py pipelines of 256", pipelines, target=0.9, like=BYTES),
            Contender("taskiq", taskiq_publish, share=0.2),
            Contender("FastStream", faststream_publish, share=0.2),
        ),
        limit="ten fields per entry instead of one, a typed payload, and a call with a future of "
        "its own for each message",
    ),
    Path(
        "Redis consume",
        "redis",
        "handled and acknowledged",
        20_000,
        (
            Contender(OURS, ours.consume),
            Contender(BYTES, ours.consume_bytes),
            Contender("redis-py, batches of 256", read_and_ack, target=0.4, like=BYTES),
            Contender("taskiq", taskiq_consume, share=0.2, target=10),
            Contender("FastStream", faststream_consume, share=0.2),
        ),
        least=4_000,  # four times what the library reads ahead
        limit="the fields of an entry made a message, a validated payload, and a worker with the "
        "chain of middleware for each",
    ),
    Path(
        "Redis publish, one at a time",
        "redis",
        "each awaited before the next",
        5_000,
        (
            Contender(OURS, ours.publish_one_by_one),
            Contender(BYTES, ours.publish_bytes_one_by_one),
            Contender("redis-py", one_by_one, target=0.95, like=BYTES),
            Contender("redis-py, the same entry made beforehand", same_entry_one_by_one, like=BYTES),
        ),
        limit="ten fields per entry instead of one, of which the last row tells; and the processor, whose caches each "
        "wait leaves cold: what runs takes three times what it takes in a loop. Half of the library's time is the "
        "portable layer's, a quarter the publisher's with the entry; the exchange is 6 us above a bare socket",
    ),
    Path(
        "Redis request/reply",
        "redis",
        "one after the other",
        1_000,
        (
            Contender(OURS, ours.request),
            Contender("redis-py by hand", request, target=1.3),
        ),
        latency=True,
        limit="two reads that wait on the server, and the batches between request, handler and reply",
    ),
    ours.in_order("Redis", "redis", 50),
)
