"""The four outcomes, the two counters, and what cancellation is not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from messaging import Ack, Delivery, Outcome, Reject, Release, Retry, RetryPolicy, fixed
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest

QUICK = RetryPolicy(3, fixed(0.2))


@dataclass(frozen=True, slots=True)
class Stored(Ack):
    """A program's own kind of success."""

    row: int = 0


@proves("settlement")
async def what_was_handled_does_not_come_again(broker: BrokerUnderTest) -> None:
    """After a handler has succeeded and its member has left, the next member finds nothing (1)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.running(broker.app(topic, ledger)):
        receipts = await broker.bus.publish_many(topic, list(range(20)))
        await ledger.handled(20)
    ledger.assert_each_once([receipt.id for receipt in receipts])
    await broker.nothing_left(topic)


@proves("settlement")
async def a_subclass_of_ack_acknowledges(broker: BrokerUnderTest) -> None:
    """What a handler answers with an Ack of its own is handled once, with and without order (1)."""

    async def store(delivery: Delivery[Any]) -> Outcome | None:
        return Stored(row=delivery.payload)

    for topic in (broker.topic("loose"), broker.topic("strict", key=str, ordered=True)):
        ledger = Ledger()
        async with broker.running(broker.app(topic, ledger, then=store, retry=QUICK)):
            receipts = await broker.bus.publish_many(topic, list(range(5)))
            await ledger.handled(5)
            await ledger.quiet()
        ledger.assert_each_once([receipt.id for receipt in receipts])
        await broker.nothing_left(topic)


@proves("settlement")
async def nothing_is_acknowledged_before_its_handler_has_ended(broker: BrokerUnderTest) -> None:
    """A member that is cut off in the middle of a handler leaves its message to the others (1)."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    async with broker.running(broker.app(topic, ledger, member="broken", then=hang), grace=0):
        receipt = await broker.bus.publish(topic, 1)
        await ledger.begun(1)
    async with broker.running(broker.app(topic, ledger, member="whole")):
        await ledger.handled(1)
    assert [one.how for one in ledger.of(receipt.id)] == ["cancelled", "returned"]


@proves("attempts", limit=60)
async def a_cancelled_handler_is_not_a_failure(broker: BrokerUnderTest) -> None:
    """However often its handler is cancelled by a stop, a message stays at attempt 1 and off the dead letters (2)."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipt = await broker.bus.publish(topic, 1)
    for stops in range(1, 6):
        async with broker.running(broker.app(topic, ledger, then=hang, retry=QUICK), grace=0):
            await ledger.begun(stops)
    async with broker.running(broker.app(topic, ledger, retry=QUICK)):
        await ledger.handled(1)
    assert ledger.attempts(receipt.id) == [1] * 6
    assert await broker.letters(topic) == []


@proves("attempts", limit=60)
async def a_release_is_never_counted(broker: BrokerUnderTest) -> None:
    """A message given back many times stays at attempt 1, and comes no nearer to the dead letters (2)."""
    topic, ledger = broker.topic(), Ledger()

    async def give_back(delivery: Delivery[Any]) -> Outcome | None:
        return Release() if len(ledger.of(delivery.message.id)) <= 25 else Ack()

    async with broker.app(topic, ledger, then=give_back, retry=QUICK).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        for count in range(1, 27):  # each has its time
            await ledger.handled(count)
    assert ledger.attempts(receipt.id) == [1] * 26
    assert await broker.letters(topic) == []


@proves("settlement")
async def a_release_waits_as_long_as_it_says(broker: BrokerUnderTest) -> None:
    """`Release(after=0.5)` brings the message back after half a second, not before, still at attempt 1 (4)."""
    topic, ledger = broker.topic(), Ledger()

    async def give_back_once(delivery: Delivery[Any]) -> Outcome | None:
        return Release(after=0.5) if len(ledger.of(delivery.message.id)) == 1 else None

    async with broker.app(topic, ledger, then=give_back_once).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        await ledger.handled(2)
    first, second = ledger.of(receipt.id)
    assert first.end is not None
    assert second.begin - first.end >= 0.5
    assert second.attempt == 1


@proves("settlement")
async def an_outcome_may_be_returned_or_raised(broker: BrokerUnderTest) -> None:
    """`Retry` and `Reject` mean the same whether they are returned or raised."""
    topic, ledger = broker.topic(), Ledger()

    async def act(delivery: Delivery[Any]) -> Outcome | None:
        outcome = Retry(after=0.1) if "retry" in delivery.payload else Reject("not wanted")
        if delivery.attempt > 1:
            return None
        if "raise" in delivery.payload:
            raise outcome
        return outcome

    async with broker.app(topic, ledger, then=act).running(broker.bus):
        receipts = {
            what: await broker.bus.publish(topic, what)
            for what in ("return retry", "raise retry", "return reject", "raise reject")
        }
        await ledger.begun(6)
        letters = await broker.letters(topic, count=2)
    for what, receipt in receipts.items():
        assert ledger.attempts(receipt.id) == ([1, 2] if "retry" in what else [1])
    assert {letter.message.id for letter in letters} == {
        receipts["return reject"].id,
        receipts["raise reject"].id,
    }
    assert {letter.reason for letter in letters} == {"not wanted"}


@proves("settlement")
async def headers_changed_by_a_handler_reach_nobody_else(broker: BrokerUnderTest) -> None:
    """What a handler does to its headers is seen by no retry, no other group and no dead letter."""
    topic, ledger, other = broker.topic(), Ledger(), Ledger()

    async def tamper(delivery: Delivery[Any]) -> Outcome | None:
        delivery.headers["tenant"] = "changed"
        delivery.headers["added"] = "by the handler"
        return Retry(after=0.1)

    tampering = broker.app(topic, ledger, then=tamper, retry=RetryPolicy(2, fixed(0.1)))
    async with broker.running(tampering, broker.app(topic, other, group="search")):
        receipt = await broker.bus.publish(topic, 1, headers={"tenant": "ours"})
        (letter,) = await broker.letters(topic, count=1)
        await other.handled(1)
    assert [dict(one.headers) for one in ledger.of(receipt.id)] == [{"tenant": "ours"}] * 2
    assert other.handlings[0].headers == {"tenant": "ours"}
    assert letter.message.headers == {"tenant": "ours"}


@proves("settlement")
async def a_message_may_be_settled_by_hand(broker: BrokerUnderTest) -> None:
    """`consume` hands out deliveries that are done, retried, given back or dead as they are settled."""
    topic = broker.topic()
    broker.uses(topic, "audit")
    await broker.bus.declare(topic, groups=["audit"])
    await broker.bus.publish_many(topic, ["ack", "retry", "release", "reject"])
    outcomes: dict[str, Outcome] = {
        "ack": Ack(),
        "retry": Retry(after=0.1),
        "release": Release(),
        "reject": Reject("by hand"),
    }
    seen: dict[str, list[int]] = {}
    async with asyncio.timeout(Patience.seconds), broker.bus.consume(topic, group="audit") as pull:
        async for delivery in pull:
            attempts = seen.setdefault(delivery.payload, [])
            attempts.append(delivery.attempt)
            await pull.settle(delivery, outcomes[delivery.payload] if len(attempts) == 1 else Ack())
            if sum(map(len, seen.values())) == 6:
                break
    assert seen == {"ack": [1], "retry": [1, 2], "release": [1, 1], "reject": [1]}
    (letter,) = await broker.letters(topic, "audit")
    assert (letter.message.body, letter.reason) == (b"reject", "by hand")


@proves("settlement")
async def a_second_settlement_changes_nothing(broker: BrokerUnderTest) -> None:
    """Settling a delivery again is a no-op: a Reject after an Ack makes no dead letter, and raises nothing."""
    topic = broker.topic()
    broker.uses(topic, "audit")
    await broker.bus.declare(topic, groups=["audit"])
    await broker.bus.publish(topic, 1)
    async with asyncio.timeout(Patience.seconds), broker.bus.consume(topic, group="audit") as pull:
        async for delivery in pull:
            await pull.settle(delivery, Ack())
            await pull.settle(delivery, Ack())
            await pull.settle(delivery, Reject("too late"))
            break
    assert await broker.letters(topic, "audit") == []
    await broker.nothing_left(topic, "audit")


@proves("settlement")
async def what_is_left_unsettled_by_hand_goes_back_uncounted(broker: BrokerUnderTest) -> None:
    """Leaving `consume` gives back what was not settled, at attempt 1, and soon (2)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "audit")
    await broker.bus.declare(topic, groups=["audit"])
    receipts = await broker.bus.publish_many(topic, list(range(5)))
    async with asyncio.timeout(Patience.seconds), broker.bus.consume(topic, group="audit") as pull:
        async for _ in pull:
            break
    left = time.monotonic()
    async with (
        broker.standstill(topic, "audit") as lost,
        broker.running(broker.app(topic, ledger, group="audit")),
    ):
        await ledger.handled(5)
        late = 10 + 2 * lost.seconds
    ledger.assert_each_once([receipt.id for receipt in receipts])
    assert {one.attempt for one in ledger.handlings} == {1}
    assert max(one.begin for one in ledger.handlings) - left < late


@proves("attempts", limit=60)
async def an_attempt_survives_the_member_that_failed(broker: BrokerUnderTest) -> None:
    """A failure that one member recorded is known to the member that handles the retry (2)."""
    topic, ledger = broker.topic(), Ledger()

    async def fail(_: Delivery[Any]) -> Outcome | None:
        return Retry()

    for delay in (1.0, 8.0):
        policy = RetryPolicy(3, fixed(delay))
        async with broker.running(broker.app(topic, ledger, member="failed", then=fail, retry=policy)):
            receipt = await broker.bus.publish(topic, 1)
            await ledger.until(lambda receipt=receipt: receipt.id in ledger.ids)  # type: ignore[misc]
        if time.monotonic() - ledger.of(receipt.id)[0].begin < delay:
            break  # else it was due before the member had left
    async with broker.running(broker.app(topic, ledger, member="next")):
        await ledger.until(lambda: len(ledger.of(receipt.id)) == 2)
    assert [(one.member, one.attempt) for one in ledger.of(receipt.id)] == [("failed", 1), ("next", 2)]
