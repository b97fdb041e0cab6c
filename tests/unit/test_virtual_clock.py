import asyncio
import time

import pytest

from messaging.clock import sleep, timeout
from messaging.testing import VirtualClock


async def test_an_hour_takes_no_real_time():
    clock = VirtualClock()
    loop = asyncio.get_running_loop()
    began = loop.time()
    slept = asyncio.create_task(sleep(clock, 3600))

    await clock.advance(3599)
    assert not slept.done()
    await clock.advance(1)

    assert slept.done()
    assert loop.time() - began < 1


async def test_both_times_advance_together_from_a_fixed_start():
    clock, other = VirtualClock(), VirtualClock()
    assert clock.time() == other.time()

    await clock.advance(2.5)

    assert clock.time() - other.time() == 2.5
    assert clock.monotonic() - other.monotonic() == 2.5


async def test_timers_fire_in_order_and_ties_in_the_order_of_scheduling():
    clock = VirtualClock()
    fired = []
    for name, delay in [("c", 2), ("a", 1), ("d", 2), ("b", 1)]:
        clock.call_later(delay, lambda name=name: fired.append((name, clock.monotonic())))

    await clock.advance(5)

    assert fired == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]


async def test_the_program_rests_between_two_instants():
    clock = VirtualClock()
    seen = []

    async def periodic():
        while True:
            await sleep(clock, 10)
            for _ in range(5):
                await asyncio.sleep(0)
            seen.append(clock.monotonic())

    task = asyncio.create_task(periodic())
    await clock.advance(35)
    task.cancel()

    assert seen == [10, 20, 30]
    assert clock.monotonic() == 35


async def test_a_timer_without_delay_fires_without_time():
    clock = VirtualClock()
    fired = []
    clock.call_later(0, lambda: clock.call_later(-1, lambda: fired.append(clock.monotonic())))

    await clock.settle()

    assert fired == [0]


async def test_a_cancelled_timer_does_not_fire_even_in_its_own_instant():
    clock = VirtualClock()
    fired = []
    clock.call_later(1, lambda: second.cancel())
    second = clock.call_later(1, lambda: fired.append("second"))
    third = clock.call_later(1, lambda: fired.append("third"))
    third.cancel()
    third.cancel()

    await clock.advance(1)

    assert fired == []


async def test_many_cancelled_timers_leave_no_memory_behind():
    clock = VirtualClock()
    kept = clock.call_later(5, lambda: None)
    for _ in range(10_000):
        clock.call_later(3600, lambda: None).cancel()

    assert len(clock._heap) < 200
    assert kept.pending


async def test_timeouts_end_on_this_clock():
    clock = VirtualClock()

    async def slow():
        async with timeout(clock, 3):
            await sleep(clock, 100)

    task = asyncio.create_task(slow())
    await clock.advance(3)

    assert isinstance(task.exception(), TimeoutError)


async def test_work_in_a_thread_is_waited_for_before_time_passes():
    clock = VirtualClock()
    order = []
    leave = asyncio.Event()

    async def handler():
        with clock.busy():
            await asyncio.to_thread(lambda: order.append("thread"))
            await leave.wait()
        order.append("handled")

    clock.call_later(1, lambda: order.append("timer"))
    task = asyncio.create_task(handler())
    asyncio.get_running_loop().call_later(0.05, leave.set)
    await clock.advance(1)
    await task

    assert order == ["thread", "handled", "timer"]


async def test_work_that_never_ends_is_an_error_not_a_hang():
    clock = VirtualClock(patience=0.05)

    async def stuck():
        with clock.busy():
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="outside the event loop did not end"):
        await clock.settle()
    task.cancel()


async def test_a_program_that_never_rests_is_an_error_not_a_hang():
    clock = VirtualClock(patience=0.05)

    async def spin():
        while True:
            clock.touch()
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    with pytest.raises(RuntimeError, match="did not come to rest"):
        await clock.advance(1)
    task.cancel()


async def test_a_process_that_stands_still_is_no_program_that_never_rests():
    clock = VirtualClock(patience=0.05)
    clock.call_later(1, lambda: time.sleep(0.06))
    clock.call_later(1, clock.touch)

    await clock.advance(1)

    assert clock.monotonic() == 1


async def test_only_one_advances_the_clock_at_a_time():
    clock = VirtualClock()
    clock.call_later(1, lambda: None)
    first = asyncio.create_task(clock.advance(1))
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="already being advanced"):
        await clock.advance(1)
    await first


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
async def test_time_moves_forward_by_finite_steps(seconds):
    with pytest.raises(ValueError, match="forward"):
        await VirtualClock().advance(seconds)


async def test_an_error_in_a_callback_goes_to_the_loop_and_stops_no_other():
    clock = VirtualClock()
    errors, fired = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    clock.call_later(1, lambda: 1 / 0)
    clock.call_later(1, lambda: fired.append("next"))

    await clock.advance(1)

    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert fired == ["next"]
