from __future__ import annotations

import asyncio
from typing import Any

import pytest

from messaging.clock import sleep
from messaging.message import Ack, Delivery, Message
from messaging.middleware import timing_out
from messaging.middleware.timeout import AckTimeout, within_ack_timeout
from messaging.testing import VirtualClock

DELIVERY = Delivery({}, message=Message(id="m1", topic="orders", body=b""), group="billing")


def protect(clock) -> Any:
    return timing_out(5, clock=clock)


async def test_a_handler_in_time_keeps_its_outcome():
    clock = VirtualClock()
    outcome = Ack()

    async def handler(delivery) -> Any:
        await sleep(clock, 4)
        return outcome

    task = asyncio.create_task(protect(clock)(handler)(DELIVERY))
    await clock.advance(4)

    assert await task is outcome


async def test_a_slow_handler_is_cancelled_and_the_error_names_the_message():
    clock = VirtualClock()
    ended = []

    async def handler(delivery) -> Any:
        try:
            await sleep(clock, 60)
        finally:
            ended.append(clock.monotonic())
        return Ack()

    task = asyncio.create_task(protect(clock)(handler)(DELIVERY))
    await clock.advance(5)

    with pytest.raises(TimeoutError, match=r"longer than 5 s: message m1 of orders, group billing"):
        await task
    assert ended == [5]


async def test_a_timeout_of_the_handlers_own_passes_unchanged():
    clock = VirtualClock()
    own = TimeoutError("the bank did not answer")

    async def handler(delivery) -> Any:
        raise own

    with pytest.raises(TimeoutError) as caught:
        await protect(clock)(handler)(DELIVERY)

    assert caught.value is own


async def test_an_error_of_the_handler_passes_unchanged():
    own = ValueError("x")

    async def handler(delivery) -> Any:
        raise own

    with pytest.raises(ValueError) as caught:
        await protect(VirtualClock())(handler)(DELIVERY)

    assert caught.value is own


async def test_a_cancellation_from_outside_is_no_timeout():
    clock = VirtualClock()

    async def handler(delivery) -> Any:
        await sleep(clock, 60)
        return Ack()

    task = asyncio.create_task(protect(clock)(handler)(DELIVERY))
    await clock.advance(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_handler_that_swallows_its_timeout_leaves_the_worker_uncancelled():
    clock = VirtualClock()

    async def handler(delivery) -> Any:
        try:
            await sleep(clock, 60)
        except asyncio.CancelledError:
            return Ack()

    async def worker():
        current: Any = asyncio.current_task()
        outcome = await protect(clock)(handler)(DELIVERY)
        return outcome, current.cancelling()

    task = asyncio.create_task(worker())
    await clock.advance(5)

    assert await task == (Ack(), 0)


async def test_the_clock_of_a_finished_handler_does_not_cancel_the_next_one():
    clock = VirtualClock()

    async def handler(delivery) -> Any:
        await sleep(clock, 3)
        return Ack()

    async def worker():
        handle = protect(clock)(handler)
        return [await handle(DELIVERY), await handle(DELIVERY)]

    task = asyncio.create_task(worker())
    await clock.advance(6)

    assert await task == [Ack(), Ack()]


async def test_once_a_broker_took_a_message_back_handlers_end_before_it_does():
    clock, ack_timeout = VirtualClock(), AckTimeout()

    async def handler(delivery) -> Any:
        await sleep(clock, 60)
        return Ack()

    protected = within_ack_timeout(ack_timeout, clock=clock)(handler)
    task = asyncio.ensure_future(protected(DELIVERY))
    await clock.advance(60)
    assert isinstance(await task, Ack), "a handler was bounded before its broker had shown a bound"

    ack_timeout.seen(20)
    ack_timeout.seen(30)
    task = asyncio.ensure_future(protected(DELIVERY))
    await clock.advance(18)

    with pytest.raises(
        TimeoutError, match=r"longer than 18 s: message m1.*takes back what is not settled within 20 s"
    ):
        await task
