from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from messaging import (
    App,
    Delivery,
    Endpoint,
    Reject,
    RemoteError,
    RequestTimeout,
    RetryPolicy,
    Topic,
    fixed,
)
from messaging.clock import sleep
from messaging.testing.harness import AppTest, _at_once


@dataclass(frozen=True)
class Order:
    number: int


orders = Topic("orders", Order)
prices = Endpoint("prices.quote", str, int)


def shop(**options) -> App:
    return App("billing", retry=RetryPolicy(3, fixed(3600)), **options)


async def test_what_is_published_is_handled_once_it_is_settled():
    app, seen = shop(), []

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        seen.append(order)

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.publish_many(orders, [Order(2), Order(3)])
        await t.settle()

        assert sorted(order.number for order in seen) == [1, 2, 3]
        assert [type(delivery) for delivery in t.handled] == [Delivery] * 3


async def test_a_retry_of_an_hour_takes_no_time_and_comes_neither_early_nor_late():
    app = shop()

    @app.subscribe(orders)
    async def handle(order: Order, delivery: Delivery) -> None:
        if delivery.attempt < 3:
            raise ConnectionError("away")

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.advance(timedelta(seconds=3599))
        early = len(t.handled)
        await t.advance(1)
        once = len(t.handled)
        await t.advance(3600)

        assert (early, once) == (1, 2)
        assert [delivery.attempt for delivery in t.handled] == [1, 2, 3]
        assert t.dead(orders) == []


async def test_dead_letters_are_there_at_once_and_stay():
    app = shop()

    @app.subscribe(orders, group="audit")
    async def audit(order: Order) -> None:
        pass

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        raise Reject("no customer")

    async with app.test() as t:
        await t.publish(orders, Order(1), id="o1")
        await t.settle()

        for _ in range(2):
            assert [(letter.id, letter.reason) for letter in t.dead(orders)] == [("o1", "no customer")]
        assert t.dead("orders", group="billing")[0].cause == "rejected"
        assert t.dead(orders, group="audit") == []


async def test_a_redriven_letter_is_gone_and_handled_again():
    app = shop()

    @app.subscribe(orders)
    async def handle(order: Order, delivery: Delivery) -> None:
        if len(t.handled) == 1:
            raise Reject("bad")

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.settle()
        redriven = await t.bus.dead_letters(orders, group="billing").redrive()
        await t.settle()

        assert redriven == 1
        assert t.dead(orders) == []
        assert [delivery.attempt for delivery in t.handled] == [1, 1]


async def test_what_the_test_provides_replaces_the_lifespan():
    @asynccontextmanager
    async def lifespan(bus):
        raise AssertionError("not in a test")
        yield

    app, seen = shop(lifespan=lifespan), []

    class Ledger:
        pass

    @app.subscribe(orders)
    async def handle(order: Order, ledger: Ledger) -> None:
        seen.append(ledger)

    ledger = Ledger()
    async with app.test(provide=[ledger]) as t:
        await t.publish(orders, Order(1))
        await t.settle()

    assert seen == [ledger]


async def test_handled_counts_handlers_not_deliveries():
    app = shop()

    @app.subscribe(orders, idempotent=True)
    async def handle(order: Order) -> None:
        pass

    async with app.test() as t:
        for _ in range(2):
            await t.publish(orders, Order(1), id="same")
            await t.settle()
        await t.publish(orders, Order(2), expires=0.001)
        await t.settle()

        assert len(t.handled) == 2


async def test_middleware_of_the_app_is_run():
    seen = []

    def middleware(next):
        async def handle(delivery):
            seen.append(delivery.headers)
            return await next(delivery)

        return handle

    app = shop(middleware=[middleware])

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        pass

    async with app.test() as t:
        await t.publish(orders, Order(1), headers={"tenant": "a"})
        await t.settle()

    assert seen == [{"tenant": "a"}]


async def test_a_synchronous_handler_is_waited_for():
    app, seen = shop(), []

    @app.subscribe(orders)
    def handle(order: Order) -> None:
        seen.append(order.number)

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.settle()

        assert seen == [1]


async def test_a_thread_that_a_handler_waits_for_is_waited_for():
    app, seen = shop(), []

    @app.subscribe(orders)
    async def handle(order: Order, delivery: Delivery) -> None:
        await asyncio.to_thread(time.sleep, 0.05)
        if delivery.attempt == 1:
            raise ConnectionError
        seen.append(await asyncio.get_running_loop().run_in_executor(None, lambda: order.number))

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.advance(3600)
        assert seen == [1]

        await t.publish(orders, Order(2))
        await t.settle()
        assert [delivery.attempt for delivery in t.handled] == [1, 2, 1]
        await t.advance(3600)
        assert seen == [1, 2]


async def test_a_thread_of_the_lifespan_holds_no_time_up():
    ended = threading.Event()

    @asynccontextmanager
    async def resources(bus):
        thread = asyncio.create_task(asyncio.to_thread(ended.wait))
        await asyncio.sleep(0)
        yield
        ended.set()
        await thread

    app, seen = shop(lifespan=resources), []
    app.subscribe(orders)(lambda order: seen.append(order.number))

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.advance(60)
        assert seen == [1]


# requests


async def test_a_request_is_answered():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        return len(product)

    async with app.test() as t:
        assert await t.request(prices, "tea") == 3
        assert t.clock.monotonic() == 0


async def test_a_responder_that_takes_its_time_is_waited_for():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        await sleep(t.clock, 5)
        return 7

    async with app.test() as t:
        assert await t.request(prices, "tea", timeout=6) == 7


async def test_a_request_without_an_answer_ends_after_its_timeout():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        await sleep(t.clock, 60)
        return 7

    async with app.test() as t:
        with pytest.raises(RequestTimeout):
            await t.request(prices, "tea", timeout=2)
        assert t.clock.monotonic() == pytest.approx(2, abs=0.2)


async def test_the_error_of_a_responder_is_raised():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        raise KeyError("tea")

    async with app.test() as t:
        with pytest.raises(RemoteError, match="KeyError"):
            await t.request(prices, "tea")


async def test_requests_can_be_asked_at_once():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        await sleep(t.clock, 1)
        return len(product)

    async with app.test() as t, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(t.request(prices, product, timeout=10)) for product in ("tea", "rice")]

    assert [task.result() for task in asked] == [3, 4]


async def test_a_cancelled_request_leaves_nothing_behind():
    app = shop()

    @app.respond(prices)
    async def quote(product: str) -> int:
        await sleep(t.clock, 1e6)
        return 7

    async with app.test() as t:
        asking = asyncio.create_task(t.request(prices, "tea", timeout=1e6))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    assert asyncio.all_tasks() == {asyncio.current_task()}


# surroundings


async def test_production_settings_hold_except_for_the_broker(monkeypatch, tmp_path):
    file = tmp_path / "messaging.toml"
    file.write_text(
        'url = "redis://production"\nstore = "redis://production"\ntopology = "verify"\n'
        '[subscriptions."orders/billing"]\nretry = {attempts = 2, delay = 10}\n'
    )
    monkeypatch.setenv("MESSAGING_CONFIG", str(file))
    monkeypatch.setenv("MESSAGING_URL", "amqp://production")
    app = shop()

    @app.subscribe(orders, idempotent=True)
    async def handle(order: Order) -> None:
        raise ConnectionError("away")

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.advance(10)

        assert t.bus.capabilities.broker == "memory"
        assert [letter.attempts for letter in t.dead(orders)] == [2]


async def test_a_handler_that_still_waits_at_the_end_is_finished():
    app, ended = shop(), []

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        await sleep(t.clock, 20)
        ended.append(order.number)

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.settle()

    assert ended == [1]


async def test_a_handler_that_never_ends_is_cancelled_after_the_drain_timeout():
    app, ended = shop(), []

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        try:
            await sleep(t.clock, 1e9)
        finally:
            ended.append(t.clock.monotonic())

    async with app.test() as t:
        await t.publish(orders, Order(1))
        await t.settle()

    assert ended == [pytest.approx(30, abs=1)]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_failing_test_fails_with_its_own_error():
    app = shop()

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        pass

    with pytest.raises(AssertionError, match="as it should"):
        async with app.test():
            raise AssertionError("as it should")


async def test_two_tests_share_nothing():
    app = shop()

    @app.subscribe(orders)
    async def handle(order: Order) -> None:
        raise Reject("bad")

    async with app.test() as first, app.test() as second:
        await first.publish(orders, Order(1))
        await first.settle()
        await second.settle()

        assert isinstance(second, AppTest)
        assert (len(first.dead(orders)), len(second.dead(orders))) == (1, 0)


def test_a_broker_that_would_make_the_caller_wait_is_an_error():
    async def waits() -> Any:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="wait"):
        _at_once(waits())
