"""Topics of one program on several brokers: several memory brokers stand for them here."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from messaging import (
    App,
    Bus,
    ConfigurationError,
    ConnectionFailed,
    Endpoint,
    MessageTooLarge,
    Reject,
    RetryPolicy,
    Settings,
    Topic,
    UnsupportedCapability,
    connect,
    fixed,
)
from messaging.adapter import BrokerHealth, Capability
from messaging_memory import MemoryAdapter

orders = Topic("orders", str, key=lambda _: "k", ordered=True, partitions=2)
clicks = Topic("clicks.web", str)
prices = Endpoint("clicks.price", str, int)
ROUTES = {"clicks.*": "memory://events"}


def mixed(**settings) -> Bus:
    return connect(Settings(**{"url": "memory://jobs", "routes": ROUTES, **settings}))


def raising(error):
    async def call(*_):
        raise error

    return call


def lease(broker):
    assert isinstance(broker.adapter, MemoryAdapter)
    return broker.adapter._settings.lease


async def test_each_topic_lives_on_the_broker_of_its_route():
    async with mixed() as bus, connect("memory://events") as events, connect("memory://jobs") as jobs:
        await bus.declare(orders, groups=["billing"])
        await bus.declare(clicks, groups=["search"])
        await events.declare(clicks)
        await jobs.declare(orders)

        assert [group.topic for group in await events.groups()] == ["clicks.web"]
        assert [group.topic for group in await jobs.groups()] == ["orders"]
        assert {group.topic for group in await bus.groups()} == {"orders", "clicks.web"}


async def test_handlers_requests_and_dead_letters_work_on_either_broker():
    app = App("a", retry=RetryPolicy(1))
    seen = []

    @app.subscribe(orders)
    async def charge(order: str, bus: Bus) -> None:
        if order == "bad":
            raise Reject("bad")
        await bus.publish(clicks, order)

    @app.subscribe(clicks)
    async def index(click: str) -> None:
        if click == "poor":
            raise Reject("poor")
        seen.append(click)

    @app.respond(prices)
    async def price(ask: str) -> int:
        return len(ask)

    async with mixed() as bus:
        async with app.running(bus):
            for order in ("good", "bad", "poor"):
                await bus.publish(orders, order)
            assert await bus.request(prices, "four") == 4
            async with asyncio.timeout(5):
                while not (seen and await bus.dead_letters(clicks, group="a").count()):
                    await asyncio.sleep(0)

        assert seen == ["good"]
        assert [letter.reason async for letter in bus.dead_letters(orders, group="a").browse()] == ["bad"]
        assert [letter.reason async for letter in bus.dead_letters(clicks, group="a").browse()] == ["poor"]
        assert await bus.dead_letters(clicks, group="a").purge() == 1
        await bus.delete_group(clicks, "a")
        assert {group.topic for group in await bus.groups()} == {"orders", "clicks.price"}


@pytest.mark.parametrize(
    ("topic", "broker"),
    [
        ("orders", "memory://jobs"),
        ("clicks", "memory://jobs"),
        ("clicks.web", "memory://events"),
        ("clicks.web.eu", "memory://europe"),
        ("clicks.web.eu.x", "memory://single"),
    ],
)
def test_the_nearest_route_counts(topic, broker):
    bus = mixed(
        routes={**ROUTES, "clicks.web.eu*": "memory://europe", "clicks.web.eu.x": "memory://single"},
    )

    assert bus.broker(topic).name == broker
    assert bus.broker(Topic(topic)).name == broker


def test_a_route_names_a_broker_with_options_of_its_own():
    bus = mixed(
        routes={"clicks.*": "events"},
        broker={"memory": {"lease": 7}, "events": {"url": "memory://events", "lease": 9}},
    )

    assert bus.broker("clicks.web").name == "events"
    assert lease(bus.broker("clicks.web")) == 9
    assert lease(bus.broker("orders")) == 7


def test_routes_to_one_broker_share_its_connection():
    bus = mixed(routes={"a": "memory://events", "b.*": "memory://events", "c": "memory://jobs"})

    assert bus.broker("a") is bus.broker("b.c")
    assert bus.broker("c") is bus.broker("orders")


def test_a_scheme_in_capitals_is_the_same_broker():
    bus = mixed(routes={"a": "memory://events", "b": "MEMORY://events", "c": "Memory://jobs"})

    assert bus.broker("a") is bus.broker("b")
    assert bus.broker("c") is bus.broker("orders")


def test_a_namespace_holds_on_every_broker_unless_its_url_names_one():
    bus = mixed(
        url="memory://jobs?namespace=staging", routes={"a": "memory://x", "b": "memory://x?namespace=b"}
    )

    assert bus.broker("orders").namespace == "staging"
    assert bus.broker("a").namespace == "staging"
    assert bus.broker("b").namespace == "b"


def test_a_namespace_in_the_section_of_a_broker_is_that_of_the_bus_and_a_url_counts_more():
    def namespace(url="memory://", **settings):
        bus = mixed(url=url, routes={}, broker={"memory": {"namespace": "staging"}}, **settings)
        assert bus.namespace == bus.broker("orders").namespace
        return bus.namespace

    assert namespace() == "staging"
    assert namespace(namespace="common") == "staging"
    assert namespace("memory://?namespace=prod") == "prod"


@pytest.mark.parametrize("wrong", ["a b", 5])
def test_a_namespace_that_is_none_is_refused_in_the_section_of_a_broker(wrong):
    with pytest.raises(ConfigurationError, match="namespace"):
        mixed(broker={"memory": {"namespace": wrong}})


async def test_environments_that_their_brokers_sections_keep_apart_share_a_store(clock):
    handled = []
    app = App("billing", idempotent=True)

    @app.subscribe(Topic("invoices", str))
    async def pay(invoice: str, bus: Bus) -> None:
        handled.append((bus.namespace, invoice))

    def environment(name):
        sections = {"memory": {"namespace": name}}
        return connect(Settings(url="memory://one", store="memory://kept", broker=sections), clock=clock)

    async with (
        environment("staging") as staging,
        environment("prod") as prod,
        app.running(staging),
        app.running(prod),
    ):
        for bus in (staging, prod):
            await bus.publish("invoices", "i1", id="i1")
            await clock.settle()

    assert handled == [("staging", "i1"), ("prod", "i1")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"routes": {"clicks": "kafak"}, "broker": {"kafka": {"url": "memory://k"}}}, "did you mean kafka"),
        ({"routes": {"clicks": "kafka"}}, r"set broker\.kafka\.url"),
        ({"routes": {"clicks": "kafka"}, "broker": {"kafka": {"acks": 1}}}, r"set broker\.kafka\.url"),
        ({"routes": {"clicks": "nosuch://host"}}, "no adapter for the URL scheme 'nosuch'"),
    ],
)
def test_a_route_to_nowhere_raises_before_anything_is_opened(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        mixed(**settings)


async def test_a_broker_that_is_not_there_is_named_and_the_others_are_closed():
    bus = mixed()
    closed = []
    bus.adapter.close = _noting(bus.adapter.close, closed)
    bus.broker(clicks).adapter.open = raising(ConnectionFailed("no answer from events"))

    with pytest.raises(ConnectionFailed, match="events"):
        async with bus:
            pass

    assert closed == ["closed"]


async def test_a_broker_that_never_answers_is_named():
    bus = mixed(connect_timeout=0.01)

    async def never() -> None:
        await asyncio.Event().wait()

    bus.broker(clicks).adapter.open = never

    with pytest.raises(ConnectionFailed, match=r"memory://events did not answer within 0\.01 s"):
        async with bus:
            pass


async def test_what_a_broker_cannot_do_is_told_with_its_name(monkeypatch):
    app = App("a")

    @app.subscribe(orders)
    async def charge(order: str) -> None: ...

    @app.subscribe(clicks, start=datetime(2026, 1, 1, tzinfo=UTC), retry=RetryPolicy(3, fixed(60)))
    async def index(click: str) -> None: ...

    async with mixed() as bus:
        events = bus.broker(clicks).adapter
        none = Capability("unsupported", "keeps none; start at latest")
        can = replace(events.capabilities, history=none, max_delay=30)
        events.__class__ = type("PoorAdapter", (MemoryAdapter,), {"capabilities": can})

        with pytest.raises(UnsupportedCapability) as raised:
            async with app.running(bus):
                pass
        with pytest.raises(UnsupportedCapability, match="asks memory://events for history"):
            async with bus.consume(clicks, group="a", start="earliest"):
                pass

    assert "clicks.web/a asks memory://events for history: keeps none" in str(raised.value)
    assert "clicks.web/a may retry after 60 s; memory at memory://events can wait 30 s" in str(raised.value)
    assert "orders/a" not in str(raised.value)


async def test_the_bounds_are_those_of_the_topics_broker():
    async with mixed(broker={"memory": {"max_message_bytes": 2000}}) as bus:
        with pytest.raises(MessageTooLarge, match="the broker takes 2000"):
            await bus.publish(clicks, "x" * 2000)


async def test_health_names_the_broker_that_is_gone():
    app = App("a")

    @app.subscribe(orders)
    async def charge(order: str) -> None: ...

    @app.subscribe(clicks)
    async def index(click: str) -> None: ...

    async with mixed() as bus, app.running(bus):

        async def gone() -> BrokerHealth:
            return BrokerHealth(connected=False, error="connection refused")

        bus.broker(clicks).adapter.health = gone

        health = await bus.health()

    assert (health.status, health.connected) == ("red", False)
    assert [(one.name, one.connected) for one in health.brokers] == [
        ("memory://jobs", True),
        ("memory://events", False),
    ]
    assert health.last_error == "memory://events: connection refused"
    assert {one.topic: one.broker for one in health.subscriptions} == {
        "orders": "memory://jobs",
        "clicks.web": "memory://events",
    }


async def test_closing_closes_every_broker_whatever_one_of_them_does():
    closed = []
    bus = mixed()
    close = bus.adapter.close
    bus.adapter.close = raising(RuntimeError("broken"))
    events = bus.broker(clicks).adapter
    events.close = _noting(events.close, closed)

    with pytest.raises(RuntimeError, match="broken"):
        async with bus:
            pass

    assert closed == ["closed"]
    await close()


def test_a_bus_shows_its_brokers_without_their_secrets():
    bus = mixed(routes={"clicks": "redis://me:s3cret@host"})

    assert "redis://host" in repr(bus)
    assert "s3cret" not in repr(bus) + repr(bus.settings) + repr(bus.broker("clicks"))


def _noting(close, closed):
    async def noted():
        closed.append("closed")
        await close()

    return noted


@pytest.mark.parametrize(("section", "hint"), [("rabitmq", "did you mean rabbitmq"), ("zzz", "known are")])
def test_options_of_a_broker_that_there_is_not_are_refused(section, hint):
    with pytest.raises(ConfigurationError, match=f"broker.{section}.*{hint}"):
        connect(Settings(url="memory://", broker={section: {"history": 1}}))


def test_options_of_brokers_that_this_program_does_not_use_may_stay():
    connect(Settings(url="memory://", broker={"redis": {"history": 1}, "rabbitmq": {}, "kafka": {}}))
