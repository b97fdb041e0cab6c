import asyncio

import pytest

from messaging import (
    App,
    Closed,
    ConfigurationError,
    InvalidMessage,
    PublishError,
    Reject,
    connect,
)
from messaging_memory import MemoryAdapter
from tests.unit.topics import bodies, jobs, orders, prices

# groups and topology


async def test_what_is_declared_gets_what_is_published_from_then_on(bus, clock):
    await bus.publish(jobs, "before")

    await bus.declare(jobs, groups=["audit", "search"])
    await bus.publish(jobs, "after")

    assert sorted(group.group for group in await bus.groups()) == ["audit", "search"]
    assert await bodies(bus, clock) == [b'"after"']


async def test_an_app_and_an_endpoint_can_be_declared_before_they_run(bus):
    app = App("billing")
    app.subscribe(jobs)(lambda payload: None)

    await bus.declare(app)
    await bus.declare(prices, groups=["responders"])

    assert sorted((group.topic, group.group) for group in await bus.groups()) == [
        ("jobs", "billing"),
        ("prices", "responders"),
    ]


async def test_a_deleted_group_is_gone_with_all_it_kept_and_may_begin_anew(bus, clock):
    await bus.declare(jobs, groups=["audit"])
    await bus.publish(jobs, "old")

    await bus.delete_group(jobs, "audit")
    await bus.delete_group(jobs, "audit")
    assert await bus.groups() == []
    await bus.declare(jobs, groups=["audit"])
    await bus.publish(jobs, "new")

    assert await bodies(bus, clock) == [b'"new"']


async def test_namespaces_share_a_broker_and_nothing_else(clock):
    async with (
        connect("memory://shared?namespace=a", clock=clock) as first,
        connect("memory://shared?namespace=b", clock=clock) as second,
    ):
        await first.declare(jobs, groups=["audit"])
        await second.declare(jobs, groups=["audit"])
        await first.publish(jobs, "x")

        assert await bodies(second, clock) == []
        assert await bodies(first, clock) == [b'"x"']


async def test_the_first_use_of_a_topic_is_a_part_of_the_calls_time(bus, clock, monkeypatch):
    async def silent(self, topology):
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryAdapter, "declare", silent)
    calls = [asyncio.create_task(bus.publish(jobs, "x", timeout=1)) for _ in range(3)]
    await clock.advance(1)
    await clock.settle()

    for call in calls:
        assert call.done()
        with pytest.raises(PublishError, match="jobs.*1 s"):
            call.result()


@pytest.mark.parametrize("value", ["x", float("nan"), float("inf"), 0, -1, 10**400])
async def test_a_timeout_that_is_none_is_refused(bus, value):
    with pytest.raises(InvalidMessage, match="timeout"):
        await bus.publish(jobs, "x", timeout=value)
    with pytest.raises(InvalidMessage, match="timeout"):
        await bus.request(prices, "x", timeout=value)


@pytest.mark.parametrize("name", ["count", "redrive", "purge", "browse"])
async def test_dead_letters_are_refused_after_the_close_and_on_another_loop(clock, name):
    async with connect("memory://", clock=clock) as bus:
        await bus.declare(jobs, groups=["billing"])
        letters = bus.dead_letters(jobs, group="billing")

        async def use():
            call = getattr(letters, name)()
            return [one async for one in call] if name == "browse" else await call

        await use()
        with pytest.raises(Closed, match="loop"):
            await asyncio.to_thread(asyncio.run, use())
    with pytest.raises(Closed):
        await use()


async def test_consuming_by_hand_is_refused_after_the_close_and_on_another_loop(clock):
    async with connect("memory://", clock=clock) as bus:
        pull = bus.consume(jobs, group="billing")
        with pytest.raises(Closed, match="loop"):
            await asyncio.to_thread(asyncio.run, pull.__aenter__())
        with pytest.raises(Closed, match="loop"):
            await asyncio.to_thread(asyncio.run, bus.health())
    with pytest.raises(Closed):
        await pull.__aenter__()


async def test_dead_letters_keep_the_order_that_this_bus_has_declared(bus, clock):
    app = App("billing")

    @app.subscribe(orders, ordered=False)
    async def handle(order: str):
        raise Reject("no")

    async with app.running(bus):
        await bus.publish(orders, "x")
        await clock.settle()
        assert await bus.dead_letters(orders, group="billing").count() == 1

    other = bus.dead_letters(orders, group="billing", ordered=True)
    with pytest.raises(ConfigurationError, match="billing"):
        await other.count()
