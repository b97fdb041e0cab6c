"""What is told and bounded while a topic has two generations; that nothing is lost or reordered, the suite shows."""

import asyncio
import contextlib
from datetime import timedelta

import pytest

from messaging import (
    Ack,
    App,
    ConfigurationError,
    Delivery,
    Reject,
    Settings,
    Topic,
    TopicNotFound,
    UnsupportedCapability,
    connect,
)
from messaging.adapter import Capability, Outgoing, TopicSpec, Topology
from messaging.errors import ConnectionFailed, MessagingError, TopologyLost
from messaging.generations import END
from messaging.message import Message
from messaging_memory import MemoryAdapter
from tests.unit.generations import change, collecting, orders

clicks = Topic("clicks", str, partitions=2)


@pytest.mark.parametrize("part", ["generations", "orders-1"])
async def test_a_part_that_another_part_of_the_program_cancels_ends_the_app_with_an_error(bus, clock, part):
    app, _ = collecting()

    async def run():
        async with app.running(bus):
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await clock.settle()
    (task,) = (one for one in asyncio.all_tasks() if one.get_name() == f"messaging-{part}")

    task.cancel()
    await clock.advance(10)

    with pytest.raises(
        MessagingError, match=f"messaging-{part} was cancelled by another part of this program"
    ):
        running.result()


async def test_never_more_handlers_run_than_asked_for_on_two_generations(bus, clock):
    app, running, most = App("a"), 0, 0

    @app.subscribe(clicks, concurrency=2)
    async def index(click: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with app.running(bus):
        await change(bus, clock, clicks, partitions=5)
        await clock.advance(20)
        old = TopicSpec("clicks", partitions=2)
        stragglers = [
            Message(id=str(n), topic="clicks", body=b'"x"', content_type="application/json")
            for n in range(50)
        ]
        await bus.adapter.publish([Outgoing(old, one, n % 2) for n, one in enumerate(stragglers)])
        await bus.publish_many(clicks, [str(n) for n in range(50)])
        await clock.advance(5)
        (health,) = (await bus.health()).subscriptions

    assert health.acked == 100
    assert most == 2


async def test_health_shows_the_subscription_once_with_all_its_generations(bus, clock):
    app = App("a")

    @app.subscribe(orders)
    async def charge(order: str) -> None:
        if order == "bad":
            raise Reject("bad")

    async with app.running(bus):
        first = await bus.health()
        await bus.publish(orders, "bad")
        await change(bus, clock, orders, partitions=5)
        await clock.advance(20)
        await bus.publish(orders, "bad")
        await clock.advance(1)
        health = await bus.health()

    assert [one.receiving for one in first.subscriptions] == [False]
    (one,) = health.subscriptions
    assert (one.receiving, one.rejected, one.dead_letters, one.lag) == (True, 2, 2, 0)
    assert health.status == "green"


async def test_a_groups_letters_of_both_generations_are_purged_and_deleted_with_it(bus, clock):
    app = App("a")

    @app.subscribe(orders)
    async def charge(order: str) -> None:
        raise Reject("no")

    async with app.running(bus):
        await bus.publish(orders, "x")
        await change(bus, clock, orders, partitions=5)
        await clock.advance(20)
        await bus.publish(orders, "y")
        await clock.advance(1)
    letters = bus.dead_letters(orders, group="a")

    assert [letter.message.body async for letter in letters.browse()] == [b'"x"', b'"y"']
    assert await letters.purge() == 2
    await bus.delete_group(orders, "a")
    assert await bus.groups() == []


async def test_an_end_mark_that_nobody_asked_for_is_a_message_like_any_other(bus, clock):
    app, seen = App("a"), []

    @app.subscribe(Topic("raw", bytes, ordered=True, partitions=1))
    async def take(body: bytes, delivery: Delivery) -> Ack:
        seen.append(delivery.message.type)
        return Ack()

    async with app.running(bus):
        raw = TopicSpec("raw", ordered=True, partitions=1)
        await bus.adapter.publish([Outgoing(raw, Message(id="1", topic="raw", body=b"", type=END), 0)])
        await clock.advance(1)

    assert seen == [END]


async def test_a_message_with_the_type_of_an_end_mark_is_handled_in_a_former_generation_too(bus, clock):
    app, seen = App("a"), []
    old = TopicSpec("orders", ordered=True, partitions=2)
    message = Message(id="1", topic="orders", body=b'"x"', content_type="application/json", type=END)

    @app.subscribe(orders)
    async def charge(order: str) -> None:
        seen.append(order)

    async with app.running(bus):
        changing = asyncio.create_task(bus.begin_generation(orders, partitions=3))
        await clock.advance(10)
        await bus.adapter.publish([Outgoing(old, message, 0)])
        await clock.advance(60)
        await changing

    assert seen == ["x"]


async def test_a_group_that_gives_order_up_reads_both_generations_at_once(bus, clock):
    app, seen = App("a"), []

    @app.subscribe(orders, ordered=False)
    async def take(order: str) -> None:
        seen.append(order)

    async with app.running(bus):
        await change(bus, clock, orders, partitions=5, grace=60)
        await bus.publish(orders, "new")
        await clock.advance(6)

    assert seen == ["new"]


async def test_a_topic_that_gave_order_up_and_keeps_it_again_is_read_on(bus, clock):
    app, seen = collecting()

    async with app.running(bus):
        await change(bus, clock, orders, ordered=False)
        await change(bus, clock, orders, ordered=True)
        await clock.advance(20)
        await bus.publish(orders, "third")
        await clock.advance(5)

    assert seen == ["third"]


async def test_what_cannot_be_changed_is_refused(bus, clock, monkeypatch):
    await bus.declare(orders)

    with pytest.raises(TopicNotFound, match="absent"):
        await bus.begin_generation("absent", partitions=3)
    for wrong in (0, 10_001):
        with pytest.raises(ConfigurationError, match=f"cannot have {wrong} partitions"):
            await bus.begin_generation(orders, partitions=wrong)
    poor = bus.capabilities.__class__(
        **{
            name: getattr(bus.capabilities, name)
            for name in bus.capabilities.__dataclass_fields__
            if name != "generations"
        }
    )
    assert poor.generations == Capability(
        "unsupported", "make a topic with another name, and move its publishers and groups there"
    )
    monkeypatch.setattr(MemoryAdapter, "capabilities", poor)
    with pytest.raises(UnsupportedCapability, match="another name"):
        await bus.begin_generation(orders, partitions=3)


@pytest.mark.parametrize("call", ["ended", "publish"])
async def test_a_late_group_goes_on_where_the_broker_was_away_when_it_looked(bus, clock, monkeypatch, call):
    app, seen = App("late"), []
    app.subscribe(orders)(seen.append)
    await bus.declare(orders, groups=["first"])
    await change(bus, clock, orders, partitions=5)
    await bus.publish(orders, "before")
    answer, refused = getattr(bus.adapter, call), [ConnectionFailed("refused")]

    async def away_at_first(given):
        if refused:
            raise refused.pop()
        return await answer(given)

    async with app.running(bus):
        await bus.publish(orders, "after")
        monkeypatch.setattr(bus.adapter, call, away_at_first)
        await clock.advance(60)

    assert (refused, seen) == ([], ["after"])


async def test_a_group_goes_on_where_its_end_marks_grew_too_old_before_it_came_to_them(bus, clock):
    brief = Topic("brief", str, key=lambda text: text, ordered=True, partitions=1, retention=300)
    app, slow, seen = App("a"), asyncio.Event(), []

    @app.subscribe(brief, concurrency=1, prefetch=1)
    async def charge(order: str) -> None:
        if order == "slow":
            await slow.wait()
        seen.append(order)

    async with app.running(bus):
        await bus.publish_many(brief, ["slow", "dropped"])
        await change(bus, clock, brief, partitions=5)
        await clock.advance(600)
        slow.set()
        await clock.advance(600)
        await bus.publish(brief, "new")
        await clock.advance(60)

    assert seen == ["slow", "new"]


async def test_a_group_goes_on_where_what_held_its_end_marks_was_deleted(bus, clock):
    app, slow, seen = App("a"), asyncio.Event(), []

    @app.subscribe(orders, concurrency=1, prefetch=1)
    async def charge(order: str) -> None:
        if order == "slow":
            await slow.wait()
        seen.append(order)

    async def gone(*_):
        raise TopologyLost("the queue of orders/a was deleted")

    async with app.running(bus):
        await bus.publish_many(orders, ["slow", "lost"])
        await change(bus, clock, orders, partitions=5)
        await clock.advance(60)
        await bus.publish(orders, "new")
        log = bus.adapter.native.topics["topic:orders"]
        log.groups["a"].cursors[:] = [partition.end for partition in log.partitions]
        bus.dispatchers[0]._dispatchers[1]._consumer.receive = gone
        slow.set()
        await clock.advance(60)

    assert seen[-1] == "new"


@pytest.mark.parametrize("grace", [float("nan"), float("inf"), -5, timedelta(seconds=-1)])
async def test_a_grace_that_cannot_be_waited_for_is_refused_before_anything_is_declared(bus, clock, grace):
    await bus.declare(orders)

    with pytest.raises(ConfigurationError, match="finite, and 0 or more"):
        await change(bus, clock, orders, partitions=3, grace=grace)

    assert len(await bus.adapter.generations(TopicSpec("orders"))) == 1


async def test_a_member_leaves_though_the_broker_loses_its_cancellation(bus, clock, monkeypatch):
    """As aiormq does, and `asyncio.wait_for` of Python 3.11, where an answer comes in the same moment."""
    app, asked = App("a"), asyncio.Event()
    look = MemoryAdapter.generations

    async def deaf(self, topic):
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await look(self, topic)

    @app.subscribe(orders)
    async def charge(order: str) -> None: ...

    async with asyncio.timeout(10), app.running(bus):
        monkeypatch.setattr(MemoryAdapter, "generations", deaf)
        while not asked.is_set():
            await clock.advance(1)


async def test_a_change_to_what_is_there_changes_nothing(bus):
    await bus.declare(orders)

    assert await bus.begin_generation(orders, partitions=2) == TopicSpec("orders", ordered=True, partitions=2)
    assert len(await bus.adapter.generations(TopicSpec("orders"))) == 1


async def test_a_topic_whose_publishes_hang_while_it_moves_keeps_no_other_waiting(bus, clock, monkeypatch):
    await bus.publish(orders, "a")
    await bus.publish(clicks, "a")
    publish, answered = bus.adapter.publish, asyncio.Event()

    async def hang(messages):
        if messages[0].topic.name == "orders":
            await answered.wait()
        return await publish(messages)

    monkeypatch.setattr(bus.adapter, "publish", hang)
    hanging = asyncio.create_task(bus.publish(orders, "b", timeout=300))
    await clock.settle()
    new = TopicSpec("orders", ordered=True, partitions=2, generation=2)
    await bus.adapter.declare(Topology([new]))
    await bus.adapter.begin_generation(new)
    await clock.advance(60)
    moving = asyncio.create_task(bus.publish(orders, "c", timeout=300))
    late = asyncio.create_task(bus.declare(orders, groups=["late"]))
    await clock.advance(1)

    other = asyncio.create_task(bus.publish(clicks, "b"))
    await clock.advance(1)
    done = [task.done() for task in (hanging, moving, late, other)]
    answered.set()
    await clock.advance(1)
    await asyncio.gather(hanging, moving, late, other)

    assert done == [False, False, False, True]
    assert {info.generation for info in await bus.adapter.groups() if info.group == "late"} == {1, 2}


@pytest.mark.parametrize("call", ["finished", "finish", "generations"])
async def test_health_and_the_log_tell_that_a_member_may_not_follow_a_change(
    clock, caplog, monkeypatch, call
):
    app, seen = collecting()
    url = Settings(url="memory://follow")

    async def denied(*given):
        raise ConfigurationError("this user may not")

    async with connect(url, clock=clock) as member, connect(url, clock=clock) as admin, app.running(member):
        with monkeypatch.context() as patched:
            patched.setattr(member.adapter, call, denied)
            await change(admin, clock, orders, partitions=3)
            await admin.publish(orders, "waits")
            await clock.advance(60)
            told = await member.health()
            assert seen == []
        await clock.advance(60)
        after = await member.health()

    assert told.status == "yellow"
    assert told.last_error == "orders/a does not follow changes of its topic: this user may not"
    assert caplog.text.count("this user may not") == 1
    assert (after.status, after.last_error, seen) == ("green", None, ["waits"])


async def test_health_tells_of_a_change_that_is_not_followed_when_that_lasts(bus, clock, monkeypatch):
    app, _ = collecting()

    async def away(*given):
        raise ConnectionFailed("refused for now")

    async with app.running(bus):
        await clock.advance(1)
        monkeypatch.setattr(bus.adapter, "generations", away)
        await clock.advance(10)
        first = await bus.health()
        await clock.advance(bus.settings.generation_grace)
        told = await bus.health()

    assert first.status == "green"
    assert (told.status, told.subscriptions[0].stuck) == (
        "yellow",
        "orders/a does not follow changes of its topic: refused for now",
    )
