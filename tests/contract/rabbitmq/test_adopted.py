"""Queues of others, on which a delayed retry waits in the process."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiormq import connect as connect_raw

from messaging import App, Bus, Health, RetryPolicy, Topic, connect, fixed
from tests.contract.rabbitmq.support import Bench


@pytest.fixture
async def adopted(bench: Bench) -> AsyncIterator[str]:
    """An exchange and a queue of one name that somebody else has made."""
    connection = await connect_raw(bench.url)
    channel = await connection.channel()
    name = f"{bench.namespace}.theirs"
    await channel.exchange_declare(name, exchange_type="fanout", durable=True)
    await channel.queue_declare(name, durable=True)
    await channel.queue_bind(name, name)
    yield name
    await channel.queue_delete(name)
    await channel.exchange_delete(name)
    await connection.close()


async def health_when(bus: Bus, condition: Callable[[Health], bool]) -> Health:
    async with asyncio.timeout(20):
        while not condition(health := await bus.health()):
            await asyncio.sleep(0.05)
    return health


async def test_health_says_that_parked_retries_hold_up_what_is_behind_them(
    bench: Bench, adopted: str
) -> None:
    topic = Topic("orders", str, native=adopted)
    app, handled, broken = App("billing", retry=RetryPolicy(1000, fixed(2))), list[str](), True

    @app.subscribe(topic, native=adopted, ordered=False, prefetch=2, concurrency=2)
    async def handle(order: str) -> None:
        if broken and order != "good":
            raise OSError("busy")
        handled.append(order)

    async with connect(f"{bench.url}?adopted_queues=limited") as bus, app.running(bus):
        await bus.publish(topic, "bad 1")
        one_parked = await health_when(bus, lambda health: health.subscriptions[0].parked == 1)
        await bus.publish_many(topic, ["bad 2", "good"])
        all_parked = await health_when(bus, lambda health: health.subscriptions[0].parked_full)
        assert handled == []
        broken = False
        await health_when(bus, lambda _: len(handled) == 3)
        over = await health_when(bus, lambda health: not health.subscriptions[0].held)

    assert (one_parked.status, one_parked.subscriptions[0].parked_full) == ("green", False)
    assert (all_parked.status, all_parked.subscriptions[0].parked) == ("yellow", 2)
    assert (over.status, over.subscriptions[0].parked_full) == ("green", False)
