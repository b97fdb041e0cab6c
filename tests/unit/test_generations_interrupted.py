"""A change of a topic that was interrupted: told, and ended by whoever changes it again."""

import asyncio

import pytest

from messaging import ConfigurationError, Settings, connect
from messaging.adapter import TopicSpec
from tests.unit.generations import change, collecting, interrupted, orders


async def test_health_tells_of_a_change_that_was_interrupted_until_it_is_ended(bus, clock):
    app, seen = collecting()

    async with app.running(bus):
        await interrupted(bus, clock, orders, partitions=3)
        await bus.publish(orders, "waits")
        await clock.advance(bus.settings.generation_grace)
        assert (await bus.health()).status == "green", "a change takes that long"

        await clock.advance(30)
        health = await bus.health()
        assert health.status == "yellow"
        assert health.last_error == (
            "orders/a does not read what is behind generation 1, which was not ended: if its change was interrupted, "
            "begin the same generation again"
        )

        await change(bus, clock, orders, partitions=3)
        await clock.advance(20)
        assert (await bus.health()).status == "green"
        assert seen == ["waits"]


@pytest.mark.parametrize(
    "later",
    [[{"partitions": 5}], [{"ordered": False}], [{"partitions": 3}], [{"partitions": 5}, {"partitions": 5}]],
    ids=["other partitions", "no order", "the same", "the next one twice"],
)
async def test_a_change_that_was_interrupted_is_ended_by_the_next_one(bus, clock, later):
    app, seen = collecting()

    async with app.running(bus):
        await bus.publish(orders, "first")
        await interrupted(bus, clock, orders, partitions=3)
        await clock.advance(20)
        await bus.publish(orders, "second")
        for again in later[1:]:
            await interrupted(bus, clock, orders, **again)
        await change(bus, clock, orders, **later[0])
        await clock.advance(20)
        await bus.publish(orders, "third")
        await clock.advance(20)

    assert sorted(seen) == ["first", "second", "third"]
    assert {info.lag for info in await bus.groups()} == {0}


def lose_record(bus):
    """As a Redis that is flushed: which generations there are, is on record no more."""
    bus.broker("orders").adapter._topology.topic(TopicSpec("orders")).successors.clear()


async def recorded(bus):
    return [one.generation for one in await bus.broker("orders").adapter.generations(TopicSpec("orders"))]


async def test_a_record_of_generations_that_is_lost_is_made_anew_and_what_was_confirmed_is_read(
    bus, clock, caplog
):
    app, seen = collecting()

    async with app.running(bus):
        await interrupted(bus, clock, orders, partitions=3)
        await clock.advance(20)
        await bus.publish(orders, "before")
        lose_record(bus)
        await bus.publish(orders, "unnoticed")
        await clock.advance(20)
        await bus.publish(orders, "after")
        assert await recorded(bus) == [1, 2]
        assert "has lost the record of the generations of topic orders" in caplog.text

        await clock.advance(30)
        assert (await bus.health()).status == "yellow", "the change was interrupted"
        await change(bus, clock, orders, partitions=3)
        await clock.advance(20)

    assert sorted(seen) == ["after", "before", "unnoticed"]


async def test_a_record_of_generations_that_is_lost_is_made_anew_only_where_that_is_allowed(clock):
    only_verified = Settings(url="memory://verified", topology="verify")
    async with (
        connect(Settings(url="memory://verified"), clock=clock) as bus,
        connect(only_verified, clock=clock) as another,
    ):
        await bus.declare(orders)
        await change(bus, clock, orders, partitions=3, grace=0)
        await another.publish(orders, "a")
        lose_record(bus)
        await clock.advance(20)

        await another.publish(orders, "b")

        assert await recorded(bus) == [1]


async def test_a_topic_that_somebody_has_begun_anew_is_followed(bus, clock, monkeypatch):
    await bus.declare(orders)
    await change(bus, clock, orders, partitions=3, grace=0)
    await bus.publish(orders, "a")
    lose_record(bus)

    async def refuse(topic):
        raise ConfigurationError("was begun by somebody else")

    monkeypatch.setattr(bus.broker("orders").adapter, "begin_generation", refuse)
    await clock.advance(20)
    await bus.publish(orders, "b")

    assert await recorded(bus) == [1]


async def test_who_wants_other_numbers_than_a_change_that_was_interrupted_declared_is_told_the_way_out(
    bus, clock, monkeypatch
):
    async def ends(topic):
        raise asyncio.CancelledError

    await bus.declare(orders, groups=["a"])
    with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
        patched.setattr(bus.adapter, "begin_generation", ends)
        await bus.begin_generation(orders, partitions=3)

    with pytest.raises(
        ConfigurationError, match="Generation 2 of topic orders was declared with other numbers.*partitions=3"
    ):
        await bus.begin_generation(orders, partitions=5)
    await change(bus, clock, orders, partitions=3)
    assert (await change(bus, clock, orders, partitions=5)).partitions == 5


async def test_a_topic_that_two_interrupted_changes_have_stopped_is_mended_by_the_same_again(bus, clock):
    app, seen = collecting()

    async with app.running(bus):
        await interrupted(bus, clock, orders, partitions=3)
        await interrupted(bus, clock, orders, partitions=5)
        await clock.advance(20)
        await bus.publish(orders, "waits")
        await clock.advance(60)
        stopped = list(seen)
        await change(bus, clock, orders, partitions=5)
        await clock.advance(20)

    assert (stopped, seen) == ([], ["waits"])
