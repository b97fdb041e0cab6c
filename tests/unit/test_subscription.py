import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from messaging import (
    Ack,
    App,
    ConfigurationError,
    Delivery,
    Endpoint,
    Message,
    Reject,
    RemoteError,
    Retry,
    RetryPolicy,
    Settings,
    Topic,
    UnsupportedCapability,
    connect,
    exponential,
    fixed,
)
from messaging.adapter import Capability
from messaging.testing import VirtualClock
from messaging_memory import MemoryAdapter

orders = Topic("orders", str, key=lambda payload: payload[0], ordered=True)
jobs = Topic("jobs", str)
prices = Endpoint("prices", str, int)


async def handle(payload: str) -> None: ...


async def answer(payload: str) -> int:
    return len(payload)


def bus_with(**settings: Any):
    return connect(Settings(url="memory://", **settings), clock=VirtualClock())


def plan_of(app, bus):
    (made,) = app.plans(bus)
    return made


def planned(topic, bus=None, app: App | None = None, **options):
    app = app or App("billing")
    app.subscribe(topic, **options)(handle)
    return plan_of(app, bus or bus_with())


# what is decided where


async def test_without_a_word_the_defaults_of_the_documentation_hold():
    made = planned(jobs)

    assert (made.concurrency, made.prefetch, made.timeout) == (16, 32, None)
    assert made.retry == RetryPolicy(3)
    assert (made.idempotent, made.on_expired, made.on_exhausted) == (False, "drop", "dead_letter")
    assert (made.group.name, made.group.start, made.group.ordered) == ("billing", "latest", False)
    assert made.topology is None


async def test_an_apps_word_is_for_all_its_subscriptions():
    app = App(
        "billing",
        retry=RetryPolicy(7),
        concurrency=2,
        prefetch=3,
        timeout=timedelta(seconds=5),
        idempotent=True,
    )
    made = planned(jobs, bus_with(store="memory://"), app)

    assert (made.retry.attempts, made.concurrency, made.prefetch, made.timeout) == (7, 2, 3, 5.0)
    assert made.idempotent is True


async def test_a_subscriptions_word_goes_before_its_apps():
    app = App("billing", retry=RetryPolicy(7), concurrency=2, prefetch=3, timeout=5, idempotent=True)
    made = planned(
        jobs,
        None,
        app,
        retry=RetryPolicy(1),
        concurrency=4,
        prefetch=5,
        timeout=6,
        idempotent=False,
        group="mine",
    )

    assert (made.retry.attempts, made.concurrency, made.prefetch, made.timeout) == (1, 4, 5, 6.0)
    assert made.idempotent is False
    assert made.group.name == "mine"


async def test_settings_for_all_go_before_the_apps_word_but_not_before_a_subscriptions():
    bus = bus_with(app={"concurrency": 10, "timeout": 9, "retry": {"attempts": 9}})
    app = App("billing", retry=RetryPolicy(7), concurrency=2, timeout=5)

    made = planned(jobs, bus, app)
    own = planned(Topic("own", str), bus, concurrency=3, timeout=4, retry=RetryPolicy(2))

    assert (made.concurrency, made.timeout, made.retry.attempts) == (10, 9.0, 9)
    assert (own.concurrency, own.timeout, own.retry.attempts) == (3, 4.0, 2)


async def test_settings_of_the_subscription_go_before_everything():
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    bus = bus_with(
        store="memory://",
        app={"concurrency": 10},
        subscriptions={
            "orders/billing": {
                "concurrency": 1,
                "prefetch": 2,
                "timeout": 3,
                "ordered": False,
                "idempotent": True,
                "start": begin,
                "on_expired": "dead_letter",
                "on_exhausted": "dead_letter",
                "native": "legacy",
                "retry": {"attempts": 5, "delay": 2, "multiplier": 3, "maximum": 50, "jitter": 0.5},
            }
        },
    )
    made = planned(
        orders,
        bus,
        concurrency=4,
        prefetch=9,
        timeout=9,
        ordered=True,
        start="earliest",
        on_exhausted="hold_key",
    )

    assert (made.concurrency, made.prefetch, made.timeout) == (1, 2, 3.0)
    assert (made.group.ordered, made.group.start, made.group.native) == (False, begin, "legacy")
    assert (made.idempotent, made.on_expired, made.on_exhausted) == (True, "dead_letter", "dead_letter")
    delay = made.retry.delay
    assert (made.retry.attempts, delay.initial, delay.multiplier, delay.maximum, delay.jitter) == (
        5,
        2,
        3,
        50,
        0.5,
    )


async def test_settings_change_a_policys_numbers_and_nothing_else():
    policy = RetryPolicy(4, exponential(1, maximum=60), retry_on=(OSError,), reject_on=(ValueError,))
    bus = bus_with(subscriptions={"jobs/billing": {"retry": {"delay": 100}}})

    made = planned(jobs, bus, retry=policy).retry

    assert (made.attempts, made.retry_on, made.reject_on) == (4, policy.retry_on, policy.reject_on)
    assert (made.delay.initial, made.delay.maximum) == (100.0, 100.0)


async def test_settings_turn_idempotency_on_and_off_and_leave_the_key_to_the_code():
    def by_order(message: Message) -> str:
        return "order"

    def idempotency(said, setting):
        bus = bus_with(store="memory://", subscriptions={"jobs/billing": {"idempotent": setting}})
        return planned(jobs, bus, idempotent=said).idempotent

    assert idempotency(by_order, True) is by_order
    assert idempotency(by_order, False) is False
    assert idempotency(None, True) is True
    assert idempotency(True, False) is False


async def test_prefetch_is_twice_the_concurrency_unless_it_is_said():
    assert planned(jobs, concurrency=50).prefetch == 100
    assert planned(Topic("others", str), concurrency=50, prefetch=10).prefetch == 10


@pytest.mark.parametrize("name", ["concurrency", "prefetch"])
async def test_a_number_below_one_is_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=f"The {name} of jobs/billing is 0; it must be 1 or more"):
        planned(jobs, None, None, **{name: 0})


@pytest.mark.parametrize(("name", "value"), [("concurrency", 2.5), ("prefetch", "3")])
async def test_what_is_no_whole_number_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"The {name} of jobs/billing is {value!r}"):
        planned(jobs, None, None, **{name: value})


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), timedelta(0), "PT10S", [1]])
async def test_a_timeout_that_is_no_time_is_refused_by_name(timeout):
    """Of 0 seconds, every handler that waits for something would fail."""
    with pytest.raises(ConfigurationError, match="The timeout of jobs/billing is"):
        planned(jobs, None, None, timeout=timeout)


async def test_a_responder_runs_once_whatever_its_app_says():
    app = App("billing", retry=RetryPolicy(7))
    app.respond(prices)(answer)

    made = plan_of(app, bus_with())

    assert made.retry.attempts == 1
    assert made.group.name == "responders"


# what cannot be had


LACKING = Capability("unsupported", "it has none")


def able(bus, monkeypatch, **capabilities):
    """A broker that differs from memory in these."""
    monkeypatch.setattr(MemoryAdapter, "capabilities", replace(bus.capabilities, **capabilities))


async def starting(app, bus):
    async with bus, app.running(bus):
        pass


@pytest.mark.parametrize(
    ("name", "shown", "topic", "options"),
    [
        ("groups", "groups", jobs, {}),
        ("order", "order", orders, {}),
        ("history", "history", jobs, {"start": "earliest"}),
        ("delayed_retry", "delayed retry", jobs, {}),
    ],
)
async def test_what_a_subscription_needs_and_the_broker_lacks_is_told_at_start(
    name, shown, topic, options, monkeypatch
):
    bus, app = bus_with(), App("billing")
    app.subscribe(topic, **options)(handle)
    able(bus, monkeypatch, **{name: LACKING})

    with pytest.raises(
        UnsupportedCapability, match=f"{topic.name}/billing asks memory:// for {shown}: it has none"
    ):
        await starting(app, bus)


@pytest.mark.parametrize(
    ("name", "topic", "options"),
    [
        ("order", jobs, {}),
        ("order", orders, {"ordered": False}),
        ("history", jobs, {}),
        ("requests", jobs, {}),
        ("delayed_retry", jobs, {"retry": RetryPolicy(1)}),
        ("delayed_retry", orders, {}),
    ],
)
async def test_what_a_subscription_does_not_need_the_broker_may_lack(name, topic, options, monkeypatch):
    bus, app = bus_with(), App("billing")
    app.subscribe(topic, **options)(handle)
    able(bus, monkeypatch, **{name: LACKING})

    await starting(app, bus)


async def test_a_responder_needs_requests(monkeypatch):
    bus, app = bus_with(), App("billing")
    app.respond(prices)(answer)
    able(bus, monkeypatch, requests=LACKING)

    with pytest.raises(UnsupportedCapability, match="prices/responders asks memory:// for requests"):
        await starting(app, bus)


async def test_all_that_is_missing_is_told_together(monkeypatch):
    bus, app = bus_with(), App("billing", retry=RetryPolicy(2, fixed(30)))
    app.subscribe(orders, start="earliest")(handle)
    app.subscribe(jobs, idempotent=True, on_exhausted="hold_key")(handle)
    able(bus, monkeypatch, history=LACKING, max_hold=20.0, max_delay=25.0)

    with pytest.raises(UnsupportedCapability) as raised:
        await starting(app, bus)

    assert str(raised.value) == (
        "orders/billing asks memory:// for history: it has none; "
        "orders/billing may retry after 30 s; memory at memory:// can wait 20 s there: lower the policy's maximum; "
        "jobs/billing may retry after 30 s; memory at memory:// can wait 25 s there: lower the policy's maximum; "
        "jobs/billing holds keys, which only an ordered group has; "
        'jobs/billing is idempotent, which needs a store that all members share: connect(store="redis://...") '
        "or MESSAGING_STORE"
    )


async def test_a_policy_that_never_waits_so_long_is_no_reason(monkeypatch):
    """Three attempts wait twice: 1 s and 2 s, whatever the maximum."""
    bus, app = bus_with(), App("billing", retry=RetryPolicy(3, exponential(1, maximum=3600, jitter=0)))
    app.subscribe(orders)(handle)
    able(bus, monkeypatch, max_hold=3.0)

    await starting(app, bus)


async def test_a_policy_whose_delays_together_are_too_long_for_a_hold_is_refused(monkeypatch):
    bus, app = bus_with(), App("billing", retry=RetryPolicy(4, fixed(2)))
    app.subscribe(orders)(handle)
    app.subscribe(jobs)(handle)
    able(bus, monkeypatch, max_hold=5.0, max_delay=5.0)

    with pytest.raises(UnsupportedCapability) as raised:
        await starting(app, bus)

    assert str(raised.value) == (
        "orders/billing may retry for 6 s in all; memory at memory:// can hold a message of an ordered group for 5 s: "
        "lower the policy's delays or attempts"
    )


async def test_a_key_that_is_held_may_wait_for_the_policys_maximum(monkeypatch):
    bus, app = bus_with(), App("billing", retry=RetryPolicy(3, exponential(1, maximum=3600, jitter=0)))
    app.subscribe(orders, on_exhausted="hold_key")(handle)
    able(bus, monkeypatch, max_hold=60.0)

    with pytest.raises(UnsupportedCapability, match="may retry after 3600 s"):
        await starting(app, bus)


async def test_a_store_for_one_process_is_taken_with_a_warning(caplog):
    bus, app = bus_with(store="memory://"), App("billing", idempotent=True)
    app.subscribe(jobs)(handle)
    app.subscribe(orders)(handle)

    with caplog.at_level(logging.WARNING, "messaging"):
        await starting(app, bus)

    assert [record.message for record in caplog.records] == [
        "The idempotency store is memory: it protects this process only. Name one that all members share."
    ]


# the chain


async def test_middleware_runs_outermost_first_the_apps_before_the_subscriptions():
    order = []

    def noting(name):
        def middleware(next):
            async def run(delivery: Delivery):
                order.append(name)
                return await next(delivery)

            return run

        return middleware

    app = App("billing", middleware=[noting("app 1"), noting("app 2")])
    app.subscribe(jobs, middleware=[noting("subscription")])(lambda payload: order.append("handler"))
    bus = bus_with()
    with ThreadPoolExecutor(1) as executor:
        chain = plan_of(app, bus).within([noting("given at the start")]).bind(bus, [], executor).handler
        await chain(Delivery("x"))

    assert order == ["app 1", "app 2", "subscription", "given at the start", "handler"]


async def test_middleware_that_returns_no_handler_is_refused_by_name():
    def forgetful(next):
        async def handle(delivery):
            return await next(delivery)

    app = App("billing", middleware=[cast("Any", forgetful)])
    app.subscribe(jobs)(handle)
    bus = bus_with()
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ConfigurationError, match=r"forgetful of jobs/billing returned a NoneType"),
    ):
        plan_of(app, bus).bind(bus, [], executor)


async def test_an_idempotent_responder_sends_its_stored_reply_again():
    calls = []
    app = App("shop")

    @app.respond(prices, idempotent=lambda message: message.headers["order"])
    async def quote(product: str) -> int:
        calls.append(product)
        return 7

    clock = VirtualClock()
    bus = connect(Settings(url="memory://", store="memory://"), clock=clock)
    async with bus, app.running(bus):
        first = await bus.request(prices, "p1", headers={"order": "o1"})
        again = await bus.request(prices, "p1", headers={"order": "o1"})
        other = await bus.request(prices, "p1", headers={"order": "o2"})

    assert (first, again, other) == (7, 7, 7)
    assert calls == ["p1", "p1"]


async def asked(app, *, store=None):
    """What a requester is answered, twice for one order."""
    bus = connect(Settings(url="memory://", store=store), clock=VirtualClock())
    async with bus, app.running(bus):
        return [await bus.request(prices, "p1", headers={"order": "o1"}) for _ in range(2)]


async def test_a_responder_may_say_its_reply_as_an_outcome():
    app = App("shop")

    @app.respond(prices)
    async def quote(product: str) -> Any:
        return Ack(7)

    assert await asked(app) == [7, 7]


@pytest.mark.parametrize("outcome", [Reject("sold out"), Retry("sold out")])
async def test_a_responder_that_refuses_is_a_remote_error(outcome):
    app = App("shop")

    @app.respond(prices)
    async def quote(product: str) -> Any:
        return outcome

    with pytest.raises(RemoteError, match="sold out"):
        await asked(app)


async def test_middleware_of_a_responder_sees_the_reply_and_may_give_another():
    seen = []

    def doubling(next):
        async def run(delivery: Delivery):
            outcome = await next(delivery)
            seen.append(outcome)
            return Ack(outcome.reply * 2)

        return run

    app = App("shop", middleware=[doubling])
    app.respond(prices)(answer)

    assert await asked(app) == [4, 4]
    assert seen == [Ack(2), Ack(2)]


async def test_middleware_may_answer_in_the_responders_place():
    def cached(next):
        async def run(delivery: Delivery):
            return Ack(9)

        return run

    app = App("shop", middleware=[cached])
    app.respond(prices, idempotent=lambda message: message.headers["order"])(answer)

    assert await asked(app, store="memory://") == [9, 9]
