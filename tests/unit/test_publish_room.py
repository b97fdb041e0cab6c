import asyncio

import pytest

from messaging import exchanges
from messaging import publish as module
from messaging.errors import PublishError, PublishUncertain
from messaging.message import Receipt
from tests.unit.publishing import Desk, one_at_a_time
from tests.unit.scripted import outgoing


@pytest.fixture
async def desk():
    return Desk()


async def test_what_is_outstanding_is_bounded_and_callers_wait_for_room(desk, monkeypatch):
    monkeypatch.setattr(module, "OUTSTANDING", 2)
    first = await desk.started(outgoing("1"), outgoing("2"))
    patient = await desk.started(outgoing("3"))
    hasty = await desk.started(outgoing("4"), within=1)
    assert desk.batches == [["1", "2"]]

    await desk.clock.advance(1)
    (result,) = await hasty
    assert type(result) is PublishError
    assert "Message 4 for orders was not sent: 1 s were over before its turn came" in str(result)
    desk.gate.set()
    await asyncio.gather(first, patient)

    assert desk.batches == [["1", "2"], ["3"]]
    assert desk.nothing_is_left()


async def test_who_waits_for_room_is_not_overtaken(desk, monkeypatch):
    """The first caller publishes again in the very moment in which its confirmation makes room."""
    monkeypatch.setattr(module, "OUTSTANDING", 1)

    async def twice():
        await desk.publisher.publish([outgoing("1", "a", ordered=True)], None)
        await desk.publisher.publish([outgoing("3", "a", ordered=True)], None)

    first = asyncio.create_task(twice())
    await desk.clock.settle()
    second = await desk.started(outgoing("2", "a", ordered=True))
    desk.gate.set()
    await asyncio.gather(first, second)

    assert desk.batches == [["1"], ["2"], ["3"]]
    assert desk.nothing_is_left()


async def test_room_is_for_the_next_when_who_waits_for_it_is_cancelled(desk, monkeypatch):
    monkeypatch.setattr(module, "OUTSTANDING", 1)
    first = await desk.started(outgoing("1"))
    second, third = await desk.started(outgoing("2")), await desk.started(outgoing("3"))

    second.cancel()
    await desk.clock.settle()
    desk.gate.set()
    await asyncio.gather(first, third)

    assert desk.batches == [["1"], ["3"]]
    assert desk.nothing_is_left()


async def test_close_sends_what_waits_for_room(desk, monkeypatch):
    monkeypatch.setattr(module, "OUTSTANDING", 1)
    calls = [await desk.started(outgoing(str(number))) for number in range(3)]

    closing = asyncio.create_task(desk.publisher.close(10))
    await desk.clock.settle()
    desk.gate.set()
    await closing

    assert [await call for call in calls] == [[Receipt(str(number))] for number in range(3)]
    assert desk.nothing_is_left()


async def test_the_wait_for_room_is_part_of_the_timeout(desk, monkeypatch):
    monkeypatch.setattr(module, "OUTSTANDING", 1)
    first = await desk.started(outgoing("1"), within=6)
    second = await desk.started(outgoing("2"), within=10)

    await desk.clock.advance(6)
    await first
    assert not second.done()
    await desk.clock.advance(4)

    assert isinstance((await second)[0], PublishUncertain)


async def test_a_bounded_call_that_found_room_keeps_the_rest_of_its_time(desk, monkeypatch):
    monkeypatch.setattr(module, "OUTSTANDING", 1)
    one_at_a_time(monkeypatch)
    first = await desk.started(outgoing("1"), within=None)
    second = await desk.started(outgoing("2"), within=10)

    await desk.clock.advance(4)
    desk.gate.set()
    await desk.clock.settle()

    assert await first == [Receipt("1")]
    assert await second == [Receipt("2")]


async def test_an_exchange_that_ends_makes_room_at_once_for_the_next(desk):
    """All exchanges are confirmed in one tick, and the first caller publishes again before the tick is over."""

    async def twice():
        await desk.publisher.publish([outgoing("first")], None)
        return await desk.publisher.publish([outgoing("again")], 1)

    call = asyncio.create_task(twice())
    await desk.clock.settle()
    for number in range(exchanges.EXCHANGES - 1):
        await desk.started(outgoing(str(number)))

    desk.gate.set()
    await desk.clock.advance(1)

    assert await call == [Receipt("again")]
