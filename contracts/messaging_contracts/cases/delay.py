"""Publish delays: never early, hardly late, for every group, uncounted, and refused where they cannot be kept."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from messaging import InvalidMessage, RetryPolicy, Topic, fixed
from messaging_contracts.case import proves
from messaging_contracts.cases.foreign import publish
from messaging_contracts.cases.retry import MARGIN, fail
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest


def forged(value: str) -> dict[str, str]:
    """The attribute under each name that a broker may have for it."""
    return {f"{prefix}notbefore": value for prefix in ("ce_", "ce-", "cloudEvents_", "cloudEvents:")}


async def refused(broker: BrokerUnderTest, topic: Topic[Any], **options: Any) -> bool:
    """Whether this is refused."""
    try:
        await broker.bus.publish(topic, "refused", **options)
    except InvalidMessage:
        return True
    return False


@proves("delay")
async def a_delayed_message_is_never_early_and_hardly_late(broker: BrokerUnderTest) -> None:
    """Each group handles it once, on attempt 1, after its delay and no later than the declared lateness (2, 5)."""
    topic, billing, audit = broker.topic(), Ledger(), Ledger()
    published: dict[str, tuple[float, float]] = {}
    async with (
        broker.app(topic, billing).running(broker.bus),
        broker.running(broker.app(topic, audit, group="audit")),
        broker.standstill(topic) as lost,
    ):
        now = await broker.bus.publish(topic, "now")
        for ledger in (billing, audit):
            await ledger.handled(1)  # members that have joined their groups make nothing late
        for delay in (1.1, 0.3, 0.05):
            begin = time.monotonic()
            receipt = await broker.bus.publish(topic, delay, delay=delay)
            published[receipt.id] = begin, delay
        begin = time.monotonic()
        for receipt in await broker.bus.publish_many(topic, ["many"] * 2, delay=0.7):
            published[receipt.id] = begin, 0.7
        confirmed = time.monotonic()
        for ledger in (billing, audit):
            await ledger.handled(len(published) + 1)
        late = broker.capabilities.lateness + MARGIN + 2 * lost.seconds
        await billing.quiet()
    for ledger in (billing, audit):
        ledger.assert_each_once([*published, now.id])
        for one in ledger.handlings[1:]:
            begin, delay = published[one.id]
            assert one.begin - begin >= delay, f"asked for {delay} s, came after {one.begin - begin:.3f} s"
            assert one.begin - confirmed <= delay + late
            assert one.attempt == 1


@proves("delay", limit=60)
async def a_delayed_message_outlives_the_member_that_received_it(broker: BrokerUnderTest) -> None:
    """It waits on the broker: when the member that got it first has left, another handles it, in time (5)."""
    topic, ledger = broker.topic(), Ledger()
    for delay in (3.0, 10.0):
        async with broker.running(broker.app(topic, ledger, member="one")):
            joined = await broker.bus.publish(topic, "joined", key="one partition")
            await ledger.until(lambda joined=joined: joined.id in ledger.ids)  # type: ignore[misc]
            begin = time.monotonic()
            receipt = await broker.bus.publish(topic, 1, key="one partition", delay=delay)
            sentinel = await broker.bus.publish(topic, "sentinel", key="one partition")
            await ledger.until(lambda sentinel=sentinel: sentinel.id in ledger.ids)  # type: ignore[misc]
        if time.monotonic() - begin < delay:
            break  # else it was due before the member had left
    async with broker.running(broker.app(topic, ledger, member="two")):
        await ledger.until(lambda: bool(ledger.of(receipt.id)))
    (handled,) = ledger.of(receipt.id)
    assert handled.begin - begin >= delay
    assert (handled.member, handled.attempt) == ("two", 1)


@proves("delay")
async def a_delayed_message_is_retried_and_given_up_as_any_other(broker: BrokerUnderTest) -> None:
    """Its time having come, it is tried as often as the policy says, at the policy's pace, and keeps its attributes."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    app = broker.app(topic, ledger, then=fail, retry=RetryPolicy(3, fixed(0.1)))
    async with app.running(broker.bus):
        receipt = await broker.bus.publish(
            topic, b"\xff", key=b"\xfe", headers={"tenant": "größe"}, delay=0.3
        )
        (letter,) = await broker.letters(topic, count=1)
        await ledger.quiet()
    assert ledger.attempts(receipt.id) == [1, 2, 3]
    assert (letter.id, letter.cause, letter.attempts) == (receipt.id, "max_attempts", 3)
    message = letter.message
    assert (message.body, message.key, message.headers) == (b"\xff", b"\xfe", {"tenant": "größe"})
    assert message.not_before is not None
    assert message.time is not None
    assert message.not_before - message.time == timedelta(seconds=0.3)


@proves("delay")
async def a_delay_that_cannot_be_kept_is_refused_before_anything_is_sent(broker: BrokerUnderTest) -> None:
    """On an ordered topic, below 0, beyond the longest delay, or past its own expiry: InvalidMessage (5, 6, 20)."""
    ordered, topic = broker.topic("ordered", ordered=True), broker.topic()
    ledger = Ledger()
    apps = [broker.app(one, ledger) for one in (ordered, topic)]
    async with apps[0].running(broker.bus), apps[1].running(broker.bus):
        assert await refused(broker, ordered, key="k", delay=1)
        for options in ({"delay": -1}, {"delay": 366 * 86_400}, {"delay": 0.2, "expires": 0.1}):
            assert await refused(broker, topic, **options), f"{options} was taken"
        receipts = [await broker.bus.publish(one, "sentinel", key="k") for one in (ordered, topic)]
        await ledger.handled(2)
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("foreign")
async def a_forged_publish_delay_holds_nothing_for_ever(broker: BrokerUnderTest) -> None:
    """A time that nobody may ask for is a dead letter with `delay_unsupported`; what is no time is ignored (5, 19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    garbage = (
        "",
        "soon",
        "0",
        "99999999999",
        "-1",
        "2026-13-45",
        "9" * 5000,
        "🦜",
        "0001-01-01T00:00:00+23:00",
    )
    asked = {
        b"far": "9999-12-31T23:59:59.999999-23:00",
        b"year": (datetime.now(UTC) + timedelta(days=400)).isoformat(),
    }
    async with broker.app(topic, ledger).running(broker.bus):
        for number, value in enumerate(garbage):
            await publish(broker, topic, f"{number}".encode(), headers=forged(value))
        for body, value in asked.items():
            await publish(broker, topic, body, headers=forged(value))
        letters = await broker.letters(topic, count=len(asked))
        await ledger.handled(len(garbage))
        await ledger.quiet()
    assert {(letter.message.body, letter.cause) for letter in letters} == {
        (body, "delay_unsupported") for body in asked
    }
    assert sorted(ledger.payloads) == sorted(f"{number}".encode() for number in range(len(garbage)))
