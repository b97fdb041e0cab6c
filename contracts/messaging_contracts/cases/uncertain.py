"""Publishes whose confirmation is lost: the caller is told, or the message is sent again and stored once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from messaging import PublishUncertain, UnsupportedCapability
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging import Receipt
    from messaging.adapter import Adapter, Outgoing
    from messaging.errors import PublishError


def losing(confirmations: int) -> Callable[[Adapter], Adapter]:
    """An adapter that stores every batch, and does not hear of it so many times."""

    def wrap(adapter: Adapter) -> Adapter:
        publish, left = adapter.publish, confirmations

        async def lose(messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
            nonlocal left
            results = await publish(messages)
            if left <= 0:
                return results
            left -= 1
            return [PublishUncertain("the confirmation was lost") for _ in messages]

        setattr(adapter, "publish", lose)  # noqa: B010  a method of one object
        return adapter

    return wrap


def one_key(_: Any) -> str:
    """All of a topic have the same."""
    return "k"


@proves("delivery")
async def a_publish_with_an_unknown_fate_says_so(broker: BrokerUnderTest) -> None:
    """Without a confirmation `publish` raises PublishUncertain; the message may have come all the same, once (20)."""
    topic, ledger = broker.topic(), Ledger()
    async with (
        broker.app(topic, ledger).running(broker.bus),
        broker.another_bus(wrap=losing(1)) as publisher,
    ):
        try:
            await publisher.publish(topic, 1, id="the first")
        except PublishUncertain:
            uncertain = True
        else:
            uncertain = False
        await publisher.publish(topic, 2, id="the second")
        await ledger.handled(2)
        await ledger.quiet()
    assert uncertain
    ledger.assert_each_once(["the first", "the second"])


@proves("delivery")
async def health_tells_of_publishes_that_are_not_taken(broker: BrokerUnderTest) -> None:
    """Until one succeeds health is not green and says why, also in a program without subscriptions (26)."""
    topic = broker.topic()
    broker.uses(topic, "billing")
    async with broker.another_bus(wrap=losing(1)) as publisher:
        await publisher.declare(topic, groups=["billing"])
        await broker.health(publisher, "green")
        try:
            await publisher.publish(topic, 1)
        except PublishUncertain:
            pass
        else:
            raise AssertionError("a lost confirmation was taken for a receipt")
        meanwhile = await broker.health(publisher, "yellow")
        await publisher.publish(topic, 2)
        await broker.health(publisher, "green")
    assert "the confirmation was lost" in (meanwhile.last_error or "")


@proves("idempotent_publish")
async def a_publish_with_an_unknown_fate_is_stored_once_where_that_is_asked(broker: BrokerUnderTest) -> None:
    """With `idempotent_publish` it is sent again until it is confirmed: one copy, in order, and a receipt (7, 20)."""
    topic, ledger = broker.topic(ordered=True, key=one_key), Ledger()
    async with (
        broker.app(topic, ledger).running(broker.bus),
        broker.another_bus(wrap=losing(3), idempotent_publish=True) as publisher,
    ):
        receipts = [await publisher.publish(topic, number) for number in range(4)]
        receipts += await publisher.publish_many(topic, range(4, 8))
        await ledger.handled(len(receipts))
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])
    assert ledger.payloads == list(range(8))


@proves("idempotent_publish")
async def a_message_without_order_is_stored_once_or_refused(broker: BrokerUnderTest) -> None:
    """Where only some topics can do it, publishing to another raises UnsupportedCapability, and nothing is sent."""
    topic, ledger = broker.topic(), Ledger()
    published: list[str] = []
    async with (
        broker.app(topic, ledger).running(broker.bus),
        broker.another_bus(wrap=losing(1), idempotent_publish=True) as publisher,
    ):
        able = publisher.adapter.publishes_once(publisher.catalogue.spec(topic)).level != "unsupported"
        try:
            published += [receipt.id for receipt in await publisher.publish_many(topic, range(5))]
        except UnsupportedCapability:
            assert not able
        published.append((await broker.bus.publish(topic, "sentinel")).id)
        await ledger.handled(len(published))
        await ledger.quiet()
    ledger.assert_each_once(published)
    assert len(published) == (6 if able else 1)
