import asyncio
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest

from messaging import (
    App,
    Bus,
    Closed,
    ConfigurationError,
    Delivery,
    Reject,
    Release,
    Retry,
    RetryPolicy,
    Topic,
    connect,
)
from messaging.errors import AuthenticationFailed, MessagingError, UnsupportedCapability
from tests.unit.topics import jobs, orders, prices


def group_of(bus, name):
    return next(one for one in bus.dispatchers if one.group == name)


# recording


def test_subscribe_returns_the_function_unchanged():
    app = App("billing")

    async def charge(order: str) -> None: ...

    async def quote(ask: str) -> int:
        return 1

    assert app.subscribe(orders)(charge) is charge
    assert app.respond(prices)(quote) is quote
    assert [(one.name, one.function) for one in app.definitions] == [
        ("orders/billing", charge),
        ("prices/responders", quote),
    ]
    assert repr(app) == "App('billing')"


async def test_two_handlers_of_one_topic_and_group_are_refused_at_start(bus):
    app, other = App("billing"), App("billing")
    app.subscribe(orders)(lambda order: None)
    other.subscribe(orders)(lambda order: None)
    app.include(other)

    with pytest.raises(ConfigurationError, match="same topic and group: orders/billing"):
        async with app.running(bus):
            pass


async def test_an_app_that_is_included_twice_runs_once(bus, clock):
    app, left, right, shared = App("a"), App("b"), App("c"), App("d")
    handled = []
    shared.subscribe(jobs)(handled.append)
    for one, other in ((left, shared), (right, shared), (app, left), (app, right)):
        one.include(other)

    async with app.running(bus):
        assert shared.bus is bus
        await bus.publish(jobs, "x")
        await clock.settle()
    assert handled == ["x"]


def test_loops_of_included_apps_are_refused():
    first, second, third = App("a"), App("b"), App("c")
    first.include(second)
    second.include(third)

    for one, other in ((first, first), (third, first), (second, first)):
        with pytest.raises(ConfigurationError, match="cannot include itself"):
            one.include(other)


# running


async def test_the_bus_is_there_while_the_app_runs(bus):
    app = App("billing")
    with pytest.raises(Closed, match="is not running"):
        _ = app.bus

    async with app.running(bus) as running:
        assert running is app
        assert app.bus is bus

    with pytest.raises(Closed):
        _ = app.bus


async def test_an_app_that_runs_on_two_buses_has_one_until_the_last_stops(bus, clock):
    app = App("billing")
    async with app.running(bus):
        async with connect("memory://", clock=clock) as other, app.running(other):
            assert app.bus is other
        assert app.bus is bus

    with pytest.raises(Closed):
        _ = app.bus


async def test_a_start_that_fails_leaves_no_app_running(bus):
    @asynccontextmanager
    async def broken(bus):
        raise OSError("no database")
        yield

    app, other = App("a"), App("b", lifespan=broken)
    app.include(other)

    with pytest.raises(OSError, match="no database"):
        async with app.running(bus):
            pass
    with pytest.raises(Closed):
        _ = app.bus


async def test_each_app_has_its_own_resources(bus, clock):
    class Db(str):
        __slots__ = ()

    class Mail(str):
        __slots__ = ()

    closed = []

    def lifespan(yielded):
        @asynccontextmanager
        async def resources(bus: Bus):
            yield yielded
            closed.append(yielded)

        return resources

    seen = []
    app, other = App("a", lifespan=lifespan((Db("1"), Mail("2")))), App("b", lifespan=lifespan(Db("3")))
    plain, nothing = App("c"), App("d", lifespan=lifespan(None))

    @app.subscribe(jobs)
    async def first(job: str, db: Db, mail: Mail, bus: Bus):
        seen.append((db, mail))

    @other.subscribe(jobs)
    async def second(job: str, delivery: Delivery, db: Db):
        seen.append((delivery.group, db))

    for one in (other, plain, nothing):
        app.include(one)
    async with app.running(bus):
        await bus.publish(jobs, "x")
        await clock.settle()

    assert sorted(seen) == [("1", "2"), ("b", "3")]
    assert closed == [None, "3", ("1", "2")]


async def test_what_is_provided_replaces_the_lifespan(bus, clock):
    @asynccontextmanager
    async def never(bus):
        raise AssertionError
        yield

    app, seen = App("a", lifespan=never), []

    @app.subscribe(jobs)
    async def handle(job: str, number: int):
        seen.append(number)

    async with app.running(bus, provide=[7]):
        await bus.publish(jobs, "x")
        await clock.settle()
    assert seen == [7]


async def test_everything_that_the_broker_cannot_do_is_told_together(bus):
    app = App("a", idempotent=True)
    app.subscribe(jobs, on_exhausted="hold_key")(lambda job: None)

    with pytest.raises(UnsupportedCapability, match="needs a store.*") as raised:
        async with app.running(bus):
            pass
    assert "holds keys, which only an ordered group has" in str(raised.value)


async def test_a_handler_that_runs_at_the_exit_is_finished(bus, clock):
    app, done = App("a"), []
    entered, go = asyncio.Event(), asyncio.Event()

    @app.subscribe(jobs)
    async def handle(job: str):
        entered.set()
        await go.wait()
        done.append(job)

    async def life():
        async with app.running(bus):
            await bus.publish(jobs, "x")
            await entered.wait()

    living = asyncio.create_task(life())
    await clock.settle()
    assert not living.done()
    go.set()
    await living

    assert done == ["x"]
    assert [group.lag for group in await bus.groups()] == [0]
    assert bus.dispatchers == []


@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [ValueError("one")])])
async def test_an_error_of_the_body_is_raised_as_it_was(bus, clock, error):
    app, cancelled = App("a"), []
    error.__cause__ = cause = OSError("the reason")

    @app.subscribe(jobs)
    async def handle(job: str):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(job)

    with pytest.raises(type(error)) as raised:
        async with app.running(bus):
            await bus.publish(jobs, "x")
            await clock.settle()
            raise error

    assert raised.value is error
    assert error.__cause__ is cause
    assert cancelled == ["x"]
    assert not bus.ended


async def test_an_error_of_the_body_is_not_hidden_by_what_follows_from_it(bus, clock):
    app = App("a")
    app.subscribe(jobs)(lambda job: None)

    async def broken_close():
        raise OSError("while closing")

    with pytest.raises(KeyError):
        async with app.running(bus):
            await clock.settle()
            consumer = group_of(bus, "a")._dispatchers[1]._consumer
            consumer.close = broken_close
            raise KeyError("mine")
    del consumer.close


async def test_a_fatal_error_of_one_subscription_cancels_the_body_and_ends_the_others(bus, clock):
    app, other = App("a"), App("b")
    app.subscribe(jobs)(lambda job: None)
    other.subscribe(jobs)(lambda job: None)
    app.include(other)
    error = AuthenticationFailed("the password was changed")
    body = None

    async def refused(*_):
        raise error

    with pytest.raises(AuthenticationFailed) as raised:
        async with app.running(bus):
            await clock.settle()
            group_of(bus, "a")._dispatchers[1]._consumer.receive = refused
            try:
                await clock.advance(2)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                body = "cancelled"
                raise

    assert raised.value is error
    assert body == "cancelled"
    health = await bus.health()
    assert (health.status, health.last_error) == ("red", "the password was changed")


async def test_cancelling_the_program_cancels_the_handlers_and_gives_back(bus, clock):
    app = App("a")

    @app.subscribe(jobs)
    async def handle(job: str):
        await asyncio.Event().wait()

    async def life():
        async with app.running(bus):
            await bus.publish(jobs, "x")
            await asyncio.Event().wait()

    living = asyncio.create_task(life())
    await clock.settle()
    living.cancel()
    await asyncio.wait((living,))

    assert living.cancelled()
    assert [(group.lag, group.members) for group in await bus.groups()] == [(1, 0)]


class Fatal(BaseException):
    pass


async def forgetful(delivery):
    """A middleware without `return`."""


@pytest.mark.parametrize(
    "slip",
    [
        Fatal("f"),
        BaseExceptionGroup("g", [Fatal("f"), ValueError("v")]),
        BaseExceptionGroup("g", [asyncio.CancelledError(), ValueError("v")]),
        Retry(ValueError("x")),
        Reject(ValueError("x")),
        Reject(None),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        Reject(b"x"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        forgetful,
    ],
    ids=lambda slip: getattr(slip, "__name__", repr(slip)),
)
async def test_no_slip_in_a_handler_ends_more_than_its_message(bus, clock, slip):
    app, handled = App("a", retry=RetryPolicy(2)), []

    @app.subscribe(jobs, middleware=[lambda _: slip] if slip is forgetful else [])
    async def handle(job: str):
        raise slip

    @app.subscribe(jobs, group="b")
    async def go_on(job: str):
        handled.append(job)

    async with app.running(bus):
        await bus.publish(jobs, "x")
        await clock.advance(60)
        assert await bus.dead_letters(jobs, group="a").count() == 1
        await bus.publish(jobs, "y")
        await clock.settle()
    assert handled == ["x", "y"]


def test_a_handler_that_exits_ends_the_program_and_its_message_is_not_given_back_as_if_nothing_had_happened():
    app, seen = App("a"), []

    @app.subscribe(jobs)
    async def handle(job: str):
        raise SystemExit(3)

    async def main():
        async with connect("memory://") as bus:
            try:
                async with app.running(bus):
                    await bus.publish(jobs, "x")
                    await asyncio.Event().wait()
            finally:
                seen.extend((group.lag, group.dead_letters) for group in await bus.groups())

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert seen == [(0, 0)]  # it comes back when the lease ends, counted, for the crash guard to see


@pytest.mark.parametrize("swallows", [False, True])
def test_a_program_that_exits_starts_nothing_more_and_ends_in_peace(swallows):
    app, started, left = App("a"), [], []
    queue = Topic("queue", str, partitions=1)
    other_runs = asyncio.Event()

    @app.subscribe(jobs)
    async def leave(job: str):
        await other_runs.wait()
        raise SystemExit(3)

    @app.subscribe(queue, concurrency=1)
    async def handle(job: str):
        started.append(job)
        other_runs.set()
        if job == "second":
            raise SystemExit(4)
        with suppress(asyncio.CancelledError) if swallows else nullcontext():
            await asyncio.Event().wait()

    async def main():
        try:
            async with connect("memory://") as bus:
                await bus.declare(app)
                await bus.publish_many(queue, ["first", "second"])
                await bus.publish(jobs, "x")
                async with app.running(bus):
                    await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            left.append("the program")

    with pytest.raises(SystemExit) as raised:
        asyncio.run(main())
    assert (raised.value.code, started, left) == (3, ["first"], ["the program"])


async def test_an_outcome_that_makes_no_sense_is_a_failure_of_the_handler(bus, clock):
    app = App("a", retry=RetryPolicy(1))

    @app.subscribe(jobs)
    async def handle(job: str) -> Any:
        return Release(after=float("nan")) if job == "release" else {"not": "an outcome"}

    @app.subscribe(jobs, group="b")
    async def refuse(job: str):
        return Reject("no")

    async with app.running(bus):
        await bus.publish_many(jobs, ["release", "dict"])
        await clock.settle()

    assert await bus.dead_letters(jobs, group="a").count() == 2
    assert await bus.dead_letters(jobs, group="b").count() == 2


async def test_a_subscription_that_another_part_of_the_program_cancels_ends_the_app_with_an_error(bus):
    app = App("billing")
    app.subscribe(orders)(lambda order: None)
    ended = asyncio.Event()

    with pytest.raises(MessagingError, match="messaging-orders/billing was cancelled by another part"):
        async with app.running(bus):
            await bus.clock.settle()
            (task,) = (one for one in asyncio.all_tasks() if one.get_name() == "messaging-orders/billing")
            task.cancel()
            await ended.wait()

    assert isinstance(bus.ended["orders", "billing"], MessagingError)
