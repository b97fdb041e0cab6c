import asyncio
from dataclasses import replace

import pytest

from messaging import Settings, UnsupportedCapability
from messaging.adapter import Capability, Untraceable
from messaging.bus import Bus
from messaging.errors import Closed, PublishError, PublishUncertain
from messaging.message import Receipt
from messaging.testing import VirtualClock
from messaging.unconfirmed import ONCE_FOR
from messaging_memory import MemoryAdapter
from tests.unit.scripted import outgoing
from tests.unit.test_publish import Desk


def once(id, key=None, **options):
    return replace(outgoing(id, key, **options), once=id)


@pytest.fixture
async def desk():
    desk = Desk()
    desk.gate.set()
    return desk


async def passed(desk, task, seconds):
    await desk.clock.advance(seconds)
    return task.done()


async def test_an_unknown_fate_is_tried_again_until_it_is_known(desk):
    desk.answers["1"] = PublishUncertain("lost")
    task = await desk.started(once("1"))
    assert not await passed(desk, task, 20)

    del desk.answers["1"]
    assert await passed(desk, task, ONCE_FOR)

    assert task.result() == [Receipt("1")]
    assert len(desk.batches) > 5
    assert desk.nothing_is_left()


async def test_a_known_failure_is_told_at_once(desk):
    desk.answers["1"] = PublishError("refused")

    (error,) = await desk.start(once("1"))

    assert (type(error), len(desk.batches)) == (PublishError, 1)


async def test_what_was_ever_uncertain_is_never_said_to_be_absent(desk):
    desk.answers["1"] = PublishUncertain("lost")
    task = await desk.started(once("1"), within=10)
    desk.answers["1"] = PublishError("cannot connect: not sent")
    assert await passed(desk, task, 11)

    (error,) = task.result()

    assert isinstance(error, PublishUncertain)
    await desk.clock.advance(10)
    assert desk.nothing_is_left()


async def test_what_is_behind_it_in_an_ordered_partition_waits_with_it(desk):
    desk.answers["1"] = PublishUncertain("lost")
    desk.answers["2"] = PublishError("not sent: an earlier one failed")
    task = await desk.started(once("1", "k", ordered=True), once("2", "k", ordered=True))
    later = await desk.started(once("3", "k", ordered=True))

    desk.answers.clear()
    assert await passed(desk, task, 1)

    assert task.result() == [Receipt("1"), Receipt("2")]
    assert await later == [Receipt("3")]
    assert desk.batches[0] == desk.batches[-2] == ["1", "2"]
    assert desk.batches[-1] == ["3"]


async def test_successors_of_what_was_given_up_are_not_sent(desk):
    desk.answers["1"] = PublishUncertain("lost")
    first = await desk.started(once("1", "k", ordered=True), within=5)
    second = await desk.started(once("2", "k", ordered=True))
    other = await desk.started(once("3", "other", ordered=True))
    assert await passed(desk, first, 20)

    (error,) = await second

    assert "message 1, published before it with the same key, failed" in str(error)
    assert await other == [Receipt("3")]
    assert ["2"] not in desk.batches
    assert desk.nothing_is_left()


async def test_what_can_never_be_known_is_told_at_once_and_so_is_what_is_behind_it(desk):
    desk.answers["1"] = Untraceable("the broker has lost track")
    desk.answers["2"] = PublishError("not sent: an earlier one failed")
    desk.gate.clear()
    first = await desk.started(once("1", "k", ordered=True), once("2", "k", ordered=True))
    second = await desk.started(once("3", "k", ordered=True))
    desk.gate.set()

    (lost, behind), (later,) = await first, await second

    assert isinstance(lost, PublishUncertain)
    assert not isinstance(behind, PublishUncertain)
    assert "message 1, published before it with the same key, failed" in str(later)
    assert desk.batches == [["1", "2"]]
    assert desk.nothing_is_left()


async def test_no_broker_is_asked_after_it_may_have_forgotten(desk):
    desk.answers["1"] = PublishUncertain("lost")
    task = await desk.started(once("1"))

    assert await passed(desk, task, ONCE_FOR + 10)

    assert isinstance(task.result()[0], PublishUncertain)
    assert desk.nothing_is_left()


async def test_closing_tells_what_is_uncertain(desk):
    desk.answers["1"] = PublishUncertain("lost")
    task = await desk.started(once("1"))

    closing = asyncio.create_task(desk.publisher.close(1))
    await desk.clock.advance(10)
    await closing

    assert isinstance(task.result()[0], PublishUncertain)
    with pytest.raises(Closed):
        await desk.start(once("2"))


async def test_closing_during_an_attempt_says_of_nothing_in_it_that_it_was_not_sent(desk):
    desk.answers = {"1": PublishUncertain("lost"), "2": PublishError("not sent: an earlier one failed")}
    task = await desk.started(*(once(id, "a", ordered=True) for id in "12"))
    desk.gate.clear()
    await desk.clock.advance(10)
    assert desk.batches == [["1", "2"], ["1", "2"]]

    closing = asyncio.create_task(desk.publisher.close(1))
    await desk.clock.advance(2)
    await closing

    assert [type(one) for one in await task] == [PublishUncertain, PublishUncertain]


async def test_another_topic_goes_on_while_one_of_the_same_exchange_is_sent_again(desk):
    desk.answers["1"] = PublishUncertain("lost")
    lost = desk.start(once("1", "a", ordered=True, topic="lost"))
    assert await desk.start(once("2", "a", ordered=True)) == [Receipt("2")]
    assert desk.batches == [["1", "2"]]

    assert await desk.start(once("3", "a", ordered=True)) == [Receipt("3")]

    assert not lost.done()
    behind = await desk.started(once("4", "a", ordered=True, topic="lost"))
    del desk.answers["1"]
    await desk.clock.advance(ONCE_FOR)
    assert await asyncio.gather(lost, behind) == [[Receipt("1")], [Receipt("4")]]
    assert desk.nothing_is_left()


async def test_a_broker_that_cannot_store_once_is_refused_at_open():
    class Unable(MemoryAdapter):
        @property
        def capabilities(self):
            return replace(super().capabilities, idempotent_publish=Capability("unsupported", "do without"))

    def unable(adapter):
        adapter.__class__ = Unable
        return adapter

    bus = Bus(Settings(url="memory://", idempotent_publish=True), clock=VirtualClock(), wrap=unable)
    with pytest.raises(UnsupportedCapability, match=r"memory:.*its topics once: do without"):
        await bus.__aenter__()
