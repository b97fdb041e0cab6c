"""In memory: what the library itself costs."""

# pyright: reportMissingImports=false
# What is compared with is installed by `make bench` only.
from __future__ import annotations

from benchmarks.measure import Measured, Tally
from benchmarks.path import BYTES, OURS, Contender, Path
from benchmarks.paths import ours
from benchmarks.payload import Order, fresh, prepared_orders


async def faststream(_: str, messages: int) -> Measured:
    """Its test broker calls the handler from `publish`."""
    from faststream.rabbit import RabbitBroker, TestRabbitBroker

    broker, queue, tally = RabbitBroker(), fresh("orders"), Tally(messages)

    @broker.subscriber(queue)
    async def handle(order: Order) -> None:
        tally.handled(order.number)

    async with TestRabbitBroker(broker):
        for order in prepared_orders(messages):
            await broker.publish(order, queue)
        return await tally.measured()


async def by_hand(_: str, messages: int) -> Measured:
    """No library: a queue, a worker, the same encoding and validation."""
    import asyncio

    queue: asyncio.Queue[bytes] = asyncio.Queue()
    tally = Tally(messages)

    async def worker() -> None:
        while True:
            tally.handled(Order.model_validate_json(await queue.get()).number)

    payloads = prepared_orders(messages)
    workers = [asyncio.create_task(worker()) for _ in range(64)]
    for number, payload in enumerate(payloads):
        queue.put_nowait(payload.model_dump_json().encode())
        if number % ours.BATCH == 0:
            await asyncio.sleep(0)
    measured = await tally.measured()
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return measured


PATHS = (
    Path(
        "memory",
        "memory",
        "publish_many of 1000 until handled, 64 workers, keys",
        60_000,
        (
            Contender(OURS, ours.through),
            Contender(BYTES, ours.bytes_through),
            Contender("asyncio.Queue by hand", by_hand),
            Contender("FastStream test broker", faststream, share=0.08, target=30),
        ),
        rate=150_000,
        limit="what Python does for each message to prepare, store, hand over and settle it, beside "
        "the encoding of the payload",
    ),
    ours.in_order("memory", "memory", 150),
)
