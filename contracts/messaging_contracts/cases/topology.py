"""Topics and groups on the broker: what its record says counts, names never collide, and what is absent is told."""

from __future__ import annotations

import secrets
from typing import Any

from messaging import ConfigurationError, Delivery, NoGroup, Outcome, Receipt, Reject, Topic, TopicNotFound
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest


@proves("topology")
async def another_number_of_partitions_is_refused(broker: BrokerUnderTest) -> None:
    """A topic that exists with another number of partitions raises at start and names both numbers (16)."""
    topic = broker.topic(ordered=True, partitions=3)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    other: Topic[Any] = Topic(topic.name, ordered=True, partitions=5)
    error = ""
    async with broker.another_bus() as bus:
        try:
            await bus.declare(other, groups=["billing"])
        except ConfigurationError as raised:
            error = str(raised)
    assert topic.name in error, error
    assert "3" in error, error
    assert "5" in error, error


@proves("topology")
async def another_order_is_refused(broker: BrokerUnderTest) -> None:
    """A topic that exists unordered cannot be used as an ordered one, nor the other way round (16)."""
    for ordered in (False, True):
        topic = broker.topic("ordered" if ordered else "unordered", ordered=ordered)
        broker.uses(topic, "billing")
        await broker.bus.declare(topic, groups=["billing"])
        other: Topic[Any] = Topic(topic.name, ordered=not ordered, partitions=topic.partitions)
        refused = False
        async with broker.another_bus() as bus:
            try:
                await bus.declare(other, groups=["billing"])
            except ConfigurationError as error:
                refused = topic.name in str(error)
        assert refused


@proves("topology")
async def declaring_again_changes_nothing(broker: BrokerUnderTest) -> None:
    """Declaring what exists, by whichever bus, is no error, loses nothing and repeats nothing."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    receipts = list[Receipt]()
    for number in range(3):
        async with broker.another_bus() as bus:
            await bus.declare(topic, groups=["billing"])
            receipts.append(await bus.publish(topic, number))
    async with broker.app(topic, ledger).running(broker.bus):
        await ledger.handled(3)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("topology")
async def a_missing_topic_is_told_where_nothing_may_be_declared(broker: BrokerUnderTest) -> None:
    """With `topology="verify"` the first use of a missing topic raises TopicNotFound, and nothing is created."""
    topic, ledger, refused = broker.topic(), Ledger(), 0
    async with broker.another_bus(topology="verify") as bus:
        try:
            await bus.publish(topic, 1)
        except TopicNotFound:
            refused += 1
        try:
            async with broker.app(topic, ledger).running(bus):
                pass
        except TopicNotFound:
            refused += 1
    assert refused == 2
    async with broker.another_bus(topology="verify") as bus:
        try:
            await bus.publish(topic, 1)
        except TopicNotFound:
            refused += 1
    assert refused == 3


@proves("topology")
async def what_exists_can_be_used_without_declaring(broker: BrokerUnderTest) -> None:
    """With `topology="verify"`, topics and groups that exist are published to and consumed as usual."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    async with broker.another_bus(topology="verify") as bus, broker.app(topic, ledger).running(bus):
        receipt = await bus.publish(topic, 1)
        await ledger.handled(1)
    ledger.assert_each_once([receipt.id])


@proves("topology")
async def groups_can_be_listed_and_deleted(broker: BrokerUnderTest) -> None:
    """`groups` names the groups of a topic; a deleted one is gone with its messages and dead letters (18)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing", "search")
    await broker.bus.declare(topic, groups=["billing", "search"])
    await broker.bus.publish(topic, "old")

    async def named() -> set[str]:
        return {info.group for info in await broker.bus.groups() if info.topic == topic.name}

    assert await named() == {"billing", "search"}
    await broker.bus.delete_group(topic, group="billing")
    assert await named() == {"search"}
    await broker.bus.delete_group(topic, group="billing")
    async with broker.running(broker.app(topic, ledger)) as (bus,):
        new = await bus.publish_many(topic, ["new"] * topic.partitions)
        await ledger.handled(len(new))
    ledger.assert_each_once([receipt.id for receipt in new])


@proves("topology")
async def what_waits_in_a_group_can_be_told(broker: BrokerUnderTest) -> None:
    """`groups` and `health` tell, where the broker can, what waits, who reads, and what died (26)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing", "search")
    await broker.bus.declare(topic, groups=["billing", "search"])
    await broker.bus.publish_many(topic, list(range(5)))

    async def told(group: str, **wanted: int) -> bool:
        (info,) = [one for one in await broker.bus.groups() if (one.topic, one.group) == (topic.name, group)]
        found = {name: getattr(info, name) for name in wanted}
        return all(found[name] in {value, None} for name, value in wanted.items())

    async def reject(_: Delivery[Any]) -> Outcome:
        return Reject("no")

    await broker.eventually(lambda: told("billing", lag=5, members=0, dead_letters=0), "five wait for nobody")
    async with broker.running(broker.app(topic, ledger, then=reject)) as (bus,):
        await broker.letters(topic, count=5)
        await broker.eventually(lambda: told("billing", lag=0, members=1, dead_letters=5), "five are dead")
        await broker.eventually(
            lambda: told("search", lag=5, members=0, dead_letters=0), "five wait in the other group"
        )
        health = await broker.health(bus, "green")
        (mine,) = health.subscriptions
        assert (mine.received, mine.rejected, mine.held, mine.dead_letters) in {
            (5, 5, 0, 5),
            (5, 5, 0, None),
        }, mine
        assert f"{topic.name}/billing" not in health.groups_without_members


@proves("topology")
async def namespaces_keep_environments_apart(broker: BrokerUnderTest) -> None:
    """The same topic and group in two namespaces of one broker have nothing to do with each other (17)."""
    topic = broker.topic()
    ledgers: dict[str, Ledger] = {}
    async with (
        broker.another_bus(namespace=f"a-{secrets.token_hex(4)}") as one,
        broker.another_bus(namespace=f"b-{secrets.token_hex(4)}") as two,
    ):
        buses = {"one": one, "two": two}
        try:
            for name, bus in buses.items():
                await bus.declare(topic, groups=["billing"])
                ledgers[name] = Ledger()
            sent = {name: (await bus.publish(topic, name)).id for name, bus in buses.items()}
            for name, bus in buses.items():
                async with broker.app(topic, ledgers[name]).running(bus):
                    await ledgers[name].handled(1)
                    await ledgers[name].quiet()
        finally:
            for bus in buses.values():
                await bus.delete_group(topic, group="billing")
    for name, ledger in ledgers.items():
        ledger.assert_each_once([sent[name]])


@proves("topology")
async def names_that_look_alike_are_different_things(broker: BrokerUnderTest) -> None:
    """Names that run together, differ by case, by a separator or only at the end of their length stay apart (17)."""
    mark = secrets.token_hex(4)
    long = f"{mark}-{'x' * 185}"
    pairs = [
        (f"{mark}.a", "b"),
        (mark, "a.b"),
        (f"{mark}.a.b", "c"),
        (f"{mark}-a", "b"),
        (f"{mark}-A", "b"),
        (f"{mark}_a", "dead"),
        (mark, "a"),
        (f"{long}-1", "b"),
        (f"{long}-2", "b"),
    ]
    topics: dict[str, Topic[Any]] = {name: Topic(name, partitions=1) for name, _ in pairs}
    for name, group in pairs:
        broker.uses(topics[name], group)
        await broker.bus.declare(topics[name], groups=[group])
    sent = {name: (await broker.bus.publish(topic, name)).id for name, topic in topics.items()}
    for name, group in pairs:
        ledger = Ledger()
        async with broker.app(topics[name], ledger, group=group).running(broker.bus):
            await ledger.handled(1)
            await ledger.quiet(0.1)
        ledger.assert_each_once([sent[name]])


@proves("no_group")
async def a_publish_that_no_group_gets_can_be_told(broker: BrokerUnderTest) -> None:
    """Publishing to a topic without a group is allowed; with `mandatory=True` it raises NoGroup."""
    topic, refused = broker.topic(), False
    await broker.bus.publish(topic, 1)
    try:
        await broker.bus.publish(topic, 2, mandatory=True)
    except NoGroup:
        refused = True
    assert refused
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    assert (await broker.bus.publish(topic, 3, mandatory=True)).id
