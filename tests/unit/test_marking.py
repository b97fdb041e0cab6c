"""A suspect is marked before it runs alone: what becomes of it where the broker does not store the mark (3, 25)."""

import pytest

from messaging.adapter import Lease
from messaging.errors import AuthenticationFailed, ConnectionFailed, LeaseLost, MessagingError, TopicNotFound
from messaging.message import Release
from tests.unit.scripted import Bench, Work, later, raw, suspect


async def test_a_suspect_whose_marked_copy_is_with_the_broker_is_over_here():
    work = Work()
    bench = Bench(work)

    async def moved(delivery):
        return False

    bench.consumer.on_isolate = moved
    async with bench.running():
        await bench.put(suspect("s"), raw("1"))

        assert work.started == ["1"]
        assert bench.consumer.settled == []
        work.finish("1")


@pytest.mark.parametrize("error", [ConnectionFailed("cut"), MessagingError("a refusal that nobody knows")])
async def test_a_suspect_is_marked_again_until_the_broker_answers(caplog, error):
    work = Work()
    bench = Bench(work)
    answers = [error, error]

    async def fail_twice(delivery):
        if answers:
            raise answers.pop()
        return True

    bench.consumer.on_isolate = fail_twice
    async with bench.running():
        await bench.put(suspect("s"), raw("1"))
        assert work.started == []
        assert bench.health.last_error == str(error)
        await bench.clock.advance(1)
        assert work.started == ["s"]
        assert bench.health.last_error is None
        work.finish("s")
        await bench.clock.settle()
        assert bench.consumer.isolated == ["s", "s", "s"]
        work.finish("1")
    (told,) = [record for record in caplog.records if str(error) in record.getMessage()]
    assert told.message_id == "s"


async def test_a_suspect_whose_lease_ends_before_it_is_marked_is_lost():
    work = Work()
    bench = Bench(work)

    async def fail(delivery):
        raise MessagingError("a refusal that nobody knows")

    bench.consumer.on_isolate = fail
    async with bench.running():
        await bench.put(suspect("s", lease=Lease(5)), raw("1"))
        await bench.clock.advance(30)

        assert len(bench.consumer.isolated) > 1
        assert bench.counters.lost == 1
        assert work.started == ["1"]
        work.finish("1")


async def test_a_suspect_whose_lease_ends_while_it_is_marked_is_lost():
    work = Work()
    bench = Bench(work)

    async def slow(delivery):
        return await later(bench.clock, 10, True)

    bench.consumer.on_isolate = slow
    async with bench.running():
        await bench.put(suspect("s", lease=Lease(5)), raw("1"))
        await bench.clock.advance(10)

        assert bench.counters.lost == 1
        assert work.started == ["1"]
        work.finish("1")


async def test_what_is_known_to_last_ends_a_subscription_that_cannot_mark_its_suspect():
    work = Work()
    bench = Bench(work)

    async def refuse(delivery):
        raise AuthenticationFailed("no")

    bench.consumer.on_isolate = refuse
    with pytest.raises(AuthenticationFailed):
        async with bench.running():
            await bench.put(suspect("s"), raw("1"))
            assert bench.task.done()

    assert bench.consumer.isolated == ["s"]
    assert work.started == []


async def test_a_suspect_that_cannot_be_marked_goes_back_when_the_member_leaves():
    work = Work()
    bench = Bench(work)

    async def fail(delivery):
        raise ConnectionFailed("cut")

    bench.consumer.on_isolate = fail
    async with bench.running():
        await bench.put(suspect("s"))
        bench.dispatcher.stop()
        await bench.clock.advance(10)
    assert work.started == []
    assert bench.consumer.outcomes(Release) == ["s"]


@pytest.mark.parametrize("error", [LeaseLost("taken"), TopicNotFound("deleted")], ids=repr)
async def test_a_suspect_that_is_no_longer_ours_is_lost_and_the_others_go_on(error):
    work = Work()
    bench = Bench(work)

    async def refuse(delivery):
        raise error

    bench.consumer.on_isolate = refuse
    async with bench.running():
        await bench.put(suspect("s"), raw("1"))

        assert work.started == ["1"]
        assert bench.counters.lost == 1
        work.finish("1")
