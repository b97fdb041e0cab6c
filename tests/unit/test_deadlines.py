import pytest

from messaging.deadlines import Deadlines
from messaging.testing import VirtualClock


@pytest.fixture
async def clock():
    return VirtualClock()


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
