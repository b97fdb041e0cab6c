"""One program whose topics live on several brokers at once keeps the promises of each."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest

from messaging import (
    App,
    Bus,
    Delivery,
    Endpoint,
    Reject,
    Retry,
    RetryPolicy,
    Settings,
    Topic,
    connect,
    fixed,
)
from messaging_contracts import brokers

REAL = brokers.with_an_adapter()
BROKERS = ("memory", *REAL)
KEYS = ("ann", "bob", "cas")

pytestmark = [getattr(pytest.mark, name) for name in REAL]


@pytest.fixture
def settings(messaging_server) -> Settings:
    """Topics `<broker>.*` live on that broker, all others in memory."""
    return Settings(
        url=f"memory://{secrets.token_hex(6)}",
        store="memory://routes",
        namespace=f"test-{secrets.token_hex(6)}",
        routes={f"{name}.*": name for name in REAL},
        broker={name: {"url": messaging_server(name)} for name in REAL},
    )


@asynccontextmanager
async def opened(settings):
    async with connect(settings) as bus:
        try:
            yield bus
        finally:
            for known in await bus.groups():
                await bus.delete_group(known.topic, known.group)


def ordered(name) -> Topic[str]:
    return Topic(f"{name}.orders", str, key=lambda text: text[:3], ordered=True, partitions=2)


def unordered(name) -> Topic[str]:
    return Topic(f"{name}.clicks", str, partitions=2)


async def until(condition):
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_order_retries_and_dead_letters_hold_on_every_broker_of_one_app(settings):
    app = App("mixed", retry=RetryPolicy(3, fixed(0.2)), idempotent=True)
    handled: dict[tuple[str, str], list[str]] = defaultdict(list)

    async def charge(text: str, delivery: Delivery) -> None:
        if text.endswith("-2") and delivery.attempt == 1:
            raise Retry("once")
        handled[delivery.message.topic, text[:3]].append(text)

    async def index(text: str) -> None:
        raise Reject("no")

    for name in BROKERS:
        app.subscribe(ordered(name))(charge)
        app.subscribe(unordered(name))(index)

    sent = {key: [f"{key}-{number}" for number in range(5)] for key in KEYS}
    async with opened(settings) as bus, app.running(bus):
        for number in range(5):
            for name in BROKERS:
                for key in KEYS:
                    await bus.publish(ordered(name), sent[key][number])
        receipts = {name: await bus.publish(unordered(name), "x") for name in BROKERS}

        async def all_handled() -> bool:
            counts = [await bus.dead_letters(unordered(name), group="mixed").count() for name in BROKERS]
            return counts == [1] * len(BROKERS) and sum(map(len, handled.values())) >= 15 * len(BROKERS)

        await until(all_handled)
        dead = {
            name: [letter.id async for letter in bus.dead_letters(unordered(name), group="mixed").browse()]
            for name in BROKERS
        }
        async with asyncio.timeout(20):
            while (health := await bus.health()).status != "green":  # one may stand still for a moment
                await asyncio.sleep(0.05)

    assert handled == {(f"{name}.orders", key): sent[key] for name in BROKERS for key in KEYS}
    assert dead == {name: [receipts[name].id] for name in BROKERS}
    assert {one.broker for one in health.subscriptions} == {one.name for one in health.brokers}
    assert len(health.brokers) == len(BROKERS)


async def test_a_message_goes_from_broker_to_broker_and_each_answers_its_own_requests(settings):
    app = App("mixed")
    ends = asyncio.Event()

    def hop(source: str, target: str | None) -> None:
        @app.subscribe(unordered(source))
        async def pass_on(text: str, bus: Bus) -> None:
            if target is None:
                ends.set()
            else:
                await bus.publish(unordered(target), text)

    for source, target in zip(BROKERS, (*BROKERS[1:], None), strict=True):
        hop(source, target)

    def answer(name: str) -> Endpoint[str, str]:
        endpoint = Endpoint(f"{name}.echo", str, str)

        @app.respond(endpoint)
        async def echo(text: str) -> str:
            return f"{name} {text}"

        return endpoint

    endpoints = {name: answer(name) for name in BROKERS}
    async with opened(settings) as bus, app.running(bus):
        await bus.publish(unordered(BROKERS[0]), "x")
        replies = await asyncio.gather(*(bus.request(endpoints[name], "x", timeout=20) for name in BROKERS))
        async with asyncio.timeout(20):
            await ends.wait()

    assert replies == [f"{name} x" for name in BROKERS]


async def test_a_program_without_the_routes_sees_each_topic_on_its_own_broker(settings, messaging_server):
    async with opened(settings) as bus:
        for name in BROKERS:
            await bus.declare(unordered(name), groups=["mixed"])
            await bus.publish(unordered(name), "x")
        for name in REAL:
            async with connect(
                Settings(url=messaging_server(name), namespace=settings.namespace, topology="verify")
            ) as alone:
                await alone.declare(unordered(name), groups=["mixed"])
                async with asyncio.timeout(20), alone.consume(unordered(name), group="mixed") as pull:
                    assert (await anext(pull)).payload == "x"
