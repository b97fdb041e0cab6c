import asyncio
from dataclasses import replace
from typing import Any

import pytest

from messaging import (
    App,
    PublishError,
    PublishManyError,
    Receipt,
    connect,
)
from tests.unit.topics import bodies, jobs, orders, prices

# middleware of publishing


def stamping(name):
    def middleware(next):
        async def send(message):
            seen = f"{message.headers.get('seen', '')}{name}"
            return await next(replace(message, headers={**message.headers, "seen": seen}))

        return send

    return middleware


async def test_publish_middleware_sees_each_message_outermost_first(clock):
    async with connect("memory://", clock=clock, publish_middleware=[stamping("a"), stamping("b")]) as bus:
        await bus.declare(jobs, groups=["audit"])
        await bus.publish(jobs, "x")
        await bus.publish_many(jobs, ["y", "z"])

        async with bus.consume(jobs, group="audit") as pull:
            await clock.settle()
            seen = [(await anext(pull)).headers["seen"] for _ in range(3)]

    assert seen == ["ab"] * 3


async def test_publish_middleware_sees_requests_too(clock):
    app = App("shop")

    @app.respond(prices)
    async def quote(product: str, delivery: "Any" = None) -> int:
        return 7

    seen = []

    def noting(next):
        async def send(message):
            seen.append(message.topic)
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[noting]) as bus, app.running(bus):
        assert await bus.request(prices, "p1") == 7

    assert seen == ["prices"]


async def test_middleware_may_try_again_or_answer_itself(clock, monkeypatch):
    failures = [PublishError("busy"), PublishError("busy")]

    def persistent(next):
        async def send(message):
            while True:
                try:
                    return await next(message)
                except PublishError:
                    await asyncio.sleep(0)

        return send

    def dropping(next):
        async def send(message):
            return Receipt("dropped") if b"secret" in message.body else await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[persistent, dropping]) as bus:
        publish = bus.adapter.publish

        async def flaky(messages):
            return [failures.pop() for _ in messages] if failures else await publish(messages)

        monkeypatch.setattr(bus.adapter, "publish", flaky)
        await bus.declare(jobs, groups=["audit"])

        assert (await bus.publish(jobs, "x", id="mine")).id == "mine"
        assert (await bus.publish(jobs, "secret")).id == "dropped"
        assert await bodies(bus, clock) == [b'"x"']


async def test_middleware_keeps_the_order_of_a_batch_of_an_ordered_topic(clock):
    def uneven(next):
        async def send(message):
            for _ in range(5 if message.body == b'"a0"' else 0):
                await asyncio.sleep(0)
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[uneven]) as bus:
        await bus.declare(orders, groups=["audit"])
        await bus.publish_many(orders, ["a0", "a1", "a2"])

        assert await bodies(bus, clock, orders) == [b'"a0"', b'"a1"', b'"a2"']


async def test_with_middleware_too_a_batch_that_fails_in_part_has_a_result_for_each(clock, monkeypatch):
    async with connect("memory://", clock=clock, publish_middleware=[stamping("a")]) as bus:
        publish = bus.adapter.publish

        async def refuse_bad(messages):
            if b"bad" in messages[0].message.body:
                return [PublishError("the disk is full")] * len(messages)
            return await publish(messages)

        monkeypatch.setattr(bus.adapter, "publish", refuse_bad)
        with pytest.raises(PublishManyError) as raised:
            await bus.publish_many(orders, ["a1", "bad", "c1"])

    assert [isinstance(result, PublishError) for result in raised.value.results] == [False, True, False]


async def test_with_middleware_too_a_failure_holds_its_successors_of_the_same_key(clock, monkeypatch):
    """What comes after a message that failed would else be handled in its place (7)."""
    async with connect("memory://", clock=clock, publish_middleware=[stamping("a")]) as bus:
        await bus.declare(orders, groups=["audit"])
        publish = bus.adapter.publish

        async def refuse_first(messages):
            return [
                PublishError("busy") if one.message.body == b'"a0"' else (await publish([one]))[0]
                for one in messages
            ]

        monkeypatch.setattr(bus.adapter, "publish", refuse_first)
        with pytest.raises(PublishManyError) as raised:
            await bus.publish_many(orders, ["a0", "b0", "a1"])

        assert [isinstance(result, PublishError) for result in raised.value.results] == [True, False, True]
        assert await bodies(bus, clock, orders) == [b'"b0"']


async def test_an_error_of_middleware_is_raised_once_nothing_is_under_way_any_more(clock):
    under_way = []

    def failing(next):
        async def send(message):
            if message.body == b'"bad"':
                raise KeyError("mine")
            under_way.append(message)
            for _ in range(5):
                await asyncio.sleep(0)
            receipt = await next(message)
            under_way.remove(message)
            return receipt

        return send

    async with connect("memory://", clock=clock, publish_middleware=[failing]) as bus:
        with pytest.raises(KeyError, match="mine"):
            await bus.publish_many(jobs, ["a", "bad", "b"])

        assert under_way == []
