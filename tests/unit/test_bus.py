import asyncio
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest

from messaging import (
    App,
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    NoGroup,
    PublishError,
    PublishManyError,
    Receipt,
    RequestTimeout,
    Settings,
    Topic,
    connect,
)
from messaging_memory import MemoryAdapter
from tests.unit.topics import bodies, jobs, orders, prices

# connect


def test_memory_is_never_a_silent_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MESSAGING_URL", raising=False)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(
        ConfigurationError, match="No broker was named: give connect.. a URL or set MESSAGING_URL"
    ):
        connect()


def test_the_environment_names_the_broker(monkeypatch):
    monkeypatch.setenv("MESSAGING_URL", "memory://elsewhere")

    assert repr(connect()) == "Bus('memory://elsewhere', new)"


def test_settings_made_by_hand_are_taken_as_they_are(monkeypatch):
    monkeypatch.setenv("MESSAGING_URL", "memory://elsewhere")

    assert connect(Settings(url="memory://here", source="shop")).source == "shop"


def test_the_namespace_of_the_url_goes_before_that_of_the_code():
    assert connect("memory://?namespace=staging", namespace="test").namespace == "staging"
    assert connect("memory://", namespace="test").namespace == "test"
    assert connect("memory://").namespace is None


def test_a_bus_shows_no_credential():
    assert "hunter2" not in repr(connect("redis://user:hunter2@localhost"))


def test_each_bus_is_a_member_of_its_own():
    assert connect("memory://").member != connect("memory://").member


# lifecycle


async def test_a_bus_is_used_inside_its_with(clock):
    bus = connect("memory://", clock=clock)
    calls: list[Any] = [
        lambda: bus.publish(jobs, "x"),
        lambda: bus.publish_many(jobs, ["x"]),
        lambda: bus.request(prices, "x"),
        lambda: bus.declare(jobs),
        lambda: bus.groups(),
        lambda: bus.delete_group(jobs, "audit"),
    ]
    for state in ("new", "closed"):
        for call in calls:
            with pytest.raises(Closed, match=f"{state}. is not open: use it inside `async with bus:`"):
                await call()
        for call in (lambda: bus.consume(jobs, group="a"), lambda: bus.dead_letters(jobs, group="a")):
            with pytest.raises(Closed):
                call()
        if state == "new":
            async with bus:
                pass


async def test_a_bus_is_opened_once(bus):
    with pytest.raises(Closed, match="was opened before"):
        async with bus:
            pass
    await bus.publish(jobs, "x")


async def test_a_bus_belongs_to_one_event_loop(bus):
    raised = []

    def elsewhere():
        for use in (lambda: asyncio.run(bus.publish(jobs, "x")), bus.check_open):
            with pytest.raises(Closed, match="belongs to another event loop") as error:
                use()
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)

    assert len(raised) == 2


@pytest.mark.parametrize("error", [AuthenticationFailed("wrong password"), ConnectionFailed("nobody there")])
async def test_a_bus_that_cannot_be_opened_says_why_and_is_closed(clock, monkeypatch, error):
    closed = []

    async def fail(self):
        raise error

    async def close(self):
        closed.append(self)

    monkeypatch.setattr(MemoryAdapter, "open", fail)
    monkeypatch.setattr(MemoryAdapter, "close", close)
    bus = connect("memory://", clock=clock)

    with pytest.raises(type(error)) as raised:
        async with bus:
            pytest.fail("it is not open")

    assert raised.value is error
    assert closed == [bus.adapter]
    with pytest.raises(Closed):
        await bus.publish(jobs, "x")


async def test_a_broker_that_does_not_answer_is_given_up_by_name(clock, monkeypatch):
    async def hang(self):
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(MemoryAdapter, "open", hang)
    bus = connect(Settings(url="memory://far", connect_timeout=7), clock=clock)
    opening = asyncio.create_task(bus.__aenter__())
    await clock.advance(6.9)
    assert not opening.done()

    await clock.advance(0.1)

    with pytest.raises(ConnectionFailed, match="memory://far did not answer within 7 s"):
        await opening


async def test_a_store_that_does_not_answer_is_given_up_by_name(clock, monkeypatch):
    bus = connect(Settings(url="memory://", store="memory://", connect_timeout=7), clock=clock)

    async def hang():
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(bus.store, "open", hang)
    opening = asyncio.create_task(bus.__aenter__())
    await clock.advance(7)

    with pytest.raises(ConnectionFailed, match="the store at memory:// did not answer within 7 s"):
        await opening


async def test_a_cancelled_opening_closes_what_it_opened(clock, monkeypatch):
    closed = []

    async def hang(self):
        await asyncio.get_running_loop().create_future()

    async def close(self):
        closed.append(self)

    monkeypatch.setattr(MemoryAdapter, "open", hang)
    monkeypatch.setattr(MemoryAdapter, "close", close)
    opening = asyncio.create_task(connect("memory://", clock=clock).__aenter__())
    await clock.settle()

    opening.cancel()
    await asyncio.wait((opening,))

    assert opening.cancelled()
    assert len(closed) == 1


async def test_the_store_is_opened_and_closed_with_the_bus(clock, monkeypatch):
    seen = []
    bus = connect("memory://", store="memory://", clock=clock)
    store = bus.store
    assert store is not None

    async def noted(what):
        seen.append(what)

    monkeypatch.setattr(store, "open", lambda: noted("open"))
    monkeypatch.setattr(store, "close", lambda: noted("close"))
    async with bus:
        assert seen == ["open"]

    assert seen == ["open", "close"]


async def test_what_fails_while_closing_keeps_nothing_else_open(clock, monkeypatch):
    closed = []
    bus = connect("memory://", store="memory://", clock=clock)

    async def fail():
        raise OSError("the store is gone")

    async def close():
        closed.append("adapter")

    monkeypatch.setattr(bus.store, "close", fail)
    monkeypatch.setattr(bus.adapter, "close", close)
    with pytest.raises(OSError, match="the store is gone"):
        async with bus:
            pass

    assert closed == ["adapter"]


# publish


async def test_the_order_of_the_calls_holds_at_a_topics_first_use(bus, clock, monkeypatch):
    """The first caller publishes again while the second still waits to hear that the topic is declared."""
    await bus.declare(jobs, groups=["audit"])
    declare, published = bus.adapter.declare, []

    async def slow(topology):
        await asyncio.sleep(0)
        await declare(topology)

    publish = bus.adapter.publish

    async def noting(messages):
        published.extend(one.message.body for one in messages)
        return await publish(messages)

    monkeypatch.setattr(bus.adapter, "declare", slow)
    monkeypatch.setattr(bus.adapter, "publish", noting)
    declaring = asyncio.create_task(bus.declare(orders, groups=["audit"]))
    first = asyncio.create_task(bus.publish(orders, "a1"))
    second = asyncio.create_task(bus.publish(orders, "a2"))
    while not declaring.done():
        await asyncio.sleep(0)

    await asyncio.gather(bus.publish(orders, "a3"), first, second)

    assert published == [b'"a1"', b'"a2"', b'"a3"']


async def test_a_receipt_says_where_the_message_is(bus):
    receipt = await bus.publish(orders, "a1", id="mine")

    assert isinstance(receipt, Receipt)
    assert receipt.id == "mine"
    assert (await bus.publish(orders, "a2")).partition == receipt.partition


async def test_a_batch_keeps_its_order_and_has_a_receipt_for_each(bus, clock):
    await bus.declare(orders, groups=["audit"])

    receipts = await bus.publish_many(orders, (f"a{number}" for number in range(50)))

    assert len({receipt.id for receipt in receipts}) == 50
    assert await bodies(bus, clock, orders) == [f'"a{number}"'.encode() for number in range(50)]


async def test_one_invalid_payload_fails_the_whole_batch_before_anything_is_sent(bus, clock):
    await bus.declare(jobs, groups=["audit"])

    with pytest.raises(InvalidMessage):
        await bus.publish_many(jobs, ["good", 3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]

    assert await bodies(bus, clock) == []


async def test_a_batch_that_fails_in_part_has_a_result_for_each(bus, monkeypatch):
    publish = bus.adapter.publish

    async def refuse_bad(messages):
        results = list(await publish(messages))
        return [
            PublishError("the disk is full") if b"bad" in one.message.body else result
            for one, result in zip(messages, results, strict=True)
        ]

    monkeypatch.setattr(bus.adapter, "publish", refuse_bad)

    with pytest.raises(PublishManyError) as raised:
        await bus.publish_many(jobs, ["a", "bad", "b"])

    kinds = [type(result).__name__ for result in raised.value.results]
    assert kinds[1] == "PublishError" and kinds.count("PublishError") == 1


async def test_a_topics_name_publishes_what_has_no_type(bus, clock):
    await bus.declare(jobs, groups=["audit"])

    await bus.publish("jobs", {"any": ["thing"]})

    assert await bodies(bus, clock, Topic("jobs")) == [b'{"any":["thing"]}']


@pytest.mark.parametrize("topic", [None, 3, prices])
async def test_what_is_no_topic_is_refused_by_name(bus, topic):
    with pytest.raises(InvalidMessage, match="is no topic to publish to"):
        await bus.publish(topic, "x")


async def test_a_message_that_nobody_gets_is_told_once_or_raised(bus, caplog):
    with caplog.at_level(logging.WARNING, "messaging"):
        await bus.publish(jobs, "x")
        await bus.publish(jobs, "x")
        with pytest.raises(NoGroup):
            await bus.publish(jobs, "x", mandatory=True)

    assert [record.message.split(":")[0] for record in caplog.records] == ["Topic jobs has no group"]


async def test_what_is_too_large_is_refused_before_it_is_sent(bus, clock, monkeypatch):
    await bus.declare(jobs, groups=["audit"])
    capabilities = replace(bus.capabilities, max_message_bytes=2000)
    monkeypatch.setattr(MemoryAdapter, "capabilities", capabilities)

    with pytest.raises(MessageTooLarge, match="the broker takes 2000"):
        await bus.publish(jobs, "x" * 2000)

    assert await bodies(bus, clock) == []


async def test_a_publish_that_takes_too_long_is_given_up(bus, clock, monkeypatch):
    gate = asyncio.Event()

    async def hang(messages):
        await gate.wait()
        return [PublishError("late") for _ in messages]

    monkeypatch.setattr(bus.adapter, "publish", hang)
    hasty = asyncio.create_task(bus.publish(jobs, "x", timeout=2))
    patient = asyncio.create_task(bus.publish(jobs, "x"))
    await clock.advance(2)
    assert isinstance(hasty.exception(), PublishError)
    assert not patient.done()

    await clock.advance(28)

    assert isinstance(patient.exception(), PublishError)
    assert "30 s" in str(patient.exception())
    gate.set()


# request


async def test_a_request_has_the_settings_time_unless_it_says_another(clock):
    app = App("shop")

    @app.respond(prices)
    async def quote(product: str) -> int:
        await asyncio.get_running_loop().create_future()
        return 1

    settings = Settings(url="memory://", request_timeout=7, drain_timeout=0)
    async with connect(settings, clock=clock) as bus, app.running(bus):
        for timeout, seconds in ((None, 7), (2, 2)):
            asking = asyncio.create_task(bus.request(prices, "p1", timeout=timeout))
            await clock.advance(seconds - 0.1)
            assert not asking.done()
            await clock.advance(0.1)
            with pytest.raises(RequestTimeout):
                await asking


async def test_a_request_that_nobody_could_answer_fails_at_once(bus):
    with pytest.raises(NoGroup):
        await bus.request(prices, "p1")


async def test_a_bus_whose_close_is_cancelled_as_it_begins_is_closed():
    bus, opened, leave = connect("memory://"), asyncio.Event(), asyncio.Event()

    async def use():
        async with bus:
            opened.set()
            await leave.wait()

    using = asyncio.create_task(use())
    await opened.wait()
    adapter = bus.adapter
    leave.set()
    await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using

    with pytest.raises(Closed):
        await adapter.groups()


@pytest.mark.parametrize("payloads", ["abc", b"abc", {"a": 1}, 3])
async def test_one_payload_is_not_taken_for_several(payloads):
    async with connect("memory://") as opened:
        bus: Any = opened
        with pytest.raises(InvalidMessage, match=f"several payloads.*not one {type(payloads).__name__}"):
            await bus.publish_many(Topic("letters"), payloads)


async def test_what_a_call_does_not_take_is_refused_by_what_it_takes():
    async with connect("memory://") as opened:
        bus: Any = opened
        with pytest.raises(ConfigurationError, match=r"groups=.*names.*\['billing'\]"):
            await bus.declare(jobs, groups="billing")
        with pytest.raises(ConfigurationError, match="an App, a Topic or an Endpoint, not 'jobs'"):
            await bus.declare("jobs")
        with pytest.raises(ConfigurationError, match="request.* takes an Endpoint.*not 'prices'"):
            await bus.request("prices", "x")
        with pytest.raises(InvalidMessage, match="headers is a list; it must be a mapping"):
            await bus.publish(jobs, "x", headers=[("a", "b")])
        with pytest.raises(ConfigurationError, match="The grace is 'PT10S'"):
            await bus.begin_generation(jobs, grace="PT10S")

        assert await bus.groups() == []
