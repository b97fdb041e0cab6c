"""What a broker takes in requests of bounded size goes in full ones, side by side, and each topic by itself."""

import asyncio
import random
from itertools import chain

import pytest

from messaging import exchanges as module
from messaging import publish
from messaging.errors import PublishUncertain
from messaging.message import Receipt
from messaging.unconfirmed import ONCE_FOR
from tests.unit.publishing import Desk
from tests.unit.scripted import outgoing
from tests.unit.test_publish_once import once

TEN = 10


@pytest.fixture
async def desk():
    return Desk(shares=6, per_request=TEN)


def sizes(desk):
    return [len(batch) for batch in desk.batches]


async def test_many_callers_are_divided_into_full_requests_under_way_at_once(desk):
    calls = [desk.start(outgoing(str(number))) for number in range(64)]
    await desk.clock.settle()
    assert sizes(desk) == [TEN] * 6

    desk.gate.set()
    await asyncio.gather(*calls)
    assert sizes(desk) == [TEN] * 6 + [4]
    assert desk.nothing_is_left()


async def test_callers_who_publish_again_as_soon_as_they_are_confirmed_fill_every_request(desk):
    doors, most, numbers, dice = [], 0, iter(range(2000)), random.Random(1)

    async def answer(messages):
        doors.append(asyncio.Event())
        await doors[-1].wait()
        return [Receipt(one.message.id) for one in messages]

    async def again_and_again():
        for number in numbers:
            await desk.publisher.publish([outgoing(str(number))], None)

    desk.adapter.on_publish = answer
    callers = [asyncio.create_task(again_and_again()) for _ in range(64)]
    await desk.clock.settle()
    # Answered one by one, and not in their order.
    while under_way := [door for door in doors if not door.is_set()]:
        most = max(most, len(under_way))
        dice.choice(under_way).set()
        await desk.clock.settle()

    await asyncio.gather(*callers)
    assert sizes(desk) == [TEN] * 200
    assert most == 6
    assert desk.nothing_is_left()


async def test_callers_who_are_all_confirmed_at_once_fill_every_request(desk):
    async def again_and_again(name):
        for number in range(10):
            await desk.publisher.publish([outgoing(f"{name}-{number}")], None)

    callers = [asyncio.create_task(again_and_again(name)) for name in range(64)]
    for _ in range(10):
        await desk.clock.settle()
        desk.gate.set()
        desk.gate.clear()
    assert set(sizes(desk)) == {TEN}

    desk.gate.set()
    await asyncio.gather(*callers)
    assert desk.nothing_is_left()


async def test_what_would_not_fill_a_request_waits_for_more_callers(desk):
    first = asyncio.Event()

    async def answer(messages):
        await (first if len(desk.batches) == 1 else desk.gate).wait()
        return [Receipt(one.message.id) for one in messages]

    desk.adapter.on_publish = answer
    calls = [desk.start(outgoing(str(number))) for number in range(204)]
    await desk.clock.settle()
    assert sizes(desk) == [30] * 6

    first.set()
    await desk.clock.settle()
    assert sizes(desk) == [30] * 6 + [20]

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


@pytest.mark.parametrize("number", [12, 24, 32, 64, 1004])
async def test_all_of_one_large_publish_goes_at_once(desk, number):
    call = await desk.started(*(outgoing(str(one)) for one in range(number)))
    assert sum(sizes(desk)) == number
    assert len(desk.batches) <= 6

    desk.gate.set()
    assert await call == [Receipt(str(one)) for one in range(number)]
    assert desk.nothing_is_left()


async def test_the_end_of_a_large_publish_waits_with_what_others_publish(desk):
    large = desk.start(*(outgoing(str(number)) for number in range(12)))
    other = desk.start(outgoing("other"))
    await desk.clock.settle()
    assert sizes(desk) == [TEN]

    desk.gate.set()
    await asyncio.gather(large, other)
    assert sizes(desk) == [TEN, 3]


async def test_a_second_caller_does_not_wait_for_the_first(desk):
    calls = [await desk.started(outgoing("1")), await desk.started(outgoing("2"))]
    assert desk.batches == [["1"], ["2"]]

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


@pytest.mark.parametrize("number", [1, 12, 60, 300])
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_topic_whose_requests_hang_keeps_no_other_waiting(desk, number, ordered):
    async def answer(messages):
        if any(one.topic.name == "slow" for one in messages):
            await desk.gate.wait()
        return [Receipt(one.message.id) for one in messages]

    desk.adapter.on_publish = answer
    slow = [desk.start(outgoing(str(one), topic="slow")) for one in range(number)]
    await desk.clock.settle()
    await desk.clock.advance(module.FAR)
    other = await desk.started(outgoing("o", "k" if ordered else None, ordered=ordered, topic="other"))

    assert other.done()
    assert not any(one.done() for one in slow)
    desk.gate.set()
    await asyncio.gather(*slow)
    assert desk.nothing_is_left()


async def test_what_one_topic_has_outstanding_makes_no_request_of_another_larger(desk):
    much = await desk.started(*(outgoing(f"m{number}", topic="much") for number in range(1000)))
    calls = [desk.start(outgoing(str(number))) for number in range(64)]
    await desk.clock.settle()
    assert sizes(desk)[6:] == [TEN] * 6

    desk.gate.set()
    await asyncio.gather(much, *calls)
    assert desk.nothing_is_left()


async def test_a_topic_that_hangs_has_no_more_requests_under_way_than_its_share(desk):
    calls = []
    for number in range(20):
        calls.append(await desk.started(outgoing(str(number))))
        await desk.clock.advance(module.FAR)
    assert desk.under_way == 6

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


async def test_a_topic_with_few_messages_needs_no_room_of_the_others(desk, monkeypatch):
    monkeypatch.setattr(publish, "OUTSTANDING", 2)
    monkeypatch.setattr(publish, "OF_A_TOPIC", 1)
    calls = [desk.start(outgoing(str(number), topic=f"topic-{number // 2}")) for number in range(6)]
    ordered = desk.start(outgoing("o", "k", ordered=True))
    await desk.clock.settle()
    assert desk.batches == [["0", "1"], ["2"], ["4"]]

    desk.gate.set()
    await asyncio.gather(*calls, ordered)
    assert sorted(desk.batches[3:]) == [["3"], ["5"], ["o"]]
    assert desk.nothing_is_left()


async def test_what_is_sent_again_leaves_its_room_to_others(desk):
    many = [once(str(number)) for number in range(6)]
    desk.answers.update({one.message.id: PublishUncertain("lost") for one in many})
    desk.gate.set()
    lost = [await desk.started(one) for one in many]

    assert await desk.start(outgoing("other")) == [Receipt("other")]
    assert not any(call.done() for call in lost)

    desk.answers.clear()
    await desk.clock.advance(ONCE_FOR)
    assert all(isinstance(call.result()[0], Receipt) for call in lost)
    assert desk.nothing_is_left()


async def test_what_is_free_does_not_keep_what_is_ordered_waiting_with_large_requests():
    desk, stop = Desk(shares=6, per_request=64), asyncio.Event()

    async def answer(messages):
        await asyncio.sleep(0)
        return [Receipt(one.message.id) for one in messages]

    async def again_and_again(name):
        while not stop.is_set():
            await desk.publisher.publish([outgoing(name)], None)

    desk.adapter.on_publish = answer
    callers = [asyncio.create_task(again_and_again(str(name))) for name in range(300)]
    await asyncio.sleep(0)
    ordered = desk.start(outgoing("o", "k", ordered=True))
    while len(desk.batches) < 30 and not ordered.done():
        await asyncio.sleep(0)
    assert ordered.done()

    stop.set()
    await asyncio.gather(*callers)
    assert desk.nothing_is_left()


async def test_abandoned_messages_do_not_pile_up_behind_a_topic_that_hangs(desk, monkeypatch):
    monkeypatch.setattr(publish, "PURGE_AFTER", 10)
    first = [desk.start(outgoing(str(number))) for number in range(60)]
    await desk.clock.settle()

    for number in range(50):
        await desk.started(outgoing(f"late-{number}"), within=0.001)
        await desk.clock.advance(0.001)

    assert desk.waiting <= 11
    desk.gate.set()
    await asyncio.gather(*first)
    assert sizes(desk) == [TEN] * 6
    assert desk.nothing_is_left()


async def test_fewer_than_a_full_request_wait_for_those_under_way_but_not_for_one_that_hangs(desk):
    first = [desk.start(outgoing(str(number))) for number in range(TEN)]
    await desk.clock.settle()
    few = [desk.start(outgoing(f"few-{number}")) for number in range(4)]
    await desk.clock.advance(module.PATIENCE)
    assert sizes(desk) == [TEN]

    await desk.clock.advance(module.FAR)
    assert sizes(desk) == [TEN, 4]

    desk.gate.set()
    await asyncio.gather(*first, *few)
    assert desk.nothing_is_left()


async def test_a_large_publish_is_divided_into_few_exchanges_of_whole_requests(desk):
    call = await desk.started(*(outgoing(str(number)) for number in range(1000)))
    assert sizes(desk) == [170] * 5 + [150]

    desk.gate.set()
    assert await call == [Receipt(str(number)) for number in range(1000)]
    assert list(chain.from_iterable(desk.batches)) == [str(number) for number in range(1000)]


async def test_lanes_of_ordered_topics_are_not_divided_into_requests(desk):
    calls = [desk.start(outgoing(str(n), f"k{n}", ordered=True, partition=n % 8)) for n in range(64)]
    await desk.clock.settle()
    assert sizes(desk) == [64]

    for number in range(2 * (module.EXCHANGES + module.SLOW)):
        calls.append(await desk.started(outgoing(f"more-{number}", "k", ordered=True, partition=8 + number)))
        await desk.clock.advance(module.FAR)
    assert desk.under_way == module.EXCHANGES + module.SLOW

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


async def test_a_broker_whose_requests_are_larger_than_an_exchange_gets_whole_ones():
    desk = Desk(per_request=10 * module.BATCH)
    desk.gate.set()

    await desk.start(*(outgoing(str(number)) for number in range(2 * module.BATCH)))

    assert sizes(desk) == [2 * module.BATCH]


async def test_close_leaves_no_topic_waiting(desk):
    calls = [desk.start(outgoing(str(number), topic=f"topic-{number % 2}")) for number in range(127)]
    await desk.clock.settle()
    closing = asyncio.create_task(desk.publisher.close(10))

    await desk.clock.advance(10)
    await closing

    texts = [str(call.result()[0]) for call in calls]
    assert sum("the bus was closed" in text for text in texts) == 127 - sum(sizes(desk)) > 0
    assert desk.publisher._outstanding == 0
