"""Retries: as often as the policy says, never early, with the message as it was, and only for the group that failed."""

from __future__ import annotations

import asyncio
import itertools
import time
from math import isfinite
from typing import Any

from messaging import Ack, App, Delivery, Message, Outcome, Retry, RetryPolicy, fixed
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest

MARGIN = 1.0
"""Seconds that a busy machine may add to what a broker promises."""


async def fail(_: Delivery[Any]) -> Outcome | None:
    """A handler that always fails."""
    raise RuntimeError("the provider is down")


@proves("attempts")
async def a_handler_that_fails_twice_succeeds_on_attempt_three(broker: BrokerUnderTest) -> None:
    """The attempts of a message are numbered 1, 2, 3, and after the success there is no fourth (2)."""
    topic, ledger = broker.topic(), Ledger()

    async def fail_twice(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.attempt < 3:
            raise RuntimeError("the provider is down")
        return Ack()

    app = broker.app(topic, ledger, then=fail_twice, retry=RetryPolicy(5, fixed(0.1)))
    async with app.running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        await ledger.handled(1)
        await ledger.quiet()
    assert ledger.attempts(receipt.id) == [1, 2, 3]
    assert await broker.letters(topic) == []
    await broker.nothing_left(topic)


@proves("delayed_retry")
async def a_retry_is_never_early_and_hardly_late(broker: BrokerUnderTest) -> None:
    """Whatever the delay, a retry comes after it, and no later than the declared lateness (5)."""
    topic, ledger = broker.topic(), Ledger()
    delays = (0.05, 0.2, 0.3, 0.7, 1.1)

    async def wait(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=delivery.payload) if delivery.attempt == 1 else Ack()

    app = broker.app(topic, ledger, then=wait, concurrency=10)
    async with app.running(broker.bus), broker.standstill(topic) as lost:
        receipts = await broker.bus.publish_many(topic, list(delays))
        await ledger.handled(2 * len(delays))
        late = broker.capabilities.lateness + MARGIN + 2 * lost.seconds
    for delay, receipt in zip(delays, receipts, strict=True):
        first, second = ledger.of(receipt.id)
        assert first.end is not None
        waited = second.begin - first.end
        assert waited >= delay, f"asked for {delay} s, came after {waited:.3f} s"
        assert waited <= delay + late


@proves("delayed_retry")
async def a_policy_says_how_long_to_wait(broker: BrokerUnderTest) -> None:
    """An exception is tried again after the policy's delay, each time (5)."""
    topic, ledger = broker.topic(), Ledger()
    app = broker.app(topic, ledger, then=fail, retry=RetryPolicy(3, fixed(0.3)))
    async with app.running(broker.bus), broker.standstill(topic) as lost:
        receipt = await broker.bus.publish(topic, 1)
        await broker.letters(topic, count=1)
        late = broker.capabilities.lateness + MARGIN + 2 * lost.seconds
    handlings = ledger.of(receipt.id)
    assert len(handlings) == 3
    for earlier, later in itertools.pairwise(handlings):
        assert earlier.end is not None
        assert 0.3 <= later.begin - earlier.end <= 0.3 + late


@proves("delayed_retry")
async def a_long_delay_is_kept_or_refused_but_never_shortened(broker: BrokerUnderTest) -> None:
    """A delay beyond `max_delay` is a dead letter with the cause `delay_unsupported`; any other waits its time."""
    topic, ledger = broker.topic(), Ledger()
    longest = broker.capabilities.max_delay

    async def ask_for_much(_: Delivery[Any]) -> Outcome | None:
        return Retry("later", after=longest + 1 if isfinite(longest) else 30 * 86400.0)

    async with broker.app(topic, ledger, then=ask_for_much).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        if isfinite(longest):
            (letter,) = await broker.letters(topic, count=1)
            assert (letter.id, letter.cause) == (receipt.id, "delay_unsupported")
        else:
            await ledger.begun(1)
            await ledger.quiet()
            assert await broker.letters(topic) == []
    assert ledger.attempts(receipt.id) == [1]


@proves("delayed_retry", limit=60)
async def a_delayed_retry_outlives_the_member_that_failed(broker: BrokerUnderTest) -> None:
    """When the member that failed has left, another handles the retry, and not before it is due (1, 5)."""
    topic, ledger = broker.topic(), Ledger()

    async def wait(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=delivery.payload) if delivery.attempt == 1 else Ack()

    for delay in (0.8, 8.0):
        async with broker.running(broker.app(topic, ledger, member="one", then=wait)):
            receipt = await broker.bus.publish(topic, delay)
            await ledger.until(lambda receipt=receipt: receipt.id in ledger.ids)  # type: ignore[misc]
        if time.monotonic() - ledger.of(receipt.id)[0].begin < delay:
            break  # else it was due before the member had left
    async with broker.running(broker.app(topic, ledger, member="two", then=wait)):
        await ledger.until(lambda: len(ledger.of(receipt.id)) == 2)
    first, second = ledger.of(receipt.id)
    assert first.end is not None
    assert second.begin - first.end >= delay
    assert (second.member, second.attempt) == ("two", 2)


@proves("attempts")
async def a_message_is_tried_as_often_as_the_policy_says(broker: BrokerUnderTest) -> None:
    """A message that always fails is handled exactly `attempts` times and is then one dead letter."""
    topic, ledger = broker.topic(), Ledger()
    app = broker.app(topic, ledger, then=fail, retry=RetryPolicy(4, fixed(0.05)))
    async with app.running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        letters = await broker.letters(topic, count=1)
        await ledger.quiet()
    assert ledger.attempts(receipt.id) == [1, 2, 3, 4]
    assert [letter.id for letter in letters] == [receipt.id]
    await broker.nothing_left(topic)


@proves("attempts")
async def an_exception_that_deserves_no_retry_gets_none(broker: BrokerUnderTest) -> None:
    """An exception in `reject_on` makes a dead letter on attempt 1."""
    topic, ledger = broker.topic(), Ledger()

    async def refuse(_: Delivery[Any]) -> Outcome | None:
        raise ValueError("never valid")

    policy = RetryPolicy(5, fixed(0.05), reject_on=(ValueError,))
    async with broker.app(topic, ledger, then=refuse, retry=policy).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        (letter,) = await broker.letters(topic, count=1)
        await ledger.quiet()
    assert ledger.attempts(receipt.id) == [1]
    assert (letter.cause, letter.attempts) == ("exception", 1)


@proves("delivery")
async def a_retried_message_is_the_same_message(broker: BrokerUnderTest) -> None:
    """A retry has the same id, body, key, headers, type, source, times and correlation as the first try had."""
    topic, ledger, app = broker.topic(type=bytes), Ledger(), App("billing", retry=RetryPolicy(3, fixed(0.1)))
    broker.uses(topic, "billing")
    seen: list[Message] = []

    @app.subscribe(topic)
    async def handle(_: bytes, delivery: Delivery[bytes]) -> Outcome | None:
        with ledger.handling(delivery):
            seen.append(delivery.message)
            return Retry() if delivery.attempt < 3 else None

    async with app.running(broker.bus):
        receipt = await broker.bus.publish(
            topic, b"\xff\x00 body", key=b"\xfe\xff", headers={"tenant": "größe 🦜", "empty": ""}, expires=60
        )
        await ledger.handled(3)
    assert ledger.attempts(receipt.id) == [1, 2, 3]
    assert seen[0].id == receipt.id
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


@proves("delayed_retry")
async def failing_messages_do_not_stall_the_others(broker: BrokerUnderTest) -> None:
    """Twenty messages that always fail do not wedge a group with four handlers: the others are handled meanwhile."""
    topic, ledger = broker.topic(), Ledger()

    async def fail_some(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=0.5) if delivery.payload == "bad" else Ack()

    policy = RetryPolicy(100, fixed(0.5))
    app = broker.app(topic, ledger, then=fail_some, concurrency=4, prefetch=4, retry=policy)
    async with app.running(broker.bus):
        await broker.bus.publish_many(topic, ["bad"] * 20)
        await ledger.begun(20)
        good = await broker.bus.publish_many(topic, ["good"] * 20)
        await ledger.until(lambda: sum(one.payload == "good" for one in ledger.handlings) == 20)
    assert all(ledger.attempts(receipt.id) == [1] for receipt in good)


@proves("groups")
async def a_retry_of_one_group_is_no_business_of_another(broker: BrokerUnderTest) -> None:
    """While one group fails and tries again, the other group has handled the message once, at attempt 1."""
    topic, failing, other = broker.topic(), Ledger(), Ledger()

    async def fail_twice(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=0.1) if delivery.attempt < 3 else None

    async with broker.running(
        broker.app(topic, failing, then=fail_twice), broker.app(topic, other, group="search")
    ):
        receipt = await broker.bus.publish(topic, 1)
        await failing.handled(3)
        await other.handled(1)
        await other.quiet()
    assert failing.attempts(receipt.id) == [1, 2, 3]
    assert other.attempts(receipt.id) == [1]


@proves("expiry")
async def a_message_that_expires_while_it_waits_is_not_tried_again(broker: BrokerUnderTest) -> None:
    """Expiry is checked before a retry too: the message is dropped, at its time, not tried (6)."""
    topic, ledger = broker.topic(), Ledger()

    async def wait(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=2.2) if delivery.payload == "expires" else Ack()

    async with broker.app(topic, ledger, then=wait).running(broker.bus):
        # A member that only joins its group can take longer than the message has left.
        await broker.bus.publish(topic, "joined", key="one partition")
        await ledger.handled(1)
        receipt = await broker.bus.publish(topic, "expires", key="one partition", expires=2)
        await ledger.begun(2)
        await ledger.quiet(2.2 + broker.capabilities.lateness + 0.4)
        sentinels = await broker.bus.publish_many(topic, ["sentinel"] * topic.partitions)
        await ledger.until(lambda: {sentinel.id for sentinel in sentinels} <= set(ledger.ids))
    assert ledger.attempts(receipt.id) == [1]


@proves("attempts")
async def a_handler_that_takes_too_long_has_failed(broker: BrokerUnderTest) -> None:
    """A handler beyond its `timeout` is cancelled, and that counts as a failure, unlike any other cancellation."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang_once(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.attempt == 1:
            await stuck.wait()
        return Ack()

    policy = RetryPolicy(3, fixed(0.1))
    async with broker.app(topic, ledger, then=hang_once, timeout=0.2, retry=policy).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        await ledger.handled(1)
    assert [(one.attempt, one.how) for one in ledger.of(receipt.id)] == [(1, "cancelled"), (2, "returned")]
