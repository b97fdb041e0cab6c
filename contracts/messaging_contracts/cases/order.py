"""Order: of one key, one message at a time, in the order it was published, retries included."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from math import isfinite
from typing import Any

from messaging import (
    Ack,
    ConfigurationError,
    Delivery,
    Message,
    NoGroup,
    Outcome,
    PublishError,
    Receipt,
    Reject,
    Release,
    Retry,
    RetryPolicy,
    Topic,
    fixed,
)
from messaging.adapter import Outgoing, TopicSpec
from messaging_contracts.case import proves
from messaging_contracts.cases.validation import MOST_TO_ALLOCATE
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest

KEYS = ("ann", "bob", "cat", "dan", "eve", "fay")


async def publish_in_turn(
    broker: BrokerUnderTest, topic: Topic[Any], keys: tuple[str, ...], each: int
) -> list[str]:
    """`each` messages per key, payloads rising, one after the other, so that the order is the caller's."""
    return [(await broker.bus.publish(topic, number, key=key)).id for number in range(each) for key in keys]


async def work(_: Delivery[Any]) -> Outcome | None:
    """A handler that takes its time, so that what may overlap does."""
    await asyncio.sleep(0.002)
    return Ack()


@proves("order")
async def messages_of_one_key_are_handled_in_publish_order(broker: BrokerUnderTest) -> None:
    """One member with many handlers keeps each key's order and never runs two of one key at once (7)."""
    topic, ledger = broker.topic(ordered=True, partitions=4), Ledger()
    async with broker.app(topic, ledger, then=work, concurrency=16).running(broker.bus):
        ids = await publish_in_turn(broker, topic, KEYS, each=20)
        await ledger.handled(len(ids))
        await ledger.quiet()
    ledger.assert_each_once(ids)
    ledger.assert_order(KEYS)


@proves("order")
async def publishes_made_at_once_keep_the_order_of_the_calls(broker: BrokerUnderTest) -> None:
    """Publishes of one key that were called one after the other, not awaited between, keep that order (7)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    async with broker.app(topic, ledger, concurrency=8, prefetch=100).running(broker.bus):
        async with asyncio.TaskGroup() as publishes:
            tasks = [
                publishes.create_task(broker.bus.publish(topic, number, key=key))
                for number in range(50)
                for key in KEYS[:3]
            ]
        await ledger.handled(len(tasks))
    ledger.assert_each_once([task.result().id for task in tasks])
    ledger.assert_order(KEYS[:3])


def in_one_batch(spec: TopicSpec, *keys: str) -> list[Outgoing]:
    """Messages for the adapter itself, of a topic with one partition, named by their key and place."""
    return [
        Outgoing(
            spec,
            Message(id=f"{key} {at}", topic=spec.name, body=b"1", content_type="application/json", key=key),
            partition=0,
        )
        for at, key in enumerate(keys)
    ]


@proves("order")
async def nothing_is_stored_behind_a_message_of_its_key_that_is_too_large(broker: BrokerUnderTest) -> None:
    """In a batch, what is behind a message that the adapter refused fails with it; other keys go on (7)."""
    topic, ledger = broker.topic(ordered=True, partitions=1), Ledger()
    most = broker.capabilities.max_message_bytes
    if most > MOST_TO_ALLOCATE:
        return
    batch = in_one_batch(broker.bus.catalogue.spec(topic), "ann", "ann", "bob", "ann")
    batch[1].message = replace(batch[1].message, body=b'"%s"' % (b"x" * most))
    async with broker.app(topic, ledger).running(broker.bus):
        results = await broker.bus.adapter.publish(batch)
        stored = [result.id for result in results if isinstance(result, Receipt)]
        await ledger.handled(len(stored))
        await ledger.quiet()
    ledger.assert_each_once(stored)
    assert stored[:1] == ["ann 0"] and "bob 2" in stored, results
    assert isinstance(results[3], PublishError) or isinstance(results[1], Receipt), results


@proves("no_group")
async def nothing_is_stored_behind_a_message_of_its_key_that_no_group_gets(broker: BrokerUnderTest) -> None:
    """In a batch, what is behind a message that must have a group, and has none, fails with it (7)."""
    topic, ledger = broker.topic(ordered=True, partitions=1), Ledger()
    await broker.bus.declare(topic)
    batch = in_one_batch(broker.bus.catalogue.spec(topic), "ann", "ann")
    batch[0].mandatory = True
    refused, behind = await broker.bus.adapter.publish(batch)
    async with broker.app(topic, ledger).running(broker.bus):
        again = await broker.bus.adapter.publish(batch)
        await ledger.handled(2)
        await ledger.quiet()
    ledger.assert_each_once([one.message.id for one in batch])
    assert isinstance(refused, NoGroup)
    assert isinstance(behind, PublishError)
    assert all(isinstance(result, Receipt) for result in again), again


@proves("order")
async def keys_are_handled_side_by_side(broker: BrokerUnderTest) -> None:
    """Order is per key only: the messages of different keys, even of one partition, run at the same time (7)."""
    topic, ledger, together = broker.topic(ordered=True, partitions=1), Ledger(), asyncio.Event()

    async def wait_for_the_other(_: Delivery[Any]) -> Outcome | None:
        if len(ledger.running) == 2:
            together.set()
        await asyncio.wait_for(together.wait(), Patience.seconds)
        return Ack()

    async with broker.app(topic, ledger, then=wait_for_the_other, concurrency=2).running(broker.bus):
        await broker.bus.publish(topic, 1, key="ann")
        await broker.bus.publish(topic, 2, key="bob")
        await ledger.handled(2)
    assert [one.attempt for one in ledger.handlings] == [1, 1]


@proves("order")
async def order_holds_while_members_come_and_go(broker: BrokerUnderTest) -> None:
    """A member joins and another leaves mid-flow: nothing lost, nothing reordered, nothing twice (7, 13)."""
    topic, ledger = broker.topic(ordered=True, partitions=4), Ledger()
    one, two, three = (
        broker.app(topic, ledger, member=name, then=work, concurrency=4, prefetch=8)
        for name in ("one", "two", "three")
    )
    each = 40
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as second:
        async with broker.running(one):
            publishing = tasks.create_task(publish_in_turn(broker, topic, KEYS, each=each))
            await ledger.handled(20)
            await second.enter_async_context(broker.running(two))
            await ledger.handled(60)
        async with broker.running(three):
            await ledger.handled(each * len(KEYS))
    ledger.assert_each_once(publishing.result())
    ledger.assert_order(KEYS)


@proves("order")
async def no_key_is_handled_by_two_members_at_once(broker: BrokerUnderTest) -> None:
    """Two members share the partitions, both take part, and a key is never in the hands of both (7)."""
    topic, ledger = broker.topic(ordered=True, partitions=4), Ledger()
    one, two = (
        broker.app(topic, ledger, member=name, then=work, concurrency=8, prefetch=8)
        for name in ("one", "two")
    )

    numbers = itertools.count()
    ids: list[str] = []

    async def one_round() -> None:
        number = next(numbers)
        ids.extend([(await broker.bus.publish(topic, number, key=key)).id for key in KEYS])

    async def both_take_part() -> bool:
        await one_round()
        await ledger.handled(len(ids))
        return bool(ledger.by("one") and ledger.by("two"))

    async with broker.running(one, two):
        await broker.eventually(both_take_part, "both members take part")
        for _ in range(20):
            await one_round()
        await ledger.handled(len(ids))
    ledger.assert_each_once(ids)
    ledger.assert_order(KEYS)


@proves("order")
async def a_failing_message_keeps_its_successors_behind_it(broker: BrokerUnderTest) -> None:
    """While a message waits for its retry, no later message of its key is handled (7, 8)."""
    topic, ledger = broker.topic(ordered=True), Ledger()

    async def fail_twice(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=0.15) if delivery.payload == 0 and delivery.attempt < 3 else Ack()

    async with broker.app(topic, ledger, then=fail_twice, concurrency=8).running(broker.bus):
        ids = await publish_in_turn(broker, topic, ("ann",), each=4)
        await ledger.handled(6)
    assert ledger.payloads == [0, 0, 0, 1, 2, 3]
    assert ledger.attempts(ids[0]) == [1, 2, 3]
    assert ledger.most_at_once() == 1


@proves("order", limit=60)
async def a_failing_key_does_not_stall_other_keys(broker: BrokerUnderTest) -> None:
    """While one key waits for its retry, the others of the same partition are handled (8)."""
    for waits in (1.0, 8.0):
        if await others_go_on(broker, waits):
            return
    raise AssertionError("the others had to wait for ann")


async def others_go_on(broker: BrokerUnderTest, waits: float) -> bool:
    """Whether two keys were handled while a third waited for so many seconds: a slow machine may need more of them."""
    topic, ledger = broker.topic(f"waits-{waits:g}", ordered=True, partitions=1), Ledger()

    async def fail_ann_once(delivery: Delivery[Any]) -> Outcome | None:
        failing = (delivery.key, delivery.payload, delivery.attempt) == ("ann", 0, 1)
        return Retry(after=waits) if failing else Ack()

    app = broker.app(topic, ledger, then=fail_ann_once, prefetch=4)
    await broker.bus.declare(app)
    ann = await publish_in_turn(broker, topic, ("ann",), each=8)
    others = await publish_in_turn(broker, topic, ("bob", "cat"), each=5)
    async with app.running(broker.bus):
        await ledger.until(lambda: len(ledger.with_key("bob")) + len(ledger.with_key("cat")) == 10)
        waited = len(ledger.with_key("ann")) > 1
        await ledger.handled(8 + 10 + 1)
    assert ledger.attempts(ann[0]) == [1, 2]
    ledger.assert_each_once([*ann, *others], duplicates=1)
    ledger.assert_order(("ann", "bob", "cat"))
    return not waited


@proves("order")
async def a_release_lets_no_successor_overtake(broker: BrokerUnderTest) -> None:
    """A message that is given back, at once or for later, comes again before the later ones of its key (4, 7)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    outcomes = [Release(), Release(after=0.2)]

    async def give_back_twice(delivery: Delivery[Any]) -> Outcome | None:
        times = len(ledger.of(delivery.message.id))
        return outcomes[times - 1] if delivery.payload == 0 and times <= 2 else Ack()

    app = broker.app(topic, ledger, then=give_back_twice, concurrency=8)
    await broker.bus.declare(app)
    ids = await publish_in_turn(broker, topic, ("ann",), each=4)
    async with app.running(broker.bus):
        await ledger.handled(6)
    assert ledger.payloads == [0, 0, 0, 1, 2, 3]
    assert ledger.attempts(ids[0]) == [1, 1, 1]


@proves("order")
async def a_dead_letter_lets_its_key_go_on(broker: BrokerUnderTest) -> None:
    """When a message has become a dead letter, the next of its key is handled, and not before."""
    topic, ledger = broker.topic(ordered=True), Ledger()

    async def reject_the_first(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.payload == 0 and delivery.attempt == 1:
            return Retry(after=0.1)
        return Reject("unwanted") if delivery.payload == 0 else Ack()

    async with broker.app(topic, ledger, then=reject_the_first).running(broker.bus):
        ids = await publish_in_turn(broker, topic, ("ann",), each=3)
        await ledger.until(lambda: 2 in ledger.payloads)
        (letter,) = await broker.letters(topic, count=1)
    assert letter.message.id == ids[0]
    assert ledger.payloads == [0, 0, 1, 2]


@proves("order")
async def a_group_may_stop_a_key_rather_than_skip_a_message(broker: BrokerUnderTest) -> None:
    """With `on_exhausted="hold_key"` an exhausted message is tried on, its key waits, other keys go on (11)."""
    topic, ledger = broker.topic(ordered=True), Ledger()

    async def fail_ann(delivery: Delivery[Any]) -> Outcome | None:
        stuck = delivery.payload == 0 and delivery.key == "ann" and len(ledger.with_key("ann")) < 5
        return Retry() if stuck else Ack()

    policy = RetryPolicy(2, fixed(0.1))
    app = broker.app(topic, ledger, then=fail_ann, retry=policy, on_exhausted="hold_key")
    async with app.running(broker.bus):
        await publish_in_turn(broker, topic, ("ann", "bob"), each=2)
        await ledger.until(lambda: [one.payload for one in ledger.with_key("ann")] == [0, 0, 0, 0, 0, 1])
        await ledger.until(lambda: [one.payload for one in ledger.with_key("bob")] == [0, 1])
    assert await broker.letters(topic) == []


@proves("order")
async def an_empty_key_is_a_key(broker: BrokerUnderTest) -> None:
    """Messages with the empty key are ordered among themselves as those of any other key (10)."""
    topic, ledger = broker.topic(ordered=True, partitions=4), Ledger()
    async with broker.app(topic, ledger, then=work, concurrency=8).running(broker.bus):
        ids = await publish_in_turn(broker, topic, ("",), each=15)
        await ledger.handled(len(ids))
    ledger.assert_each_once(ids)
    ledger.assert_order(("",))


@proves("order")
async def a_new_owner_has_a_larger_fence(broker: BrokerUnderTest) -> None:
    """Where settlements are fenced, the fence grows when a partition changes its owner (9)."""
    topic, ledger = broker.topic(ordered=True, partitions=1), Ledger()
    for member in ("one", "two"):
        async with broker.running(broker.app(topic, ledger, member=member)):
            await broker.bus.publish(topic, 1, key="ann")
            await ledger.until(lambda member=member: bool(ledger.by(member)))  # type: ignore[misc]
    first, second = ledger.handlings
    assert second.fence >= first.fence
    if broker.capabilities.fenced:
        assert second.fence > first.fence


@proves("order")
async def a_delay_longer_than_may_be_held_is_a_dead_letter(broker: BrokerUnderTest) -> None:
    """`Retry(after)` beyond `max_hold` ends with the cause `delay_unsupported`; within it, it is held (8)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    longest = broker.capabilities.max_hold

    async def ask_for_too_much(_: Delivery[Any]) -> Outcome | None:
        return Retry("later", after=longest + 1 if isfinite(longest) else 30 * 86400.0)

    async with broker.app(topic, ledger, then=ask_for_too_much).running(broker.bus):
        receipt = await broker.bus.publish(topic, 1, key="ann")
        if isfinite(longest):
            (letter,) = await broker.letters(topic, count=1)
            assert (letter.id, letter.cause) == (receipt.id, "delay_unsupported")
        else:
            await ledger.begun(1)
            await ledger.quiet()
            assert await broker.letters(topic) == []
    assert ledger.attempts(receipt.id) == [1]


@proves("order")
async def a_policy_longer_than_may_be_held_is_refused_at_start(broker: BrokerUnderTest) -> None:
    """A retry policy on an ordered group that may exceed `max_hold` raises at start, and clamps nothing (8)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    longest = broker.capabilities.max_hold
    delay = longest + 1 if isfinite(longest) else 30 * 86400.0
    app, refused = broker.app(topic, ledger, retry=RetryPolicy(3, fixed(delay))), False
    try:
        async with app.running(broker.bus):
            pass
    except ConfigurationError:
        refused = True
    assert refused == isfinite(longest)


@proves("order")
async def a_backlog_is_handled_in_order_and_at_once(broker: BrokerUnderTest) -> None:
    """A group that finds a backlog handles it in order, without waiting for leases or new messages."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    ids = await publish_in_turn(broker, topic, KEYS, each=10)
    started = time.monotonic()
    async with broker.standstill(topic) as lost, broker.running(broker.app(topic, ledger, concurrency=8)):
        await ledger.handled(len(ids))
        late = 10 + 2 * lost.seconds
    ledger.assert_each_once(ids)
    ledger.assert_order(KEYS)
    assert max(one.begin for one in ledger.handlings) - started < late
