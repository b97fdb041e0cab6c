"""RabbitMQ, quorum queues: aio-pika by hand, FastStream, kombu, and a plain socket."""

# pyright: reportMissingImports=false
# What is compared with is installed by `make bench` only.
from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measured, Tally, asking, publishing
from benchmarks.path import BYTES, OURS, Contender, Path
from benchmarks.paths import ours
from benchmarks.paths.frames import prepared_frames
from benchmarks.payload import Order, body, fresh, number_of, order, prepared_orders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PREFETCH = 1000
QUORUM: Any = {"x-queue-type": "quorum"}


@asynccontextmanager
async def _queue(url: str) -> AsyncIterator[tuple[Any, Any]]:
    """A channel with confirms, and a quorum queue, which is gone afterwards."""
    import aio_pika

    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue(fresh("queue"), durable=True, arguments=QUORUM)
        try:
            yield channel, queue
        finally:
            await queue.delete(if_unused=False, if_empty=False)


def _message(number: int, **properties: Any) -> Any:
    from aio_pika import DeliveryMode, Message

    return Message(body(number), delivery_mode=DeliveryMode.PERSISTENT, **properties)


async def aio_pika_publish(url: str, messages: int, *, callers: int = 256) -> Measured:
    async with _queue(url) as (channel, queue):
        payloads = [_message(number) for number in range(messages)]
        exchange = channel.default_exchange
        return await publishing(
            lambda number: exchange.publish(payloads[number], queue.name), messages, callers=callers
        )


async def aio_pika_one_by_one(url: str, messages: int) -> Measured:
    return await aio_pika_publish(url, messages, callers=1)


async def aio_pika_consume(url: str, messages: int) -> Measured:
    """An acknowledgement for each message."""
    tally = Tally(messages)
    async with _queue(url) as (channel, queue):
        await publishing(
            lambda number: channel.default_exchange.publish(_message(number), queue.name),
            messages,
            callers=256,
        )
        await channel.set_qos(prefetch_count=PREFETCH)

        async def handle(message: Any) -> None:
            tally.handled(number_of(message.body))
            await message.ack()

        tag = await queue.consume(handle)
        measured = await tally.measured()
        await queue.cancel(tag)
        return measured


async def aio_pika_request(url: str, requests: int) -> Measured:
    """An exclusive queue for the replies, correlated by hand."""
    waiting: dict[str, asyncio.Future[int]] = {}
    async with _queue(url) as (channel, queue):
        import aio_pika

        responding = await (await aio_pika.connect(url)).__aenter__()
        server = await responding.channel(publisher_confirms=True)
        inbox = await channel.declare_queue(exclusive=True)

        async def respond(message: Any) -> None:
            reply = aio_pika.Message(b"%d" % number_of(message.body), correlation_id=message.correlation_id)
            await server.default_exchange.publish(reply, message.reply_to)
            await message.ack()

        async def receive(message: Any) -> None:
            waiting.pop(message.correlation_id).set_result(int(message.body))

        async def ask(number: int) -> int:
            reply = waiting[str(number)] = asyncio.get_running_loop().create_future()
            message = _message(number, correlation_id=str(number), reply_to=inbox.name)
            await channel.default_exchange.publish(message, queue.name)
            return await reply

        await (await server.get_queue(queue.name)).consume(respond)
        await inbox.consume(receive, no_ack=True)
        try:
            return await asking(ask, requests)
        finally:
            await responding.close()


@asynccontextmanager
async def _faststream(url: str) -> AsyncIterator[tuple[Any, Any]]:
    from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=PREFETCH))
    queue = RabbitQueue(fresh("queue"), durable=True, queue_type=QueueType.QUORUM)
    try:
        async with broker:
            await broker.declare_queue(queue)
            yield broker, queue
    finally:
        import aio_pika

        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            await channel.queue_delete(queue.name)


async def faststream_publish(url: str, messages: int) -> Measured:
    orders = prepared_orders(messages)
    async with _faststream(url) as (broker, queue):
        return await publishing(
            lambda number: broker.publish(orders[number], queue, persist=True), messages, callers=256
        )


async def faststream_consume(url: str, messages: int) -> Measured:
    tally = Tally(messages)
    async with _faststream(url) as (broker, queue):
        await publishing(
            lambda number: broker.publish(order(number), queue, persist=True), messages, callers=256
        )

        @broker.subscriber(queue)
        async def handle(order: Order) -> None:
            tally.handled(order.number)

        await broker.start()
        return await tally.measured()


async def faststream_many_requests(url: str, requests: int) -> Measured:
    return await faststream_request(url, requests, callers=256)


async def faststream_request(url: str, requests: int, *, callers: int = 1) -> Measured:
    async with _faststream(url) as (broker, queue):

        @broker.subscriber(queue)
        async def answer(order: Order) -> int:
            return order.number

        await broker.start()

        async def ask(number: int) -> int:
            reply = await broker.request(order(number), queue, timeout=10)
            return int(await reply.decode())

        return await asking(ask, requests, callers=callers)


async def kombu_publish(url: str, messages: int) -> Measured:
    """Synchronous: one at a time, each confirmed."""
    return await asyncio.to_thread(_kombu_publish, url, messages)


def _kombu_publish(url: str, messages: int) -> Measured:
    import time

    from kombu.connection import Connection
    from kombu.entity import Queue

    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        queue = Queue(fresh("queue"), durable=True, queue_arguments=QUORUM, channel=connection)
        queue.declare()
        producer = connection.Producer(serializer="json")
        orders = prepared_orders(messages)
        start = time.perf_counter()
        for order in orders:
            producer.publish(order.model_dump(), routing_key=queue.name, delivery_mode=2)
        elapsed = time.perf_counter() - start
        queue.delete()
    return Measured(messages / elapsed, messages)


async def kombu_consume(url: str, messages: int) -> Measured:
    return await asyncio.to_thread(_kombu_consume, url, messages)


def _kombu_consume(url: str, messages: int) -> Measured:
    from kombu.connection import Connection
    from kombu.entity import Queue

    tally = Tally(messages)

    def handle(payload: Any, message: Any) -> None:
        tally.handled(payload["number"])
        message.ack()

    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        queue = Queue(fresh("queue"), durable=True, queue_arguments=QUORUM, channel=connection)
        queue.declare()
        producer = connection.Producer(serializer="json")
        for number in range(messages):
            producer.publish(order(number).model_dump(), routing_key=queue.name, delivery_mode=2)
        with connection.Consumer(queue, callbacks=[handle], prefetch_count=PREFETCH, accept=["json"]):
            while not tally.all.is_set():
                connection.drain_events(timeout=5)
        queue.delete()
    return tally.result()


PATHS = (
    Path(
        "RabbitMQ publish",
        "rabbitmq",
        "quorum queue, confirmed, 256 callers at once",
        6_000,
        (
            Contender(OURS, ours.publish),
            Contender(BYTES, ours.publish_bytes),
            Contender("aio-pika", aio_pika_publish, target=2.5, like=BYTES),
            Contender("FastStream", faststream_publish, share=0.5, target=4),
            Contender("kombu, one at a time", kombu_publish, share=0.2),
            Contender("plain socket, frames made beforehand", prepared_frames),
        ),
        limit="the broker: the last row is all that it takes of the same frames from one connection, at some 40 us of "
        "the processor for each (34 without headers); and what Python does for each message to prepare it and to wait "
        "for it: making its frames is a fifth of the library's time",
    ),
    Path(
        "RabbitMQ consume",
        "rabbitmq",
        "quorum queue, handled and acknowledged",
        8_000,
        (
            Contender(OURS, ours.consume),
            Contender(BYTES, ours.consume_bytes),
            Contender("aio-pika, an ack per message", aio_pika_consume, target=1.3, like=BYTES),
            Contender("FastStream", faststream_consume, share=0.5, target=2),
            Contender("kombu", kombu_consume, share=0.2),
        ),
        limit="the fields of a message read and made a message of ours, a validated payload, and a worker with the "
        "chain of middleware for each; the broker takes half as long as the library, as acknowledgements are joined",
        least=4_000,  # four times what the library reads ahead
    ),
    Path(
        "RabbitMQ publish, one at a time",
        "rabbitmq",
        "each awaited before the next",
        800,
        (
            Contender(OURS, ours.publish_one_by_one),
            Contender(BYTES, ours.publish_bytes_one_by_one),
            Contender("aio-pika", aio_pika_one_by_one, target=0.95, like=BYTES),
            Contender("plain socket, frames made beforehand", partial(prepared_frames, window=1)),
        ),
        limit="the broker: the last row has the same frames from a plain socket, at some 300 us of its processor for "
        "each; the library calls half as many functions as aio-pika, and takes about as long",
    ),
    Path(
        "RabbitMQ request/reply",
        "rabbitmq",
        "one after the other",
        500,
        (
            Contender(OURS, ours.request),
            Contender("aio-pika by hand", aio_pika_request, target=1.3),
            Contender("FastStream", faststream_request, target=1.0),
        ),
        limit="the broker, which takes as much of the processor for a request and its reply as the library does; and "
        "the batches of publisher and settler between request, handler and reply",
        latency=True,
    ),
    Path(
        "RabbitMQ request/reply, 256 in flight",
        "rabbitmq",
        "256 callers at once",
        2_000,
        (
            Contender(OURS, ours.many_requests),
            Contender("FastStream", faststream_many_requests, share=0.5, target=5),
        ),
    ),
    ours.in_order("RabbitMQ", "rabbitmq", 50),
)
