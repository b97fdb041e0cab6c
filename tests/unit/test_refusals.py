"""What a broker does not take of what is published, as health and the log tell it."""

import asyncio
import logging
from unittest.mock import AsyncMock

import pytest

from messaging.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    MessageTooLarge,
    MessagingError,
    NoGroup,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging.message import Receipt
from messaging_memory.adapter import MemoryAdapter
from tests.unit.publishing import Desk
from tests.unit.scripted import outgoing
from tests.unit.topics import jobs, orders

FULL = PublishError("out of memory")


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "messaging")
    return lambda: [record for record in caplog.records if "does not take" in record.getMessage()]


@pytest.fixture
def refuse(monkeypatch):
    """A fault of the memory broker: what becomes of each publish, or None for what it does by itself."""
    publish, fault = MemoryAdapter.publish, {}

    async def faulty(self, messages):
        if isinstance(fault.get("is"), PublishError):
            return [fault["is"]] * len(messages)
        if fault.get("is") is not None:
            raise fault["is"]
        return await publish(self, messages)

    monkeypatch.setattr(MemoryAdapter, "publish", faulty)
    return lambda what: fault.update({"is": what})


@pytest.mark.parametrize("fault", [FULL, PublishUncertain("no confirm"), ConnectionFailed("cut")], ids=repr)
async def test_a_broker_that_takes_no_publish_is_yellow_until_one_succeeds(bus, refuse, warnings, fault):
    await bus.declare(jobs, groups=["billing"])
    refuse(fault)
    for _ in range(3):
        with pytest.raises(PublishError):
            await bus.publish(jobs, "a")

    health = await bus.health()
    refuse(None)
    await bus.publish(jobs, "a")
    after = await bus.health()

    assert (health.status, health.connected) == ("yellow", True)
    assert str(fault) in health.last_error and "jobs" in health.last_error
    assert health.brokers[0].publishing is not None
    (told,) = warnings()
    assert (told.topic, told.broker) == ("jobs", "memory://")
    assert str(fault) in told.getMessage()
    assert (after.status, after.last_error, after.brokers[0].publishing) == ("green", None, None)


async def test_a_second_spell_is_told_again(bus, refuse, warnings):
    await bus.declare(jobs, groups=["billing"])
    for fault in (FULL, None, FULL):
        refuse(fault)
        await asyncio.gather(bus.publish(jobs, "a"), bus.publish(jobs, "b"), return_exceptions=True)

    assert len(warnings()) == 2


@pytest.mark.parametrize("error", [MessageTooLarge("too large"), NoGroup("nobody")], ids=repr)
async def test_what_the_caller_did_wrong_is_no_refusal(bus, refuse, warnings, error):
    await bus.declare(jobs, groups=["billing"])
    refuse(error)
    with pytest.raises(PublishError):
        await bus.publish(jobs, "a")

    assert (await bus.health()).status == "green"
    assert not warnings()


async def test_a_topic_that_is_refused_among_others_is_told_of_until_it_is_forgotten(bus, clock, refuse):
    await bus.declare(jobs, groups=["billing"])
    await bus.declare(orders, groups=["billing"])
    refuse(FULL)
    with pytest.raises(PublishError):
        await bus.publish(jobs, "a")
    refuse(None)

    await bus.publish(orders, "a1")
    soon = await bus.health()
    await clock.advance(61)
    await bus.publish(orders, "a2")

    assert soon.status == "yellow" and "jobs" in (soon.last_error or "")
    assert (await bus.health()).status == "green"


async def test_a_broker_that_answers_nothing_is_told_before_anybody_gives_up(warnings):
    desk = Desk()
    call = await desk.started(outgoing("a"))
    await desk.clock.advance(1.9)
    assert desk.refusals.last() is None
    await desk.clock.advance(0.2)

    silent = desk.refusals.last()
    desk.gate.set()
    await call

    assert silent is not None and "confirmed" in silent
    assert desk.refusals.last() is None
    assert not warnings()


async def test_a_caller_without_time_blames_nobody_but_one_whom_a_silent_broker_lets_down_does(warnings):
    desk = Desk()
    calls = [await desk.started(outgoing("a"), within=0.5), await desk.started(outgoing("b"), within=3)]
    await desk.clock.advance(1)
    impatient, before = await calls[0], warnings()
    await desk.clock.advance(3)

    (error,) = await calls[1]

    assert isinstance(impatient[0], PublishUncertain) and not before
    assert str(error) in (desk.refusals.last() or "")
    assert len(warnings()) == 1
    desk.gate.set()
    (again,) = await desk.publisher.publish([outgoing("c")], 3)
    assert isinstance(again, Receipt)
    assert desk.refusals.last() is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionFailed("cut"), True),
        (AuthenticationFailed("the password was changed"), True),
        (MessagingError("a refusal that nobody knows"), True),
        (ConfigurationError("of another shape"), False),
        (TopicNotFound("nothing may be declared"), False),
    ],
    ids=repr,
)
async def test_a_broker_that_does_not_declare_what_is_published_to_is_yellow_until_it_does(
    bus, monkeypatch, warnings, error, told
):
    with monkeypatch.context() as patched:
        patched.setattr(MemoryAdapter, "declare", AsyncMock(side_effect=error))
        with pytest.raises(type(error)):
            await bus.publish(jobs, "a")
    refused = await bus.health()
    await bus.publish(jobs, "a")

    assert (refused.status, str(error) in (refused.last_error or "")) == (
        ("yellow", True) if told else ("green", False)
    )
    assert len(warnings()) == told
    assert (await bus.health()).status == "green"
