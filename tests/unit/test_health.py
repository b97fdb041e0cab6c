import asyncio
from dataclasses import replace
from typing import Any

import pytest

from messaging import App, Endpoint, Health, Reject, RetryPolicy, connect, fixed
from messaging.adapter import SettleError
from messaging.errors import AuthenticationFailed, ConnectionFailed, PublishError
from messaging_memory import MemoryAdapter
from messaging_memory.consumer import MemoryConsumer
from tests.unit.topics import jobs, orders


def app_with(topic, handler, **options):
    app = App("billing")
    app.subscribe(topic, **options)(handler)
    return app


async def one(bus) -> Health:
    health = await bus.health()
    assert len(health.subscriptions) == 1
    return health


async def test_a_bus_without_subscriptions_is_green(bus):
    health = await bus.health()

    assert (health.status, health.connected, health.subscriptions) == ("green", True, ())
    assert health.last_error is None


async def test_a_subscription_tells_what_it_did(bus, clock):
    async def handle(payload: str):
        if payload == "bad":
            raise Reject("no")
        if payload == "flaky":
            raise OSError("busy")

    app = app_with(jobs, handle, retry=RetryPolicy(2, fixed(5)))
    async with app.running(bus):
        await bus.publish_many(jobs, ["good", "bad", "flaky"])
        await clock.advance(4)
        (told,) = (await one(bus)).subscriptions

        assert (told.topic, told.group, told.receiving) == ("jobs", "billing", True)
        assert (told.received, told.acked, told.rejected, told.retried) == (3, 1, 1, 1)
        assert told.dead_letters == 1
        assert told.lag == 1

        await clock.advance(2)
        (told,) = (await one(bus)).subscriptions
        assert (told.received, told.dead_letters, told.lag) == (4, 2, 0)


async def test_what_runs_and_what_waits_is_told_with_its_age(bus, clock):
    gate = asyncio.Event()

    async def handle(payload: str):
        await gate.wait()

    async with app_with(jobs, handle, concurrency=1, prefetch=2).running(bus):
        await bus.publish_many(jobs, ["a", "b", "c", "d"])
        await clock.advance(60)
        (told,) = (await one(bus)).subscriptions

        assert (told.running, told.held) == (1, 2)
        assert told.lag == 2
        assert told.oldest == pytest.approx(60, abs=1)
        gate.set()
        await clock.settle()
        (told,) = (await one(bus)).subscriptions
        assert (told.running, told.held, told.lag) == (0, 0, 0)


async def test_a_failing_key_is_told_as_parked(bus, clock):
    async def handle(payload: str):
        raise OSError("busy")

    async with app_with(orders, handle, retry=RetryPolicy(3, fixed(600))).running(bus):
        await bus.publish_many(orders, ["a1", "a2", "a3"])
        await clock.settle()
        health = await one(bus)

        assert health.subscriptions[0].parked == 3
        assert health.status == "green"
        assert health.last_error is None


async def test_a_partition_that_waits_for_its_parked_is_yellow(bus, clock, monkeypatch):
    monkeypatch.setattr("messaging_memory.consumer.MemoryConsumer.window", 2)

    async def handle(payload: str):
        raise OSError("busy")

    async with app_with(orders, handle, retry=RetryPolicy(3, fixed(600))).running(bus):
        await bus.publish_many(orders, ["a1", "a2", "a3"])
        await clock.settle()
        health = await one(bus)

        assert health.subscriptions[0].parked_full
        assert health.status == "yellow"


async def test_a_broker_that_takes_no_outcome_is_yellow_with_its_reason_until_it_does(
    bus, clock, monkeypatch
):
    taken = MemoryConsumer.settle
    refusing = True

    async def handle(payload: str):
        raise Reject("no")

    async def settle(consumer, settlements):
        if refusing:
            return [SettleError(PublishError("nowhere to put it")) for _ in settlements]
        return await taken(consumer, settlements)

    monkeypatch.setattr(MemoryConsumer, "settle", settle)
    async with app_with(jobs, handle).running(bus):
        await bus.publish(jobs, "a")
        await clock.settle()
        health = await one(bus)
        assert (health.status, health.subscriptions[0].unsettled) == ("yellow", True)
        assert health.last_error == "nowhere to put it"

        refusing = False
        await clock.advance(60)
        health = await one(bus)
        assert (health.status, health.subscriptions[0].unsettled) == ("green", False)
        assert (health.last_error, health.subscriptions[0].dead_letters) == (None, 1)


async def test_a_broker_that_extends_no_lease_is_yellow_with_its_reason_until_it_does(
    bus, clock, monkeypatch
):
    extended = MemoryConsumer.extend
    refusing, gate = True, asyncio.Event()

    async def handle(payload: str):
        await gate.wait()

    async def extend(consumer, deliveries, seconds):
        if refusing:
            raise ConnectionFailed("it may not be extended")
        return await extended(consumer, deliveries, seconds)

    monkeypatch.setattr(MemoryConsumer, "extend", extend)
    async with app_with(jobs, handle).running(bus):
        await bus.publish(jobs, "a")
        await clock.advance(11)
        health = await one(bus)
        assert (health.status, health.subscriptions[0].unsettled) == ("yellow", True)
        assert health.last_error == "it may not be extended"

        refusing = False
        await clock.advance(11)
        health = await one(bus)
        assert (health.status, health.last_error) == ("green", None)
        gate.set()


async def test_a_broker_that_is_gone_is_red_and_its_return_green(bus, clock):
    async def handle(payload: str): ...

    async with app_with(jobs, handle).running(bus):
        await clock.settle()
        bus.native.disconnect()
        await clock.advance(5)
        health = await one(bus)
        assert (health.status, health.connected) == ("red", False)
        assert not health.subscriptions[0].receiving
        assert health.last_error is not None and "disconnected" in health.last_error

        bus.native.reconnect()
        await clock.advance(60)
        health = await one(bus)
        assert (health.status, health.connected) == ("green", True)
        assert health.subscriptions[0].reconnects >= 1


async def test_a_subscription_that_ended_for_good_is_red_with_its_reason(bus, clock):
    async def handle(payload: str): ...

    with pytest.raises(AuthenticationFailed):
        async with app_with(jobs, handle).running(bus):
            await clock.settle()

            async def refused(*_):
                raise AuthenticationFailed("the password was changed")

            bus.dispatchers[0]._dispatchers[1]._consumer.receive = refused
            await clock.advance(5)
            await asyncio.sleep(3600)

    health = await bus.health()
    assert health.status == "red"
    assert health.last_error == "the password was changed"


async def test_messages_that_the_broker_hands_to_no_member_are_no_green(bus, clock, monkeypatch):
    async def handle(payload: str): ...

    answer = MemoryAdapter.health

    async def stuck(adapter):
        told = await answer(adapter)
        return replace(told, groups=[replace(group, stuck="nobody consumes it") for group in told.groups])

    async with app_with(jobs, handle).running(bus):
        await clock.settle()
        monkeypatch.setattr(MemoryAdapter, "health", stuck)
        health = await one(bus)

        assert (health.status, health.subscriptions[0].stuck) == ("yellow", "nobody consumes it")
        assert health.last_error == "nobody consumes it"


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"error": "it evicts what it keeps", "unsafe": True}, id="may lose what it has"),
        pytest.param({"error": "no answer within 1 s", "silent": True}, id="does not answer a probe"),
    ],
)
async def test_what_a_broker_tells_of_itself_is_no_green_while_its_connection_stays(bus, monkeypatch, told):
    answer = MemoryAdapter.health

    async def amiss(adapter):
        return replace(await answer(adapter), **told)

    monkeypatch.setattr(MemoryAdapter, "health", amiss)
    health = await bus.health()

    assert (health.status, health.connected) == ("yellow", True)
    assert (health.last_error or "").endswith(told["error"])


async def test_figures_of_groups_that_come_late_are_told_and_make_no_broker_unwell(bus, monkeypatch):
    answer = MemoryAdapter.health

    async def slow(adapter):
        return replace(await answer(adapter), error="no figures within 1 s")

    monkeypatch.setattr(MemoryAdapter, "health", slow)
    health = await bus.health()

    assert health.status == "green"
    assert (health.last_error or "").endswith("no figures within 1 s")


async def test_health_is_red_while_replies_do_not_arrive(bus, clock):
    app, echo = App("echo"), Endpoint("echo", str, str)

    @app.respond(echo)
    async def answer(payload: str) -> str:
        return payload

    async with app.running(bus):
        assert await bus.request(echo, "one") == "one"
        inbox = bus.broker("echo").requester._inbox
        receive = inbox.receive

        async def refused(*_):
            raise ConnectionFailed("a refusal")

        inbox.receive = refused
        await clock.advance(6)
        broken = await bus.health()
        inbox.receive = receive
        await clock.advance(6)
        mended = await bus.health()

        assert (broken.status, mended.status) == ("red", "green")
        assert broken.brokers[0].requests is not None and "a refusal" in broken.brokers[0].requests
        assert mended.brokers[0].requests is None
        assert await bus.request(echo, "two") == "two"


async def test_groups_that_nobody_reads_are_listed(bus, clock):
    await bus.declare(jobs, groups=["search", "billing"])

    async def handle(payload: str): ...

    assert sorted((await bus.health()).groups_without_members) == ["jobs/billing", "jobs/search"]
    async with app_with(jobs, handle).running(bus):
        await clock.settle()
        assert (await bus.health()).groups_without_members == ("jobs/search",)


async def test_a_probe_of_a_closed_bus_does_not_raise(clock):
    bus = connect("memory://", clock=clock)
    assert (await bus.health()).status == "red"
    async with bus:
        pass

    health = await bus.health()

    assert (health.status, health.connected) == ("red", False)


async def test_a_store_that_is_away_is_red_until_it_answers_and_one_that_refuses_ends_the_app(
    clock, monkeypatch
):
    handled = []
    app = app_with(jobs, handled.append, idempotent=True)
    async with connect("memory://", store="memory://", clock=clock) as bus:
        store: Any = bus.store
        begin = store.begin
        failing = [ConnectionFailed("the store is not reached")]

        async def refuse(*arguments, **options):
            raise failing[0]

        monkeypatch.setattr(store, "begin", refuse)
        with pytest.raises(AuthenticationFailed):
            async with app.running(bus):
                await bus.publish(jobs, "one")
                await clock.advance(5)
                away = await one(bus)
                monkeypatch.setattr(store, "begin", begin)
                await clock.advance(5)
                back = await one(bus)

                failing[0] = AuthenticationFailed("the store refuses the password")
                monkeypatch.setattr(store, "begin", refuse)
                await bus.publish(jobs, "two")
                await clock.advance(60)
        refused = await bus.health()
        letters = await bus.dead_letters(jobs, group="billing").count()

    assert (away.status, away.subscriptions[0].retried) == ("red", 0)
    assert "the store is not reached" in str(away.last_error)
    assert (back.status, back.last_error, handled) == ("green", None, ["one"])
    assert refused.status == "red"
    assert letters == 0
