import asyncio
from dataclasses import replace
from typing import Any

import pytest

from messaging import (
    App,
    ConfigurationError,
    InvalidMessage,
    PublishError,
    PublishManyError,
    PublishUncertain,
    Receipt,
    connect,
)
from messaging.clock import sleep
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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"headers": {"n": 5}}, "int"),
        ({"headers": {"messaging-attempt": "7"}}, "reserved"),
        ({"headers": None}, "headers"),
        ({"body": "text"}, "bytes"),
        ({"key": 5}, "key"),
        ({"id": "a\nb"}, "id"),
        ({"id": 5}, "id"),
        ({"type": 5}, "type"),
        ({"topic": "others"}, "topic"),
        ({"expires_at": "tomorrow"}, "expires_at"),
    ],
)
async def test_what_publish_middleware_changes_is_checked_as_what_is_published(clock, change, told):
    def changing(next):
        return lambda message: next(replace(message, **change) if message.body == b'"b"' else message)

    async with connect("memory://", clock=clock, publish_middleware=[changing]) as bus:
        await bus.declare(jobs, groups=["audit"])
        with pytest.raises(PublishManyError) as caught:
            await bus.publish_many(jobs, ["a", "b", "c"])

    published, refused, behind = caught.value.results
    assert (type(published), type(refused), type(behind)) == (Receipt, InvalidMessage, Receipt)
    assert told in str(refused)


async def test_what_publish_middleware_changes_in_place_is_checked(clock):
    def tracing(next):
        async def send(message):
            message.headers["traceparent"] = 5
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[tracing]) as bus:
        with pytest.raises(InvalidMessage, match="traceparent"):
            await bus.publish(jobs, "a")


async def test_publish_middleware_passes_on_a_message(clock):
    def forgetful(next) -> Any:
        return lambda message: next(None)

    async with connect("memory://", clock=clock, publish_middleware=[forgetful]) as bus:
        with pytest.raises(InvalidMessage, match="NoneType"):
            await bus.publish(jobs, "a")


async def test_publish_middleware_may_give_another_id(clock):
    def renaming(next):
        return lambda message: next(replace(message, id="mine", headers={"a": "b"}))

    async with connect("memory://", clock=clock, publish_middleware=[renaming]) as bus:
        assert (await bus.publish(jobs, "a")).id == "mine"


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


def waiting_for(gates):
    """Middleware that waits for the gate of a body, where it has one."""

    def middleware(next):
        async def send(message):
            if message.body in gates:
                await gates[message.body].wait()
            return await next(message)

        return send

    return middleware


async def test_middleware_keeps_the_order_of_calls_for_one_key(clock):
    gates = {b'"a0"': asyncio.Event()}
    async with connect("memory://", clock=clock, publish_middleware=[waiting_for(gates)]) as bus:
        await bus.declare(orders, groups=["audit"])
        first = asyncio.create_task(bus.publish_many(orders, ["a0", "b0", "a1"]))
        await clock.settle()
        second = asyncio.create_task(bus.publish(orders, "a2"))
        other = await bus.publish(orders, "c0")
        await clock.settle()
        assert other
        assert not second.done()

        gates[b'"a0"'].set()
        await asyncio.gather(first, second)

        keyed = await bodies(bus, clock, orders)
        assert [body for body in keyed if b"a" in body] == [b'"a0"', b'"a1"', b'"a2"']


async def test_a_call_that_ends_early_lets_none_behind_it_overtake_those_before_it(clock):
    gates = {b'"a0"': asyncio.Event()}
    async with connect("memory://", clock=clock, publish_middleware=[waiting_for(gates)]) as bus:
        await bus.declare(orders, groups=["audit"])
        first = asyncio.create_task(bus.publish(orders, "a0"))
        await clock.settle()
        cancelled = asyncio.create_task(bus.publish(orders, "a1"))
        await clock.settle()
        cancelled.cancel()
        last = asyncio.create_task(bus.publish(orders, "a2"))
        await clock.settle()
        assert not last.done()

        gates[b'"a0"'].set()
        await asyncio.gather(first, last)

        assert await bodies(bus, clock, orders) == [b'"a0"', b'"a2"']


def refusing(next):
    async def send(message):
        if message.body == b'"a0"':
            raise PublishError("busy")
        return await next(message)

    return send


async def test_what_fails_in_one_call_holds_what_later_calls_have_for_its_key(clock):
    gates = {b'"a0"': asyncio.Event()}

    async with connect("memory://", clock=clock, publish_middleware=[waiting_for(gates), refusing]) as bus:
        await bus.declare(orders, groups=["audit"])
        calls = []
        for body in ("a0", "a1", "a2", "b0"):
            calls.append(asyncio.create_task(bus.publish(orders, body)))
            await clock.settle()

        gates[b'"a0"'].set()
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [isinstance(result, PublishError) for result in results] == [True, True, True, False]
        assert "published before it with the same key, failed: busy" in str(results[1])
        assert await bus.publish(orders, "a3")
        assert await bodies(bus, clock, orders) == [b'"b0"', b'"a3"']


async def test_what_a_batch_did_not_come_to_because_middleware_failed_holds_what_is_behind_it(clock):
    def failing(next):
        async def send(message):
            await sleep(clock, 1)
            if message.key == "a":
                raise OSError("full")
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[failing]) as bus:
        await bus.declare(orders, groups=["audit"])
        batch = asyncio.create_task(bus.publish_many(orders, ["b1", "a1", "c1"]))
        await clock.settle()
        behind = [asyncio.create_task(bus.publish(orders, payload)) for payload in ("b2", "c2")]
        await clock.advance(5)

        assert isinstance(batch.exception(), OSError)
        assert isinstance(behind[0].result(), Receipt)
        assert "published before it with the same key, failed: full" in str(behind[1].exception())
        assert await bodies(bus, clock, orders) == [b'"b1"', b'"b2"']


async def test_with_middleware_too_what_fails_takes_with_it_what_waits_for_its_topic(clock, monkeypatch):
    async def slow(topology):
        await sleep(clock, 3)
        await declare(topology)

    def failing(next):
        async def send(message):
            await sleep(clock, 1)
            if message.body == b'"a1"':
                raise OSError("full")
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[failing]) as bus:
        await bus.declare(orders, groups=["audit"])
        declare = bus.adapter.declare
        monkeypatch.setattr(bus.adapter, "declare", slow)
        first = asyncio.create_task(bus.publish(orders, "a1"))
        batch = asyncio.create_task(bus.publish_many(orders, ["b1", "a2"]))
        await clock.settle()
        bus.catalogue._again.add("orders")
        last = asyncio.create_task(bus.publish(orders, "a3"))
        await clock.advance(5)

        assert isinstance(first.exception(), OSError)
        assert isinstance(batch.exception(), PublishManyError)
        assert "published before it with the same key, failed: full" in str(last.exception())
        monkeypatch.undo()
        assert await bodies(bus, clock, orders) == [b'"b1"']


async def test_what_is_published_before_a_caller_knows_of_a_failure_is_behind_it(clock):
    gates = {b'"b0"': asyncio.Event()}

    async with connect("memory://", clock=clock, publish_middleware=[waiting_for(gates), refusing]) as bus:
        await bus.declare(orders, groups=["audit"])
        many = asyncio.create_task(bus.publish_many(orders, ["a0", "b0"]))
        await clock.settle()
        for body in ("a1", "a2"):
            with pytest.raises(PublishError, match="published before it with the same key, failed: busy"):
                await bus.publish(orders, body)

        gates[b'"b0"'].set()
        with pytest.raises(PublishManyError):
            await many
        assert await bus.publish(orders, "a3")
        assert await bodies(bus, clock, orders) == [b'"b0"', b'"a3"']


@pytest.mark.parametrize("topic", [orders, jobs])
async def test_with_middleware_too_the_timeout_is_of_the_whole_call(clock, topic):
    def slow(next):
        async def send(message):
            await sleep(clock, 0.2)
            return await next(message)

        return send

    async with connect("memory://", clock=clock, publish_middleware=[slow, slow]) as bus:
        await bus.declare(topic, groups=["audit"])
        call = asyncio.create_task(bus.publish_many(topic, ["a0", "a1", "a2"], timeout=0.3))
        await clock.settle()
        await clock.advance(0.5)

        assert call.done()
        with pytest.raises(PublishManyError, match=r"0\.3 s were over before its turn came"):
            await call


async def test_the_turn_of_a_call_is_waited_for_no_longer_than_its_timeout(clock):
    gates = {b'"a0"': asyncio.Event()}
    async with connect("memory://", clock=clock, publish_middleware=[waiting_for(gates)]) as bus:
        await bus.declare(orders, groups=["audit"])
        first = asyncio.create_task(bus.publish(orders, "a0"))
        await clock.settle()
        late = asyncio.create_task(bus.publish(orders, "a1", timeout=1))
        await clock.settle()
        behind = asyncio.create_task(bus.publish(orders, "a2"))
        await clock.advance(1)
        with pytest.raises(PublishError, match="1 s were over before its turn came"):
            await late

        gates[b'"a0"'].set()
        await first
        with pytest.raises(PublishError, match="published before it with the same key, failed"):
            await behind
        assert await bodies(bus, clock, orders) == [b'"a0"']


@pytest.mark.parametrize("topic", [orders, jobs])
async def test_middleware_that_does_not_end_holds_a_call_no_longer_than_its_timeout(clock, topic):
    def stubborn(next):
        async def send(message):
            while True:
                try:
                    return await next(message)
                except PublishError:
                    await sleep(clock, 0.01)

        return send

    def hanging(next):
        async def send(message):
            await (sleep(clock, 1000) if message.body == b'"a1"' else next(message))
            raise PublishError("busy")

        return send

    async with connect("memory://", clock=clock, publish_middleware=[stubborn, hanging]) as bus:
        await bus.declare(topic, groups=["audit"])
        calls = [asyncio.create_task(bus.publish(topic, body, timeout=1)) for body in ("a1", "b0")]
        await clock.settle()
        await clock.advance(1.2)

        assert all(call.done() for call in calls)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [PublishError, PublishUncertain]


@pytest.mark.parametrize("topic", [jobs, orders])
async def test_a_message_that_publish_middleware_swallows_is_not_told_as_published(clock, topic):
    def swallowing(next) -> Any:
        async def send(message):
            """Neither calls the next one nor returns anything."""

        return send

    async with connect("memory://", clock=clock, publish_middleware=[swallowing]) as bus:
        await bus.declare(topic, groups=["audit"])
        with pytest.raises(TypeError, match="NoneType, which is no Receipt.*`next`"):
            await bus.publish(topic, "x")
        with pytest.raises(TypeError, match="no Receipt"):
            await bus.publish_many(topic, ["x", "y"])


async def test_publish_middleware_that_returns_no_function_is_told(clock):
    def forgetful(next) -> Any:
        """Returns nothing."""

    async with connect("memory://", clock=clock, publish_middleware=[forgetful]) as bus:
        with pytest.raises(ConfigurationError, match="forgetful.*NoneType"):
            await bus.publish(jobs, "x")
