import asyncio
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from messaging import (
    Ack,
    App,
    Delivery,
    Reject,
    Release,
    RemoteError,
    Retry,
    RetryPolicy,
    connect,
    fixed,
)
from messaging.adapter import Outgoing, TopicSpec
from messaging.message import Message
from tests.unit.topics import jobs, orders, prices

# handlers


async def test_a_failure_is_retried_and_then_a_dead_letter(bus, clock):
    app = App("a", retry=RetryPolicy(3, fixed(10)))
    attempts = []

    @app.subscribe(orders)
    async def handle(order: str, delivery: Delivery):
        attempts.append((delivery.attempt, clock.monotonic()))
        raise ValueError("bad")

    async with app.running(bus):
        await bus.publish(orders, "x")
        await clock.advance(60)

    assert attempts == [(1, 0), (2, 10), (3, 20)]
    assert await bus.dead_letters(orders, group="a").count() == 1


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [
        pytest.param(None, 0, id="before its first attempt"),
        pytest.param(Retry(after=10), 1, id="while it waits for its second"),
        pytest.param(Reject("too old", cause="expired"), 1, id="as its handler says"),
    ],
)
async def test_the_letter_of_an_expired_message_counts_the_attempts_that_began(bus, clock, outcome, attempts):
    app = App("a")
    await bus.declare(jobs, groups=["a"])
    await bus.publish(jobs, "x", expires=5)
    if not attempts:
        await clock.advance(5)

    @app.subscribe(jobs, on_expired="dead_letter")
    async def handle(job: str):
        return outcome

    async with app.running(bus):
        await clock.advance(60)

    (letter,) = [letter async for letter in bus.dead_letters(jobs, group="a").browse()]
    assert (letter.cause, letter.attempts) == ("expired", attempts)


async def test_the_letter_of_a_message_that_asks_for_too_long_a_delay_counts_no_attempt(bus, clock):
    app = App("a")
    app.subscribe(jobs)(lambda job: None)

    async with app.running(bus):
        far = Message(id="far", topic="jobs", body=b'"x"', not_before=datetime.max.replace(tzinfo=UTC))
        await bus.adapter.publish([Outgoing(TopicSpec("jobs"), far, 0)])
        await clock.settle()

    (letter,) = [letter async for letter in bus.dead_letters(jobs, group="a").browse()]
    assert (letter.cause, letter.attempts) == ("delay_unsupported", 0)


async def test_a_handler_waiting_for_something_cancelled_has_failed(bus, clock):
    app = App("a", retry=RetryPolicy(1))

    @app.subscribe(jobs)
    async def handle(job: str):
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    async with app.running(bus):
        await bus.publish_many(jobs, [str(number) for number in range(30)])
        await clock.advance(1)
        assert await bus.dead_letters(jobs, group="a").count() == 30


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a group"])
async def test_a_handler_that_is_cancelled_each_time_neither_spins_nor_does_so_in_silence(
    bus, clock, caplog, grouped
):
    app, calls = App("a"), 0

    @app.subscribe(jobs)
    async def handle(job: str):
        nonlocal calls
        calls += 1
        own = asyncio.current_task()
        assert own is not None
        own.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            raise BaseExceptionGroup("g", [error, ValueError("v")]) if grouped else error from None

    async with app.running(bus):
        await bus.publish(jobs, "x")
        await clock.advance(9.5)

    assert calls == 10
    assert "handle was cancelled by itself or another part of this program" in caplog.text


async def test_a_handler_that_stops_with_its_cancellation_in_a_group_is_given_back_uncounted(bus, clock):
    app = App("a")

    @app.subscribe(jobs)
    async def handle(job: str):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise BaseExceptionGroup("g", [error]) from None

    async with app.running(bus):
        await bus.publish(jobs, "x")
        await clock.settle()
        living = asyncio.create_task(clock.advance(60))  # the time that it is given to finish
    await living

    assert [(group.lag, group.dead_letters) for group in await bus.groups()] == [(1, 0)]


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
async def test_the_end_of_the_program_in_a_group_beside_a_cancellation_ends_the_app(bus, clock, end):
    app = App("a")

    @app.subscribe(jobs)
    async def handle(job: str):
        raise BaseExceptionGroup("g", [asyncio.CancelledError(), end()])

    with pytest.raises(BaseExceptionGroup) as raised:
        async with app.running(bus):
            await bus.publish(jobs, "x")
            await clock.advance(60)
    assert raised.value.subgroup(end)


class Sold(Reject):
    """A Reject whose author forgot what a reason is."""

    def __init__(self, reason: Any):
        self.reason = reason


class Unreadable(Reject):
    @property
    def reason(self):
        return self.nothing  # type: ignore[attr-defined]

    @reason.setter
    def reason(self, value):
        pass


class Late(Release):
    def __post_init__(self):
        pass


def fail_without_line_numbers():
    def fail():
        raise ValueError("made")

    fail.__code__ = fail.__code__.replace(co_linetable=b"")
    fail()


def fail_where_no_source_can_be_read():
    class Loader:
        def get_source(self, name):
            raise ZeroDivisionError

    module: Any = {"__name__": "made", "__loader__": Loader()}
    exec(compile("def fail(): raise ValueError('made')", "made.py", "exec"), module)
    module["fail"]()


def raising(outcome):
    raise outcome


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda: Sold(None), ""),
        (lambda: Sold({"sku": 1}), "{'sku': 1}"),
        (lambda: Unreadable("x"), "AttributeError: 'Unreadable' object has no attribute 'nothing'"),
        (lambda: raising(Unreadable("x")), "AttributeError: 'Unreadable' object has no attribute 'nothing'"),
        (lambda: Retry("busy", after=10**400), "busy (Retry(after=1000"),
        (
            lambda: raising(Retry("busy", after=10**5000)),
            "busy (Retry(after=(a int that cannot be read)) asks",
        ),
        (lambda: Late(after=10**400), "ValueError: Late asks for no delay"),
        (fail_without_line_numbers, "ValueError: made"),
        (fail_where_no_source_can_be_read, "ValueError: made"),
    ],
)
async def test_whatever_ends_a_handling_ends_no_subscription(bus, clock, end, reason):
    app, handled = App("a", retry=RetryPolicy(2, fixed(0.1))), []

    @app.subscribe(jobs)
    async def handle(job: str):
        handled.append(job)
        return end() if job == "bad" else Ack()

    async with app.running(bus):
        await bus.publish_many(jobs, ["bad", "good"])
        await clock.advance(1)
        await bus.publish(jobs, "after")
        await clock.advance(1)
        letters = [letter.reason async for letter in bus.dead_letters(jobs, group="a").browse()]

    assert [job for job in handled if job != "bad"] == ["good", "after"]
    assert [text.startswith(reason) for text in letters] == [True]


async def test_an_hour_of_a_synchronous_handlers_retries_takes_no_time(bus, clock):
    app, threads, times = App("a", retry=RetryPolicy(2, fixed(3600))), set(), []

    @app.subscribe(jobs)
    def handle(job: str, delivery: Delivery):
        threads.add(threading.current_thread().name.rpartition("_")[0])
        times.append(clock.monotonic())
        return Retry() if delivery.attempt == 1 else Ack()

    async with app.running(bus):
        await bus.publish(jobs, "x")
        await clock.advance(3600)

    assert times == [0, 3600]
    assert threads == {"messaging-a"}


async def test_a_thread_is_waited_for_before_its_key_goes_on():
    app, running, overlaps = App("a", timeout=0.02, retry=RetryPolicy(2, fixed(0))), set(), []

    @app.subscribe(orders)
    def handle(order: str):
        if order in running:
            overlaps.append(order)
        running.add(order)
        time.sleep(0.1)
        running.discard(order)

    async with connect("memory://") as bus, app.running(bus):
        await bus.publish(orders, "x")
        letters = bus.dead_letters(orders, group="a")
        async with asyncio.timeout(5):
            while not await letters.count():
                await asyncio.sleep(0.01)
    assert overlaps == []


async def test_settings_override_what_the_code_says(tmp_path, monkeypatch, clock):
    file = tmp_path / "messaging.toml"
    file.write_text(
        """
        [topics.jobs]
        partitions = 3
        [subscriptions."jobs/a"]
        concurrency = 2
        prefetch = 5
        timeout = 7
        on_expired = "dead_letter"
        retry = {attempts = 9, delay = 2, maximum = 4, multiplier = 1, jitter = 0}
        """
    )
    monkeypatch.setenv("MESSAGING_CONFIG", str(file))
    app = App("a", concurrency=10, retry=RetryPolicy(2, fixed(1)))
    app.subscribe(jobs, concurrency=20, prefetch=40, timeout=60)(lambda job: None)

    (plan,) = app.plans(connect("memory://", clock=clock))

    assert (plan.concurrency, plan.prefetch, plan.timeout, plan.on_expired) == (2, 5, 7.0, "dead_letter")
    assert plan.group.topic.partitions == 3
    assert (plan.retry.attempts, plan.retry.delay.initial, plan.retry.delay.maximum) == (9, 2, 4)


# responders


async def test_requests_are_answered_and_failures_raised_at_the_requester(bus, clock):
    app = App("a")

    @app.respond(prices)
    async def quote(ask: str) -> int:
        if ask == "bad":
            raise ValueError("no such thing")
        return len(ask)

    async with app.running(bus):
        assert await bus.request(prices, "abc") == 3
        with pytest.raises(RemoteError, match="ValueError: no such thing"):
            await bus.request(prices, "bad")
    assert not bus.broker("prices").requester._pending


async def test_a_cut_while_a_reply_is_sent_ends_no_responder(bus, clock):
    app, asked = App("a"), []

    @app.respond(prices)
    async def quote(ask: str) -> int:
        asked.append(ask)
        if len(asked) == 1:
            bus.native.disconnect()
        return 1

    async with app.running(bus):
        with suppress(Exception):
            await bus.request(prices, "abc", timeout=5)
        bus.native.reconnect()
        await clock.advance(30)
        assert await bus.request(prices, "abc", timeout=5) == 1
        assert not bus.ended
