"""One exchange that hangs, fails or is sent again holds up nothing else."""

import asyncio

import pytest

from messaging import exchanges as module
from messaging.errors import PublishError, PublishUncertain
from messaging.message import Receipt
from messaging.unconfirmed import ONCE_FOR
from tests.unit.publishing import Desk, one_at_a_time
from tests.unit.scripted import outgoing
from tests.unit.test_publish_once import once


@pytest.fixture
async def desk():
    return Desk()


async def test_what_gathers_behind_an_exchange_that_ends_by_an_error_is_sent(desk):
    three = await desk.started(outgoing("1"), outgoing("2"), outgoing("3"))
    waiting = await desk.started(outgoing("4"))
    assert desk.batches == [["1", "2", "3"]]

    desk.answers["1"] = asyncio.CancelledError()
    desk.gate.set()
    await desk.clock.settle()

    assert all(isinstance(one, PublishUncertain) for one in three.result())
    assert waiting.result() == [Receipt("4")]
    assert desk.nothing_is_left()


async def test_nothing_gathers_for_long_behind_an_exchange_that_hangs(desk):
    hanging = await desk.started(outgoing("1"), outgoing("2"), outgoing("3"))
    waiting = await desk.started(outgoing("4"))
    assert desk.batches == [["1", "2", "3"]]

    await desk.clock.advance(module.PATIENCE)
    assert desk.batches[1:] == [["4"]]

    desk.gate.set()
    await asyncio.gather(hanging, waiting)
    assert desk.nothing_is_left()
    assert desk.exchanges[0]._under_way == 0


async def test_partitions_that_hang_leave_room_to_another_topic(desk):
    for number in range(module.EXCHANGES):
        await desk.started(outgoing(str(number), "a", ordered=True, partition=number, topic="hangs"))
        await desk.clock.advance(module.PATIENCE)

    await desk.started(outgoing("well", "a", ordered=True))

    assert desk.batches[-1] == ["well"]


async def test_how_many_exchanges_hang_at_once_is_bounded(desk):
    for number in range(2 * (module.EXCHANGES + module.SLOW)):
        await desk.started(outgoing(str(number), "a", ordered=True, partition=number))
        await desk.clock.advance(module.PATIENCE)
    assert desk.under_way == module.EXCHANGES + module.SLOW

    desk.gate.set()
    await desk.clock.settle()
    assert desk.nothing_is_left()


async def test_an_exchange_that_is_cancelled_before_it_begins_stops_none_after_it(desk):
    desk.gate.set()
    lost = desk.start(outgoing("1"))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as some programs end
        task.cancel()
    await asyncio.wait((lost,))

    assert await desk.start(outgoing("2")) == [Receipt("2")]

    assert desk.nothing_is_left()


async def test_what_is_sent_again_leaves_its_room_to_others(desk, monkeypatch):
    one_at_a_time(monkeypatch)
    desk.answers["1"] = PublishUncertain("lost")
    desk.gate.set()
    lost = await desk.started(once("1"))

    assert await desk.start(outgoing("2")) == [Receipt("2")]
    assert not lost.done()

    del desk.answers["1"]
    await desk.clock.advance(ONCE_FOR)
    assert lost.result() == [Receipt("1")]
    assert desk.nothing_is_left()


async def test_no_more_is_sent_again_at_once_than_there_are_exchanges(desk):
    desk.gate.set()
    many = [once(str(number)) for number in range(3 * module.EXCHANGES)]
    desk.answers.update({one.message.id: PublishUncertain("lost") for one in many})
    calls = [await desk.started(one) for one in many]
    assert len(desk.batches) >= len(many)

    desk.answers.clear()
    desk.gate.clear()
    await desk.clock.advance(60)
    assert desk.under_way == module.EXCHANGES

    desk.gate.set()
    await desk.clock.advance(ONCE_FOR)
    assert all(isinstance(call.result()[0], Receipt) for call in calls)
    assert desk.nothing_is_left()


async def test_what_is_behind_a_failure_that_its_caller_does_not_know_of_is_not_sent(desk):
    desk.answers["1"] = PublishError("refused")

    async def answer(messages):
        if messages[0].partition == 1:
            return await desk.answer(messages)
        desk.clock.touch()
        return [desk.answers.get(one.message.id, Receipt(one.message.id)) for one in messages]

    desk.adapter.on_publish = answer
    hanging = await desk.started(outgoing("0", "b", ordered=True, partition=1))
    call = await desk.started(outgoing("1", "a", ordered=True), outgoing("2", "b", ordered=True, partition=1))
    assert not call.done()

    (behind,) = await desk.start(outgoing("3", "a", ordered=True))
    assert "message 1, published before it with the same key, failed: refused" in str(behind)

    desk.gate.set()
    assert await call == [desk.answers["1"], Receipt("2")]
    await hanging
    assert await desk.start(outgoing("4", "a", ordered=True)) == [Receipt("4")]
    assert desk.nothing_is_left()


async def test_calls_whose_time_ends_together_look_through_the_queues_once(desk, monkeypatch):
    first = await desk.started(outgoing("0", "k", ordered=True), within=10)
    calls = [
        desk.start(outgoing(str(number), f"k{number}", ordered=True), within=5) for number in range(1, 50)
    ]
    calls.append(desk.start(outgoing("50", "k1", ordered=True)))
    await desk.clock.settle()
    looked = []
    fail = desk.publisher._fail_successors
    monkeypatch.setattr(desk.publisher, "_fail_successors", lambda failed: (looked.append(1), fail(failed)))

    await desk.clock.advance(5)

    assert looked == [1]
    assert all("was not sent: 5 s were over" in str(call.result()[0]) for call in calls[:-1])
    assert "message 1, published before it with the same key, failed" in str(calls[-1].result()[0])
    desk.gate.set()
    assert await first == [Receipt("0")]
    assert desk.nothing_is_left()
