"""Declaring, verifying, comparing, listing and deleting."""

import asyncio
import gc
import time
from dataclasses import replace
from typing import NamedTuple, NoReturn

import pytest

from messaging.adapter import Consumer, GroupSpec, RawDelivery, TopicSpec, Topology
from messaging.errors import (
    ConfigurationError,
    ConnectionFailed,
    NoGroup,
    TopicNotFound,
    UnsupportedCapability,
)
from messaging.message import Ack, Reject, Release, Retry
from messaging_rabbitmq.registry import Entries, Registry
from tests.contract.bench import ack, healthy, ids, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench


async def test_another_partition_count_is_refused_naming_both(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    await bench.group(adapter, TopicSpec("orders", partitions=2))

    for mode in ("declare", "verify"):
        with pytest.raises(
            ConfigurationError, match=r"2 partitions, unordered.*asks for 4 partitions, ordered"
        ):
            await other.declare(Topology([TopicSpec("orders", ordered=True, partitions=4)], mode=mode))


async def test_another_order_of_a_group_is_refused_naming_both(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=2)
    await bench.group(adapter, topic)

    with pytest.raises(
        ConfigurationError, match="is ordered on the broker, and this program asks for unordered"
    ):
        await adapter.declare(Topology(groups=[GroupSpec(topic, "billing", ordered=False)]))


async def test_declaring_again_changes_nothing(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m1")

    await asyncio.gather(*(one.declare(Topology(groups=[group])) for one in (adapter, other, adapter)))

    assert ids(await receive(bench.consumer(other, group), 1)) == ["m1"]
    assert [(one.topic, one.group) for one in await other.groups()] == [("orders", "billing")]


async def test_verify_finds_what_is_missing_and_creates_nothing(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    for _ in range(2):
        with pytest.raises(TopicNotFound, match="orders"):
            await other.declare(Topology([topic], mode="verify"))
    group = await bench.group(adapter, topic)
    for _ in range(2):
        with pytest.raises(TopicNotFound, match="search"):
            await other.declare(Topology(groups=[GroupSpec(topic, "search")], mode="verify"))

    await other.declare(Topology([topic], [group], mode="verify"))


async def test_off_declares_nothing_and_first_use_says_so(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    group = GroupSpec(topic, "billing")
    await adapter.declare(Topology([topic], [group], mode="off"))

    (result,) = await adapter.publish([outgoing(topic, "m1")])
    assert isinstance(result, TopicNotFound)
    with pytest.raises(TopicNotFound, match="billing"):
        await bench.consumer(adapter, group).receive(1, 0.1)
    with pytest.raises(TopicNotFound):
        await bench.consumer(adapter, GroupSpec(topic, "billing", ordered=True)).receive(1, 0.1)


async def test_where_no_tier_may_be_made_a_retry_is_held(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    await other.declare(Topology(groups=[group], mode="verify"))
    consumer = bench.consumer(other, group)
    await publish(adapter, group.topic, "m1")
    deliveries = await receive(consumer, 1)

    (held,) = await settle(consumer, deliveries, Retry(), after=1.0, failure="{}")

    assert type(held).__name__ == "Hold"
    await ack(consumer, deliveries)


async def test_where_no_tier_may_be_made_what_comes_early_is_held(bench: Bench) -> None:
    """Given back, it came again at once, hundreds of times until it was due: as a suspect, and then a dead letter."""
    early = await comes_early(bench, 0.75)

    (again,) = await receive(early.consumer, 1)

    assert (again.attempt, again.returns) == (2, 0)
    assert time.monotonic() - early.began >= 0.75


async def test_what_is_held_needs_one_timer_however_often_it_is_asked_for(bench: Bench) -> None:
    early = await comes_early(bench, 1.5)
    before, most, asked = timers(), 0, 0
    deliveries: list[RawDelivery] = []

    while not deliveries:
        asked += 1
        deliveries += await early.consumer.receive(1, 0.001)
        if asked % 20 == 0:  # to look at all objects takes long
            most = max(most, timers() - before)

    assert ids(deliveries) == ["m1"]
    assert asked > 20
    assert most <= 5


class Early(NamedTuple):
    """A message, m1, that comes early to a member which may make no tier, from a time that began at its retry."""

    consumer: Consumer
    began: float


async def comes_early(bench: Bench, after: float) -> Early:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    await other.declare(Topology(groups=[group], mode="verify"))
    await publish(adapter, group.topic, "m1")
    first = bench.consumer(adapter, group)
    deliveries = await receive(first, 1)
    began = time.monotonic()
    await settle(first, deliveries, Retry(), after=after)  # one tier is made; nobody makes that of the rest
    await first.close()
    return Early(bench.consumer(other, group), began)


def timers() -> int:
    """Those of the loop that are still to come."""
    timers = (one for one in gc.get_objects() if isinstance(one, asyncio.TimerHandle))
    return sum(not one.cancelled() for one in timers)


async def test_a_group_gets_nothing_before_its_declaration_has_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the next declaration deletes what does not answer of its queues, whoever has them."""
    adapter, publisher = await bench.adapter(), await bench.adapter()
    topic = TopicSpec("orders", partitions=2)

    async def cut_off(*_: object) -> None:
        raise ConnectionFailed("the program was killed")

    with monkeypatch.context() as patch:
        patch.setattr(Entries, "end", cut_off)
        with pytest.raises(ConnectionFailed):
            await bench.group(adapter, topic)
    before = await publisher.publish([outgoing(topic, "m1", mandatory=True)])
    await (await adapter.native.channel()).exchange_delete(adapter._session.names.exchange(topic))
    await (await bench.adapter()).declare(Topology([topic]))  # binds what is there
    anew = await publisher.publish([outgoing(topic, "m2", mandatory=True)])

    assert [type(one) for one in (*before, *anew)] == [NoGroup, NoGroup]
    group = await bench.group(adapter, topic)
    await publish(publisher, topic, "m3")
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["m3"]


async def test_an_exchange_is_not_made_anew_while_nobody_can_tell_which_groups_it_had(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without bindings it would confirm messages for no group: others take it for the topic, as it is there."""
    adapter, publisher = await bench.adapter(), await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    group = await bench.group(adapter, topic)
    await (await adapter.native.channel()).exchange_delete(adapter._session.names.exchange(topic))

    def away(*_: object, **__: object) -> NoReturn:
        raise ConnectionFailed("the node of the record is away")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "held", away)
        with pytest.raises(ConnectionFailed):
            await (await bench.adapter()).declare(Topology([topic]))
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "m1")

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["m1"]


async def test_groups_of_other_programs_are_listed_with_what_the_broker_knows(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=2)
    billing = await bench.group(adapter, topic)
    search = await bench.group(adapter, topic, "search", ordered=False)
    await publish(adapter, topic, "m1", "m2", "m3", partition=0)
    consumer = bench.consumer(adapter, search)
    (rejected, *_) = await receive(consumer, 3)
    await settle(consumer, [rejected], Reject("no"), failure="{}")
    await other.declare(Topology([topic]))

    infos = {one.group: one for one in await other.groups()}

    assert set(infos) == {"billing", "search"}
    assert (infos["billing"].lag, infos["billing"].members, infos["billing"].dead_letters) == (3, 0, 0)
    assert (infos["search"].lag, infos["search"].members, infos["search"].dead_letters) == (0, 1, 1)
    health = await healthy(adapter)
    assert {one.group for one in health.groups} == {"billing", "search"}

    await other.delete_group(billing)
    await other.delete_group(billing)
    assert [one.group for one in await adapter.groups()] == ["search"]


async def test_a_group_described_with_fewer_partitions_is_deleted_whole(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=3)
    billing = await bench.group(adapter, topic)
    await publish(adapter, topic, "m1", partition=2)

    await adapter.delete_group(replace(billing, topic=replace(topic, partitions=1)))
    await bench.group(await bench.adapter(), topic)

    (kept,) = await adapter.groups()
    assert kept.lag == 0


async def test_every_group_gets_every_message_from_its_declaration_on(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    billing = await bench.group(adapter, topic)
    await publish(adapter, topic, "m1")
    search = await bench.group(adapter, topic, "search")
    await publish(adapter, topic, "m2")

    assert ids(await receive(bench.consumer(adapter, billing), 2)) == ["m1", "m2"]
    assert ids(await receive(bench.consumer(adapter, search), 1)) == ["m2"]


async def test_a_deleted_queue_ends_the_subscription(bench: Bench) -> None:
    adapter = await bench.adapter()
    for group in (
        await bench.group(adapter),
        await bench.group(adapter, TopicSpec("clicks", ordered=True, partitions=2)),
    ):
        consumer = bench.consumer(adapter, group)
        await consumer.receive(1, 0.1)
        await adapter.delete_group(group)
        with pytest.raises(Exception, match="billing") as lost:
            while True:
                await consumer.receive(1, 5)
        assert type(lost.value).__name__ == "ConnectionFailed"
        with pytest.raises(TopicNotFound, match="deleted"):
            while True:
                try:
                    await consumer.receive(1, 1)
                except TopicNotFound:
                    raise
                except Exception:
                    continue


async def test_what_the_broker_cannot_do_is_refused(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    for group in (
        GroupSpec(topic, "billing", start="earliest"),
        GroupSpec(topic, "billing", native="theirs"),
        GroupSpec(topic, "billing", ordered=True, native="theirs"),
    ):
        with pytest.raises(UnsupportedCapability):
            await adapter.declare(Topology(groups=[group]))
    await bench.group(adapter, topic)


async def test_adopted_objects_are_used_as_they_are(bench: Bench) -> None:
    adapter = await bench.adapter(adopted_queues="limited")
    exchange, queue = f"{bench.namespace}.events", f"{bench.namespace}.inbox"
    topic = TopicSpec("orders.placed", partitions=2, native=exchange)
    group = GroupSpec(topic, "billing", native=queue)
    with pytest.raises(TopicNotFound):
        await adapter.declare(Topology([topic], [group]))
    assert adapter.native is not None
    channel = await adapter.native.channel()
    await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
    await channel.queue_declare(queue, durable=True)
    await channel.queue_bind(queue, exchange, "orders.*")
    try:
        await adapter.declare(Topology([topic], [group]))
        consumer = bench.consumer(adapter, group)
        await publish(adapter, topic, "m1", "m2", "m3")
        one, two, three = await receive(consumer, 3)
        assert type((await settle(consumer, [one], Retry(), after=1.0))[0]).__name__ == "Hold"
        await settle(consumer, [two], Release())
        await settle(consumer, [three], Reject("no"))
        (again,) = await receive(consumer, 1)
        assert again.message.id == "m2"
        await settle(consumer, [one, again], Ack())
        await adapter.delete_group(group)
        assert (await channel.queue_declare(queue, passive=True)).message_count == 0
    finally:
        await channel.queue_delete(queue)
        await channel.exchange_delete(exchange)
