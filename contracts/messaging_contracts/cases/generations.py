"""Generations: a topic's partitions or order change while its publishers and members run (16)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from messaging import Ack, ConfigurationError, Reject, Retry, RetryPolicy, Topic, fixed
from messaging.adapter import TopicSpec
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from messaging import App, Bus, Delivery, Outcome, Receipt
    from messaging_contracts.under_test import BrokerUnderTest

INTERVAL = 0.2
"""How often the programs of these cases look for a new generation."""
GRACE = 3.0
"""Longer than they take to notice and to publish what they had begun."""
KEYS = ("ann", "bob", "cat", "dan", "eve", "fay")


@asynccontextmanager
async def programs(broker: BrokerUnderTest, *apps: App) -> AsyncGenerator[Sequence[Bus]]:
    """Each app runs on a bus of its own, and looks often; the last bus is a publisher's alone."""
    async with AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(broker.another_bus(generation_interval=INTERVAL))
            for _ in range(len(apps) + 1)
        ]
        for app, bus in zip(apps, buses, strict=False):
            await stack.enter_async_context(app.running(bus))
        yield buses


async def begin(broker: BrokerUnderTest, topic: Topic[Any], **change: Any) -> None:
    """What an operator does."""
    async with broker.another_bus() as bus:
        await bus.begin_generation(topic, grace=GRACE, **change)


def changed(topic: Topic[Any], *, partitions: int | None = None, ordered: bool | None = None) -> Topic[Any]:
    """The topic as the next deployment describes it."""
    return Topic(
        topic.name,
        partitions=topic.partitions if partitions is None else partitions,
        ordered=topic.ordered if ordered is None else ordered,
    )


@asynccontextmanager
async def publishing(bus: Bus, topic: Topic[Any]) -> AsyncGenerator[Sequence[Receipt]]:
    """Of each key rising numbers are published, one message after the other, until the block ends."""
    receipts: list[Receipt] = []
    enough = asyncio.Event()

    async def publish() -> None:
        number = 0
        while not enough.is_set():
            receipts.extend([await bus.publish(topic, number, key=key) for key in KEYS])
            number += 1
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        try:
            yield receipts
        finally:
            enough.set()


async def work(_: Delivery[Any]) -> Outcome | None:
    """A handler that takes its time, so that what may overlap does."""
    await asyncio.sleep(0.002)
    return Ack()


async def work_unevenly(delivery: Delivery[Any]) -> Outcome | None:
    """Each second message of a key takes so long that the next one is published meanwhile."""
    await asyncio.sleep(0.002 if delivery.payload % 2 else 0.03)
    return Ack()


@proves("generations", limit=60)
async def order_holds_while_the_partitions_change(broker: BrokerUnderTest) -> None:
    """Two publishers and two members run on while a topic gets more partitions; each once, keys in order (7, 16)."""
    topic, ledger, moved = broker.topic(ordered=True), Ledger(), asyncio.Event()
    one, two = (broker.app(topic, ledger, member=name, then=work) for name in ("one", "two"))
    receipts: list[Receipt] = []

    async def publish(bus: Bus, keys: Sequence[str]) -> None:
        number = 0
        while not moved.is_set() or number % 10:
            receipts.extend([await bus.publish(topic, number, key=key) for key in keys])
            number += 1
            await asyncio.sleep(0.01)

    async with programs(broker, one, two) as (first, _, third), asyncio.TaskGroup() as tasks:
        publishing = [
            tasks.create_task(publish(first, KEYS[:3])),
            tasks.create_task(publish(third, KEYS[3:])),
        ]
        await ledger.handled(30)
        await begin(broker, topic, partitions=5)
        moved.set()
        await asyncio.wait(publishing)
        await ledger.handled(len(receipts))
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])
    ledger.assert_order(KEYS)
    assert max(receipt.partition or 0 for receipt in receipts) > 1, (
        "nothing was written to the new generation"
    )


@proves("generations", limit=60)
async def a_failing_key_holds_its_messages_of_the_next_generation(broker: BrokerUnderTest) -> None:
    """What waits for its retry in the former generation is not overtaken by its key's messages in the next (8, 16)."""
    topic, ledger = broker.topic(ordered=True), Ledger()

    async def fail_for_long(delivery: Delivery[Any]) -> Outcome | None:
        return Retry(after=GRACE / 2) if delivery.payload == 0 and delivery.attempt < 5 else Ack()

    app = broker.app(topic, ledger, then=fail_for_long, retry=RetryPolicy(9, fixed(GRACE)))
    async with programs(broker, app) as (_, publisher):
        await publisher.publish(topic, 0, key="ann")
        await begin(broker, topic, partitions=5)
        for number in range(1, 4):
            await publisher.publish(topic, number, key="ann")
        await ledger.handled(8)
    assert ledger.payloads == [0, 0, 0, 0, 0, 1, 2, 3]


@proves("generations", limit=60)
async def a_backlog_in_two_generations_is_handled_in_order(broker: BrokerUnderTest) -> None:
    """A member that starts after the change handles what the former generation kept, then the next, key by key (16)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    broker.uses(topic, "billing")
    ids: list[str] = []
    await broker.bus.declare(topic, groups=["billing"])
    async with programs(broker) as (publisher,):  # it knows of no group
        for number in range(20):
            ids += [(await publisher.publish(topic, number, key=key)).id for key in KEYS]
            if number == 9:
                await begin(broker, topic, partitions=5)
    app = broker.app(changed(topic, partitions=5), ledger, then=work)
    async with programs(broker, app):
        await ledger.handled(len(ids))
        await ledger.quiet()
    ledger.assert_each_once(ids)
    ledger.assert_order(KEYS)


@proves("generations", limit=60)
async def a_topic_without_order_changes_and_loses_nothing(broker: BrokerUnderTest) -> None:
    """All that is published before, during and after the change is handled once; dead letters of both are seen (16)."""
    topic, ledger = broker.topic(), Ledger()

    async def refuse_some(delivery: Delivery[Any]) -> Outcome | None:
        first = len(ledger.of(delivery.message.id)) == 1
        return Reject("unwanted") if delivery.payload in {0, 99} and first else Ack()

    app = broker.app(topic, ledger, then=refuse_some)
    async with programs(broker, app) as (member, publisher):
        receipts = [await publisher.publish(topic, number) for number in range(50)]
        await begin(broker, topic, partitions=5)
        receipts += [await publisher.publish(topic, number) for number in range(50, 75)]
        await asyncio.sleep(2 * INTERVAL)  # by then the publisher has noticed
        receipts += [await publisher.publish(topic, number) for number in range(75, 100)]
        await ledger.handled(100)
        assert max(receipt.partition or 0 for receipt in receipts) > 1, (
            "nothing was written to the new generation"
        )
        dead = member.dead_letters(topic, group="billing")

        async def both() -> bool:
            return await dead.count() == 2

        await broker.eventually(both, "two dead letters")
        assert {letter.id async for letter in dead.browse()} == {receipts[0].id, receipts[99].id}
        assert await dead.redrive() == 2
        await ledger.handled(102)
        assert await dead.count() == 0
        (info,) = [info for info in await member.groups() if info.topic == topic.name]
        assert info.group == "billing"
    ledger.assert_each_once([receipt.id for receipt in receipts], duplicates=2)


@proves("generations", limit=60)
async def an_unordered_topic_becomes_ordered(broker: BrokerUnderTest) -> None:
    """After the change the topic keeps order; what was published before is handled all the same (16)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    async with programs(broker) as (publisher,):
        await publisher.declare(topic, groups=["billing"])
        before = [(await publisher.publish(topic, number, key="ann")).id for number in range(10)]
    await begin(broker, topic, ordered=True)
    ordered = changed(topic, ordered=True)
    async with programs(broker, broker.app(ordered, ledger, then=work)) as (_, publisher):
        after = [(await publisher.publish(ordered, number, key="bob")).id for number in range(30)]
        await ledger.handled(40)
    ledger.assert_each_once([*before, *after])
    ledger.assert_order(("bob",))


@proves("generations", limit=60)
async def order_begins_while_programs_run(broker: BrokerUnderTest) -> None:
    """A topic becomes ordered under two members: each once, and what is published after the change in order (16)."""
    topic, ledger = broker.topic(), Ledger()
    one, two = (broker.app(topic, ledger, member=name, then=work_unevenly) for name in ("one", "two"))
    async with programs(broker, one, two) as (_, _, publisher):
        async with publishing(publisher, topic) as receipts:
            await ledger.handled(18)
            await begin(broker, topic, ordered=True)
            await asyncio.sleep(2 * INTERVAL)  # by then the publisher has noticed
            before = len(receipts) + len(KEYS)  # a round was perhaps under way
            await ledger.handled(before + 36)
        await ledger.handled(len(receipts))
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])
    after = Ledger()
    ids = {receipt.id for receipt in receipts[before:]}
    after.handlings = [one for one in ledger.handlings if one.id in ids]
    after.assert_order(KEYS)


@proves("generations", limit=60)
async def order_is_given_up_while_programs_run(broker: BrokerUnderTest) -> None:
    """A topic becomes unordered under two members: each once, and a key waits for nothing after the change (16)."""
    topic, ledger, go_on = broker.topic(ordered=True), Ledger(), asyncio.Event()

    async def work_or_hang(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.key == "slow" and delivery.payload == 0:
            await go_on.wait()
        return await work_unevenly(delivery)

    one, two = (broker.app(topic, ledger, member=name, then=work_or_hang) for name in ("one", "two"))
    async with programs(broker, one, two) as (_, _, publisher):
        async with publishing(publisher, topic) as receipts:
            await ledger.handled(18)
            before = {receipt.id for receipt in receipts}
            await begin(broker, topic, ordered=False)
            await asyncio.sleep(2 * INTERVAL)  # by then the publisher has noticed
            first, second = [(await publisher.publish(topic, number, key="slow")).id for number in range(2)]
            try:
                await ledger.until(lambda: second in {one.id for one in ledger.done})
            finally:
                go_on.set()
        await ledger.handled(len(receipts) + 2)
        await ledger.quiet()
    ledger.assert_each_once([first, second, *(receipt.id for receipt in receipts)])
    former = Ledger()
    former.handlings = [one for one in ledger.handlings if one.id in before]
    former.assert_order(KEYS)


@proves("generations", limit=60)
async def a_straggler_of_the_former_generation_is_handled(broker: BrokerUnderTest) -> None:
    """What a publisher that has not noticed writes to the former generation is handled, also after its end (16)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    async with (
        broker.another_bus(generation_interval=600) as slow,
        programs(broker, broker.app(topic, ledger)) as (_, publisher),
    ):
        first = await slow.publish(topic, 1, key="ann")
        await begin(broker, topic, partitions=5)
        second = await publisher.publish(topic, 2, key="bob")
        await ledger.handled(2)
        late = await slow.publish(topic, 3, key="cat")
        await ledger.handled(3)
    ledger.assert_each_once([first.id, second.id, late.id])


@proves("generations", limit=60)
async def a_group_that_comes_after_the_change_gets_what_follows(broker: BrokerUnderTest) -> None:
    """A group that begins when the former generation has ended waits for nothing there (16, 18)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    async with broker.another_bus() as operator:
        await operator.begin_generation(topic, partitions=5, grace=0.1)
    late = broker.app(topic, ledger, group="late")
    async with programs(broker, late) as (_, publisher):
        receipts = [await publisher.publish(topic, number, key=KEYS[number % 6]) for number in range(12)]
        await ledger.handled(12)
    ledger.assert_each_once([receipt.id for receipt in receipts])
    ledger.assert_order(KEYS)


@proves("generations", limit=60)
async def two_operators_at_once_agree_on_the_next_generation(broker: BrokerUnderTest) -> None:
    """Of two who begin different generations at once one is refused, or second; what is told is on record (16)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    async with broker.another_bus() as one, broker.another_bus() as two:
        results = await asyncio.gather(
            *(bus.begin_generation(topic, partitions=wanted) for bus, wanted in ((one, 5), (two, 7))),
            return_exceptions=True,
        )
        kept = [await bus.adapter.generations(TopicSpec(topic.name)) for bus in (one, two)]
    begun = [result for result in results if isinstance(result, TopicSpec)]
    refused = [result for result in results if isinstance(result, BaseException)]
    assert begun, f"nobody has begun a generation: {refused}"
    assert all(isinstance(error, ConfigurationError) for error in refused), refused
    assert kept[0] == kept[1]
    assert all(spec in kept[0] for spec in begun), f"{begun} was told, {kept[0]} is on record"
    async with programs(broker, broker.app(topic, ledger)) as (_, publisher):
        receipts = [await publisher.publish(topic, number) for number in range(10)]
        await ledger.handled(10)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("generations", limit=60)
async def a_program_may_describe_any_kept_generation_and_no_other(broker: BrokerUnderTest) -> None:
    """Deployments overlap: the former and the new number of partitions are accepted, another is refused (16)."""
    topic, ledger, refused = broker.topic(ordered=True), Ledger(), ""
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    await begin(broker, topic, partitions=5)
    await begin(broker, topic, partitions=5)
    for described in (topic, changed(topic, partitions=5)):
        async with broker.another_bus() as bus:
            await bus.declare(described, groups=["billing"])
            await bus.publish(described, described.partitions, key="ann")
    async with broker.another_bus() as bus:
        try:
            await bus.declare(changed(topic, partitions=7), groups=["billing"])
        except ConfigurationError as error:
            refused = str(error)
    assert topic.name in refused, refused
    assert "5 partitions" in refused, refused
    assert "7 partitions" in refused, refused
    async with programs(broker, broker.app(changed(topic, partitions=5), ledger)):
        await ledger.handled(2)
    assert ledger.payloads == [2, 5]
