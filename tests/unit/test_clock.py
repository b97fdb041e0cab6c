import asyncio
import time

import pytest

from messaging.clock import SystemClock, sleep, timeout

# the system's clock


async def test_the_systems_clock_tells_the_systems_time():
    clock = SystemClock()

    for told, known in ((clock.time, time.time), (clock.monotonic, time.monotonic)):
        before, now, after = known(), told(), known()
        assert before <= now <= after
    with clock.busy():
        pass


async def test_the_systems_clock_calls_later_unless_it_is_cancelled():
    clock, called = SystemClock(), asyncio.Event()
    forgotten = clock.call_later(0.001, lambda: pytest.fail("it was cancelled"))
    clock.call_later(0.01, called.set)

    forgotten.cancel()

    await asyncio.wait_for(called.wait(), 5)


# sleep


async def test_a_sleep_takes_its_time_and_no_more(clock):
    sleeping = asyncio.create_task(sleep(clock, 10))
    await clock.advance(9.9)
    assert not sleeping.done()

    await clock.advance(0.1)

    assert sleeping.done()


@pytest.mark.parametrize("delay", [0, -1])
async def test_a_sleep_of_nothing_lets_others_run_and_goes_on(clock, delay):
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, "other")

    await sleep(clock, delay)

    assert ran == ["other"]


async def test_a_cancelled_sleep_ends_at_once_and_leaves_no_timer(clock):
    sleeping = asyncio.create_task(sleep(clock, 10))
    await clock.settle()

    sleeping.cancel()
    await asyncio.wait((sleeping,))

    assert sleeping.cancelled()
    assert clock._next_due() is None


async def test_a_sleep_that_is_cancelled_as_it_ends_does_not_disturb_the_loop(clock):
    """The timer fires into a future that is already cancelled."""
    sleeping = asyncio.create_task(sleep(clock, 10))
    await clock.settle()
    clock.call_later(10, sleeping.cancel)
    unhandled = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    await clock.advance(10)
    await asyncio.wait((sleeping,))

    assert unhandled == []


# timeout


async def late(clock, within, work):
    async with timeout(clock, within):
        return await work


async def test_work_that_ends_in_time_is_not_disturbed(clock):
    working = asyncio.create_task(late(clock, 10, sleep(clock, 9)))
    await clock.advance(20)

    assert await working is None
    assert clock._next_due() is None


async def test_work_that_is_too_late_is_cancelled_and_told(clock):
    working = asyncio.create_task(late(clock, 10, sleep(clock, 11)))
    await clock.advance(10)

    with pytest.raises(TimeoutError):
        await working
    assert working.cancelling() == 0


async def test_none_waits_for_ever(clock):
    working = asyncio.create_task(late(clock, None, sleep(clock, 1e6)))
    await clock.advance(1e6)

    assert await working is None


async def test_a_cancellation_from_outside_stays_one(clock):
    working = asyncio.create_task(late(clock, 10, sleep(clock, 11)))
    await clock.advance(5)
    working.cancel()
    await asyncio.wait((working,))

    assert working.cancelled()
    assert clock._next_due() is None


async def test_a_cancellation_that_comes_with_the_end_of_the_time_goes_before_it(clock):
    working = asyncio.create_task(late(clock, 10, sleep(clock, 11)))
    await clock.settle()
    clock.call_later(10, working.cancel)
    await clock.advance(10)
    await asyncio.wait((working,))

    assert working.cancelled()


async def test_an_error_of_the_work_is_raised_as_it_is(clock):
    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await late(clock, 10, fail())


async def test_an_error_that_follows_from_the_cancellation_is_raised_as_it_is(clock):
    async def fail_in_the_end():
        try:
            await sleep(clock, 11)
        finally:
            raise KeyError("while cleaning up")

    working = asyncio.create_task(late(clock, 10, fail_in_the_end()))
    await clock.advance(10)

    with pytest.raises(KeyError, match="while cleaning up"):
        await working


async def test_work_that_swallows_the_cancellation_leaves_a_task_that_nobody_cancels(clock):
    async def stubborn():
        try:
            await sleep(clock, 11)
        except asyncio.CancelledError:
            return "done all the same"

    async def go_on():
        result = await late(clock, 10, stubborn())
        task = asyncio.current_task()
        assert task is not None
        await sleep(clock, 1)
        return result, task.cancelling()

    working = asyncio.create_task(go_on())
    await clock.advance(12)

    assert await working == ("done all the same", 0)


async def test_of_two_timeouts_the_one_that_ends_is_told(clock):
    seen = []

    async def outer():
        async with timeout(clock, 5):
            try:
                async with timeout(clock, 10):
                    await sleep(clock, 20)
            except TimeoutError:
                seen.append("inner")

    working = asyncio.create_task(outer())
    await clock.advance(30)

    with pytest.raises(TimeoutError):
        await working
    assert seen == []
