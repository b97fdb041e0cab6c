"""The library itself: the same code on every broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from benchmarks.measure import HANDLER, Incomplete, Measured, Tally, asking, handling, publishing
from benchmarks.path import OURS, Contender, Path
from benchmarks.payload import Order, body, fresh, number_of, order, prepared_orders
from messaging import App, Bus, Endpoint, Topic, connect
from messaging.clock import SystemClock
from messaging.prepare import Options, Preparation
from messaging.topology import TopicSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from messaging.adapter import Outgoing

T = TypeVar("T")

BATCH = 1000


def topic(*, ordered: bool = False) -> Topic[Order]:
    return Topic(fresh("orders"), Order, key=lambda order: order.customer, ordered=ordered)


def bodies() -> Topic[bytes]:
    """What nothing encodes or validates."""
    return Topic(fresh("bodies"), bytes)


async def publish(url: str, messages: int, *, callers: int = 256) -> Measured:
    return await _publish(url, topic(), prepared_orders(messages), callers)


async def publish_bytes(url: str, messages: int, *, callers: int = 256) -> Measured:
    return await _publish(url, bodies(), [body(number) for number in range(messages)], callers)


async def publish_one_by_one(url: str, messages: int) -> Measured:
    return await publish(url, messages, callers=1)


async def publish_bytes_one_by_one(url: str, messages: int) -> Measured:
    return await publish_bytes(url, messages, callers=1)


async def _publish(url: str, topic: Topic[T], payloads: Sequence[T], callers: int) -> Measured:
    async with connect(url) as bus:
        await bus.declare(topic, groups=["bench"])
        measured = await publishing(
            lambda number: bus.publish(topic, payloads[number]), len(payloads), callers=callers
        )
        await _clear(url, bus, topic)
        return measured


def prepared(bus: Bus, topic: Topic[T], payloads: Iterable[T]) -> list[Outgoing]:
    """These as the adapter gets them from the library."""
    preparation, options = Preparation(clock=SystemClock(), source=bus.source), Options()
    made = preparation.messages(topic, payloads, options)
    return preparation.outgoing(TopicSpec(topic.name), made, options, bus.capabilities)


def counting(orders: Topic[Order], tally: Tally, app: App | None = None) -> App:
    """64 workers, the default middleware, typed payloads; or one more handler of this app."""
    app = app or App("bench", concurrency=64, prefetch=1024)

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        tally.handled(order.number)

    return app


def counting_bytes(topic: Topic[bytes], tally: Tally) -> App:
    """The same of bytes: the handler reads the number as a raw client does."""
    app = App("bench", concurrency=64, prefetch=1024)

    @app.subscribe(topic)
    async def handle(body: bytes) -> None:
        tally.handled(number_of(body))

    return app


async def stored_first(
    url: str, app: App, topic: Topic[T], tally: Tally, messages: int, make: Callable[[int], T]
) -> Measured:
    """What it takes to handle what is all there before."""
    async with connect(url) as bus:
        await bus.declare(app)
        await fill(bus, topic, messages, make)
        async with app.running(bus):
            measured = await tally.measured()
        await _clear(url, bus, topic)
        return measured


async def consume(url: str, messages: int) -> Measured:
    """Handled one by one, acknowledged after the handler: 64 workers, the default middleware, typed payloads."""
    orders, tally = topic(), Tally(messages)
    app = counting(orders, tally)
    return await stored_first(url, app, orders, tally, messages, order)


async def consume_bytes(url: str, messages: int) -> Measured:
    """The same of bytes."""
    topic, tally = bodies(), Tally(messages)
    return await stored_first(url, counting_bytes(topic, tally), topic, tally, messages, body)


async def through(url: str, messages: int) -> Measured:
    """Published in batches while it is consumed."""
    to, tally = topic(), Tally(messages)
    return await _through(url, counting(to, tally), to, tally, prepared_orders(messages))


async def bytes_through(url: str, messages: int) -> Measured:
    """The same of bytes."""
    topic, tally = bodies(), Tally(messages)
    payloads = [body(number) for number in range(messages)]
    return await _through(url, counting_bytes(topic, tally), topic, tally, payloads)


async def _through(url: str, app: App, topic: Topic[T], tally: Tally, payloads: Sequence[T]) -> Measured:
    async with connect(url) as bus, app.running(bus):
        await fill(bus, topic, len(payloads), payloads.__getitem__)
        return await tally.measured()


async def ordered(url: str, messages: int) -> Measured:
    """Handlers of 10 ms, 1000 keys, 8 partitions, 256 at once; each key in its order."""
    orders, tally = topic(ordered=True), Tally(messages)
    app = App("bench", concurrency=256, prefetch=1024)
    last: dict[str, int] = {}

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        if order.number < last.get(order.customer, 0):
            raise Incomplete(f"message {order.number} came after {last[order.customer]} of its key")
        last[order.customer] = order.number
        await asyncio.sleep(HANDLER)
        tally.handled(order.number)

    return await stored_first(url, app, orders, tally, messages, order)


async def serial(_: str, messages: int) -> Measured:
    return await handling(messages)


async def many_requests(url: str, requests: int) -> Measured:
    return await request(url, requests, callers=256)


async def request(url: str, requests: int, *, callers: int = 1) -> Measured:
    echo = Endpoint(fresh("echo"), Order, int)
    app = App("bench", concurrency=256)

    @app.respond(echo)
    async def answer(order: Order) -> int:
        return order.number

    async with connect(url) as bus, app.running(bus):
        await bus.request(echo, order(0), timeout=10)  # the inbox is made by the first
        return await asking(
            lambda number: bus.request(echo, order(number), timeout=10), requests, callers=callers
        )


async def _clear(url: str, bus: Bus, topic: Topic[T]) -> None:
    """Leave nothing, as those by hand do: what Redis keeps it writes anew, now and then, while others are measured."""
    await bus.delete_group(topic, "bench")
    if url.startswith("redis"):
        keys = [key async for key in bus.native.scan_iter(f"*{{{topic.name}}}*", count=1000)]
        await bus.native.delete(*keys)


async def fill(bus: Bus, topic: Topic[T], messages: int, make: Callable[[int], T], *, first: int = 0) -> None:
    """Publish so many, numbered from `first`."""
    end = first + messages
    for start in range(first, end, BATCH):
        await bus.publish_many(topic, [make(number) for number in range(start, min(start + BATCH, end))])


def in_order(name: str, broker: str, target: float) -> Path:
    """The same comparison on every broker that keeps order."""
    return Path(
        f"{name}, ordered group",
        broker,
        "handlers of 10 ms, 1000 keys, 8 partitions, 256 at once, beside one handler after the other",
        10_000,
        (Contender(OURS, ordered), Contender("one after the other", serial, share=0.01, target=target)),
    )
