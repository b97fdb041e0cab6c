"""What a broker takes in requests of bounded size goes in full ones, side by side."""

import asyncio
from collections import Counter
from itertools import chain

import pytest

from messaging import publish as module
from messaging.message import Receipt
from tests.unit.publishing import Desk
from tests.unit.scripted import outgoing

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


async def test_callers_who_publish_again_as_soon_as_they_are_confirmed_fill_every_request():
    desk = Desk(shares=6, per_request=TEN)
    doors = []

    async def answer(messages):
        doors.append(asyncio.Event())
        await doors[-1].wait()
        return [Receipt(one.message.id) for one in messages]

    async def again_and_again(name):
        while len(doors) < 200:
            await desk.publisher.publish([outgoing(name)], None)

    desk.adapter.on_publish = answer
    callers = [asyncio.create_task(again_and_again(str(name))) for name in range(64)]
    while len(doors) < 200:  # answered one by one, and not in their order
        await desk.clock.settle()
        under_way = [door for door in doors if not door.is_set()]
        assert len(under_way) == 6
        under_way[len(doors) % 6].set()
    assert set(sizes(desk)) == {TEN}

    while desk.publisher._exchanges:
        for door in doors:
            door.set()
        await desk.clock.settle()
    await asyncio.gather(*callers)
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


async def test_requests_are_for_one_topic_each_and_a_rare_one_goes_with_the_next(desk):
    calls = [desk.start(outgoing(f"a{number}", topic="a")) for number in range(40)]
    calls.append(desk.start(outgoing("rare", topic="b")))
    await desk.clock.settle()

    topics = [Counter(id[0] for id in batch) for batch in desk.batches]
    assert {"a": TEN, "r": 1} in topics
    assert all(topic["a"] % TEN == 0 for topic in topics)

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


async def test_of_many_topics_all_go_side_by_side(desk):
    calls = [desk.start(outgoing(str(number), topic=f"topic-{number}")) for number in range(64)]
    await desk.clock.settle()

    assert sum(sizes(desk)) == 64

    desk.gate.set()
    await asyncio.gather(*calls)
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

    for number in range(2 * module.EXCHANGES):
        calls.append(await desk.started(outgoing(f"more-{number}", "k", ordered=True, partition=8 + number)))
        await desk.clock.advance(module.FAR)
    assert desk.under_way == module.EXCHANGES

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


async def test_a_broker_whose_requests_are_larger_than_an_exchange_gets_whole_ones():
    desk = Desk(per_request=10 * module.BATCH)
    desk.gate.set()

    await desk.start(*(outgoing(str(number)) for number in range(2 * module.BATCH)))

    assert sizes(desk) == [2 * module.BATCH]


async def test_topics_whose_callers_have_gone_do_not_pile_up(desk, monkeypatch):
    monkeypatch.setattr(module, "PURGE_AFTER", 10)
    first = [desk.start(outgoing(str(number))) for number in range(100)]
    await desk.clock.settle()

    for number in range(50):
        await desk.started(outgoing(f"x{number}", topic=f"topic-{number}"), within=0.001)
        await desk.clock.advance(0.001)

    assert len(desk.publisher._free) <= 11
    desk.gate.set()
    await asyncio.gather(*first)
    assert desk.nothing_is_left()


async def test_close_leaves_no_topic_waiting(desk):
    calls = [desk.start(outgoing(str(number), topic=f"topic-{number % 2}")) for number in range(127)]
    await desk.clock.settle()
    closing = asyncio.create_task(desk.publisher.close(10))

    await desk.clock.advance(10)
    await closing

    texts = [str(call.result()[0]) for call in calls]
    assert sum("the bus was closed" in text for text in texts) == 127 - sum(sizes(desk)) > 0
    assert desk.publisher._outstanding == 0
