import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.clock import CATCH_UP
from messaging.deadlines import Deadlines
from messaging.testing import VirtualClock


@pytest.fixture
def late(clock):
    return []


@pytest.fixture
def deadlines(clock, late):
    return Deadlines(clock, lambda waits: late.extend((wait, clock.monotonic()) for wait in waits))


async def test_a_wait_that_was_not_removed_is_late_at_its_time(clock, deadlines, late):
    deadlines.add("slow", 5)
    deadlines.add("fast", 2)
    deadlines.add("over", 3)
    await clock.advance(1)
    deadlines.remove("over", 3)
    deadlines.add("second", 5)

    await clock.advance(10)

    assert late == [("fast", 2), ("slow", 5), ("second", 6)]


async def test_one_timer_serves_all_and_the_waits_that_come_later(clock, deadlines, late):
    for number in range(100):
        deadlines.add(number, 5)
        deadlines.remove(number, 5)
    deadlines.add("last", 5)

    assert len(clock._heap) == 1
    await clock.advance(5)
    assert late == [("last", 5)]


async def test_who_is_late_may_wait_again(clock, late):
    deadlines = Deadlines(clock, lambda waits: (late.append(clock.monotonic()), deadlines.add(waits[0], 2)))
    deadlines.add("patient", 2)

    await clock.advance(7)

    assert late == [2, 4, 6]


async def test_what_came_while_the_program_stood_still_is_read_before_anybody_is_late(clock, deadlines, late):
    deadlines.add("answered", 5)
    deadlines.add("never answered", 5)
    clock._now = 40
    await clock.settle()
    deadlines.remove("answered", 5)
    deadlines.add("later", 0.5)

    await clock.advance(5)

    assert late == [("later", 40.5), ("never answered", 40 + CATCH_UP)]


async def test_who_is_found_a_little_late_has_a_little_more_and_nobody_before_who_came_first(
    clock, deadlines, late
):
    deadlines.add("one", 5)
    clock._now = 5.05
    await clock.settle()
    deadlines.add("two", 0.1)
    clock._now += 0.12
    await clock.settle()

    await clock.advance(5)

    assert late == [("one", pytest.approx(5.55)), ("two", pytest.approx(5.55))]


async def test_who_waits_is_late_in_the_end_however_often_the_program_stands_still(clock, deadlines, late):
    deadlines.add("never answered", 5)
    for now in (40, 80):
        clock._now = now
        await clock.settle()

    assert late == [("never answered", 80)]


async def test_removing_who_was_late_is_a_no_op(clock, deadlines, late):
    deadlines.add("one", 1)
    await clock.advance(1)

    deadlines.remove("one", 1)

    assert late == [("one", 1)]


async def test_closed_it_leaves_no_timer(clock, deadlines, late):
    deadlines.add("one", 1)

    deadlines.close()
    await clock.advance(5)

    assert late == []


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50), st.booleans()), max_size=300))
def test_each_is_late_once_and_in_time_unless_it_was_removed(plan):
    async def tried():
        clock = VirtualClock()
        late, due = [], {}
        deadlines = Deadlines(clock, lambda waits: late.extend((wait, clock.monotonic()) for wait in waits))
        for wait, (at, within, removed) in enumerate(sorted(plan)):
            await clock.advance(at - clock.monotonic())
            deadlines.add(wait, within)
            if removed:
                deadlines.remove(wait, within)
            else:
                due[wait] = at + within
        await clock.advance(1000)

        assert dict(late) == due
        assert len(late) == len(due)

    asyncio.run(tried())


async def test_thousands_that_may_take_each_another_time_are_looked_through_seldom(clock, late):
    looks = []
    deadlines = Deadlines(clock, lambda waits: (looks.append(1), late.extend(waits)))
    for number in range(2000):
        deadlines.add(number, 5 + number * 1e-4)

    await clock.advance(6)

    assert late == [*range(2000)]
    assert len(looks) < 100
