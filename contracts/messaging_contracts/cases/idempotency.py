"""Idempotency: one id, one effect, for each group, as long as the store remembers."""

from __future__ import annotations

import asyncio
from typing import Any

from messaging import (
    App,
    ConfigurationError,
    Delivery,
    Outcome,
    Reject,
    Release,
    Retry,
    RetryPolicy,
    connect,
    fixed,
)
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest


@proves("idempotency")
async def one_id_is_handled_once(broker: BrokerUnderTest) -> None:
    """A message that is published again under its id is not handled again (23)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger, idempotent=True).running(broker.bus):
        for _ in range(3):
            await broker.bus.publish(topic, "same", id=f"{topic.name}-1")
            await ledger.handled(1)
        others = await broker.bus.publish_many(topic, ["other"] * topic.partitions)
        await ledger.handled(1 + len(others))
        await ledger.quiet()
    ledger.assert_each_once([f"{topic.name}-1", *(receipt.id for receipt in others)])
    assert await broker.letters(topic) == []


@proves("idempotency")
async def members_know_what_the_others_have_handled(broker: BrokerUnderTest) -> None:
    """What one member has handled, another does not handle again (23)."""
    topic, ledger = broker.topic(), Ledger()
    for member in ("one", "two"):
        async with broker.running(broker.app(topic, ledger, member=member, idempotent=True)) as (bus,):
            await bus.publish(topic, "same", id=f"{topic.name}-1")
            other = await bus.publish(topic, member)
            await ledger.until(lambda other=other: {f"{topic.name}-1", other.id} <= set(ledger.ids))  # type: ignore[misc]
            await ledger.quiet()
    assert len(ledger.of(f"{topic.name}-1")) == 1


@proves("idempotency")
async def what_did_not_succeed_is_handled_again(broker: BrokerUnderTest) -> None:
    """A failure, a release or a rejection leaves no mark: the next delivery under the id runs the handler (23)."""
    topic, ledger = broker.topic(), Ledger()
    outcomes: dict[str, list[Outcome]] = {
        "retry": [Retry(after=0.1)],
        "release": [Release()],
        "reject": [Reject("unwanted")],
    }

    async def act(delivery: Delivery[Any]) -> Outcome | None:
        left = outcomes[delivery.payload]
        return left.pop() if left else None

    app = broker.app(topic, ledger, then=act, idempotent=True, retry=RetryPolicy(3, fixed(0.1)))
    async with app.running(broker.bus):
        for payload in list(outcomes):
            await broker.bus.publish(topic, payload, id=f"{topic.name}-{payload}")
        await ledger.until(lambda: len(ledger.of(f"{topic.name}-reject")) == 1)
        await broker.letters(topic, count=1)
        await broker.bus.publish(topic, "reject", id=f"{topic.name}-reject")
        await ledger.handled(6)
    assert {name: len(ledger.of(f"{topic.name}-{name}")) for name in outcomes} == dict.fromkeys(outcomes, 2)


@proves("idempotency")
async def a_copy_that_comes_meanwhile_waits(broker: BrokerUnderTest) -> None:
    """While one member handles a message, a second copy of it is neither run nor failed nor lost (23)."""
    topic, ledger, go_on = broker.topic(), Ledger(), asyncio.Event()

    async def wait(_: Delivery[Any]) -> Outcome | None:
        await go_on.wait()
        return None

    apps = [
        broker.app(topic, ledger, member=name, then=wait, idempotent=True, retry=RetryPolicy(1))
        for name in ("one", "two")
    ]
    async with broker.running(*apps):
        for _ in range(4):
            await broker.bus.publish(topic, "same", id=f"{topic.name}-1")
        await ledger.begun(1)
        await ledger.quiet()
        go_on.set()
        await ledger.handled(1)
        await ledger.quiet()
    assert len(ledger.handlings) == 1
    assert await broker.letters(topic) == []


@proves("idempotency")
async def each_group_handles_for_itself(broker: BrokerUnderTest) -> None:
    """What one group has handled, another group still handles (23)."""
    topic, billing, search = broker.topic(), Ledger(), Ledger()
    async with broker.running(
        broker.app(topic, billing, idempotent=True),
        broker.app(topic, search, group="search", idempotent=True),
    ):
        receipt = await broker.bus.publish(topic, 1)
        await billing.handled(1)
        await search.handled(1)
    billing.assert_each_once([receipt.id])
    search.assert_each_once([receipt.id])


@proves("idempotency")
async def one_id_for_two_payloads_is_an_error(broker: BrokerUnderTest) -> None:
    """A second message under a known id, with another payload, is a dead letter and not taken for handled (23)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger, idempotent=True).running(broker.bus):
        await broker.bus.publish(topic, "one", id=f"{topic.name}-1")
        await ledger.handled(1)
        await broker.bus.publish(topic, "two", id=f"{topic.name}-1")
        (letter,) = await broker.letters(topic, count=1)
    assert ledger.payloads == ["one"]
    assert letter.message.body == b"two"
    assert letter.error is not None
    assert letter.error.type.endswith("IdempotencyConflict")


@proves("idempotency")
async def idempotency_needs_a_store(broker: BrokerUnderTest) -> None:
    """`idempotent=True` without a store raises at start, and names what is missing (23)."""
    topic, ledger, error = broker.topic(), Ledger(), ""
    app = broker.app(topic, ledger, idempotent=True)
    async with connect(broker.target.url) as bus:
        try:
            async with app.running(bus):
                pass
        except ConfigurationError as raised:
            error = str(raised)
    assert "store" in error


@proves("idempotency")
async def an_idempotent_responder_repeats_its_reply(broker: BrokerUnderTest) -> None:
    """A request that is asked again under its key gets the stored reply; the responder does not run again (22, 23)."""
    charge, app = broker.endpoint("charge", str, int), App("payments")
    handled: list[str] = []

    @app.respond(charge, idempotent=lambda message: message.headers["order"])
    async def answer(order: str) -> int:
        handled.append(order)
        return len(handled)

    async with app.running(broker.bus), broker.another_bus() as requester:
        replies = [
            await requester.request(charge, "order", headers={"order": "1"}, timeout=Patience.seconds)
            for _ in range(3)
        ]
        assert (
            await requester.request(charge, "another", headers={"order": "2"}, timeout=Patience.seconds) == 2
        )
    assert replies == [1, 1, 1]
    assert handled == ["order", "another"]
