"""Somebody deletes on the broker what a program reads or writes: it is made anew, and the program goes on (25)."""

import asyncio

import pytest

from messaging import App, ConfigurationError, TopicNotFound
from messaging.backoff import LEFT_ALONE
from messaging.errors import ConnectionFailed, TopologyLost
from tests.unit.topics import jobs

LOST = TopologyLost("the queue of jobs/a was deleted")


def consumer_of(bus, group):
    return next(one for one in bus.dispatchers if one.group == group)._dispatchers[1]._consumer


def lose(bus, group, error: Exception = LOST):
    """The next `receive` of the group's member raises this."""

    async def receive(*_):
        raise error

    consumer_of(bus, group).receive = receive


@pytest.fixture
def handled():
    return []


@pytest.fixture
def app(handled):
    app = App("a")
    app.subscribe(jobs)(handled.append)
    return app


async def test_a_member_goes_on_with_what_is_made_anew_and_health_tells_of_it(bus, clock, app, handled):
    async with app.running(bus):
        await clock.settle()
        lose(bus, "a")
        await clock.advance(1.5)
        meanwhile = await bus.health()
        await clock.advance(LEFT_ALONE + 1)
        await bus.publish(jobs, "new")
        await clock.advance(1)
        after = await bus.health()

    assert (meanwhile.status, meanwhile.last_error) == ("red", str(LOST))
    assert (after.status, handled) == ("green", ["new"])


async def test_it_is_declared_again_until_the_broker_can_be_reached(bus, clock, app, handled, monkeypatch):
    declare, refused = (
        bus.broker(jobs).adapter.declare,
        [ConnectionFailed("refused"), ConnectionFailed("again")],
    )

    async def unreachable_at_first(topology):
        if refused:
            raise refused.pop(0)
        await declare(topology)

    async with app.running(bus):
        await clock.settle()
        monkeypatch.setattr(bus.broker(jobs).adapter, "declare", unreachable_at_first)
        lose(bus, "a")
        await clock.advance(LEFT_ALONE + 5)
        await bus.publish(jobs, "new")
        await clock.advance(1)

    assert (refused, handled) == ([], ["new"])


async def test_where_nothing_may_be_declared_the_program_ends_with_the_error(bus, clock, handled):
    await bus.declare(jobs, groups=["a"])
    app = App("a")
    app.subscribe(jobs, topology="verify")(handled.append)

    with pytest.raises(TopologyLost, match="was deleted"):
        async with app.running(bus):
            await clock.settle()
            lose(bus, "a")
            await clock.advance(LEFT_ALONE + 5)
            await asyncio.Event().wait()


async def test_a_member_that_waits_for_it_can_be_stopped(bus, clock, app):
    async with app.running(bus):
        await clock.settle()
        lose(bus, "a")
        await clock.advance(1.5)

    assert bus.dispatchers == []


async def test_an_app_that_runs_again_after_a_fatal_error_is_well(bus, clock, app):
    with pytest.raises(ConfigurationError):
        async with app.running(bus):
            await clock.settle()
            lose(bus, "a", ConfigurationError("the group was deleted"))
            await clock.advance(2)
            await asyncio.Event().wait()
    ended = await bus.health()

    async with app.running(bus):
        await clock.advance(2)
        again = await bus.health()

    assert (ended.status, again.status) == ("red", "green")


async def test_a_topic_that_is_gone_is_left_alone_first_and_declared_by_a_later_publish(
    bus, clock, monkeypatch
):
    adapter = bus.broker(jobs).adapter
    await bus.publish(jobs, "first")
    declared = []
    declare = adapter.declare

    async def remember(topology):
        declared.append(topology)
        await declare(topology)

    async def gone(messages):
        return [TopicNotFound("jobs is gone") for _ in messages]

    monkeypatch.setattr(adapter, "declare", remember)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "publish", gone)
        for _ in range(2):
            with pytest.raises(TopicNotFound):
                await bus.publish(jobs, "lost")
            assert declared == []
            await clock.advance(LEFT_ALONE / 2)
    await bus.publish(jobs, "kept")

    assert [one.name for one in declared[0].topics] == ["jobs"]


async def test_who_saw_that_a_topic_was_gone_declares_it_before_it_publishes_whoever_made_it_anew(
    bus, clock, monkeypatch
):
    adapter = bus.broker(jobs).adapter
    await bus.publish(jobs, "first")
    done = []
    declare, publish = adapter.declare, adapter.publish

    async def declared(topology):
        done.append("declared")
        await declare(topology)

    async def gone(messages):
        return [TopicNotFound("jobs is gone") for _ in messages]

    async def published(messages):
        done.append("published")
        return await publish(messages)

    monkeypatch.setattr(adapter, "declare", declared)
    for _ in range(2):  # the second loss is left alone as the first
        monkeypatch.setattr(adapter, "publish", gone)
        with pytest.raises(TopicNotFound, match="jobs is gone"):
            await bus.publish(jobs, "lost")
        monkeypatch.setattr(adapter, "publish", published)
        with pytest.raises(TopicNotFound, match="left alone for 2.0 s more"):
            await bus.publish(jobs, "early")
        await clock.advance(LEFT_ALONE)
        await bus.publish(jobs, "kept")
        await clock.advance(3600)

    assert done == ["declared", "published"] * 2
