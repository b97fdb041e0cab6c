"""Ordered groups: owners of partitions, order over retries, hand-overs and losses."""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress

import pytest

from messaging.adapter import Consumer, Done, Hold, RawDelivery, SettleError, TopicSpec
from messaging.errors import ConnectionFailed, LeaseLost, PublishError, PublishUncertain
from messaging.message import Ack, Receipt, Reject, Release, Retry
from messaging_contracts.faults.proxy import Proxy
from messaging_rabbitmq.partitioned import PartitionedConsumer
from tests.contract.bench import Recorder, ack, cut_off, ids, nothing, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

ORDERED = TopicSpec("orders", ordered=True, partitions=4)


async def owns(consumer: Consumer, number: int, *others: Consumer) -> list[RawDelivery]:
    """Until this member owns so many partitions; what came meanwhile. Members must receive to stay members."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(10):
        while len(consumer.status().partitions or ()) != number:
            for one in (consumer, *others):
                deliveries += await one.receive(1, 0.1)
    return deliveries


async def test_a_partition_is_handed_out_in_order_by_its_one_owner(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    names = [f"m{number}" for number in range(200)]
    await publish(adapter, ORDERED, *names, partition=1)

    seen: list[RawDelivery] = []
    while len(seen) < 200:
        deliveries = await consumer.receive(30, 1)
        seen += deliveries
        await ack(consumer, deliveries)

    assert ids(seen) == names
    assert {delivery.partition for delivery in seen} == {1}
    assert len({delivery.fence for delivery in seen}) == 1 and seen[0].fence > 0


async def test_a_partition_is_handed_out_before_the_others_are_taken(bench: Bench) -> None:
    # Connections that live for a second at a time let a member on a slow network take one partition, hardly all.
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=8))
    for partition in range(8):
        await publish(adapter, group.topic, f"m{partition}", partition=partition)
    far, away = await bench.behind(Proxy)
    far.delay(0.02)
    consumer = bench.consumer(away, group)

    assert len(await consumer.receive(100, 1)) < 8
    assert 0 < len(consumer.status().partitions or ()) < 8


async def test_paused_partitions_yield_nothing(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "a", partition=0)
    await publish(adapter, ORDERED, "b", partition=1)

    first = []
    while not first:
        first = await consumer.receive(10, 1, paused=[0])
    assert ids(first) == ["b"]
    assert await consumer.receive(10, 0.2, paused=[0]) == ()
    assert ids(await receive(consumer, 1)) == ["a"]


async def test_a_retry_is_held_with_its_place(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "a", "b", partition=0)
    first, second = await receive(consumer, 2)

    before = time.monotonic()
    (held,) = await settle(consumer, [first], Retry(), after=5.0, failure="{}")
    (released,) = await settle(consumer, [second], Release(after=2), after=2.0)

    after = time.monotonic()
    assert isinstance(held, Hold) and before + 4.9 < held.until < after + 5.5
    assert isinstance(released, Hold) and before + 1.9 < released.until < after + 2.5
    await nothing(consumer)
    assert await settle(consumer, [first, second], Ack()) == [Done(), Done()]


async def test_what_a_leaving_member_held_is_handed_over_in_order_before_newer_messages(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    one, two = bench.consumer(adapter, group), bench.consumer(other, group)
    await publish(adapter, ORDERED, *(f"m{number}" for number in range(200)), partition=2)
    deliveries = await receive(one, 100)
    await ack(one, [deliveries[0], deliveries[4]])
    await publish(adapter, ORDERED, "new", partition=2)

    await one.close()

    again = []
    while len(again) < 199:
        some = await receive(two, 1)
        again += some
        await ack(two, some)
    assert ids(again) == [f"m{number}" for number in range(200) if number not in {0, 4}] + ["new"]
    assert all(delivery.attempt == 1 for delivery in again)


async def test_members_share_the_partitions_and_a_surplus_is_drained_first(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    recorder = Recorder()
    one, two = bench.consumer(adapter, group, recorder), bench.consumer(other, group)
    for partition in range(4):
        await publish(adapter, ORDERED, f"a{partition}", f"b{partition}", partition=partition)
    held = await receive(one, 8)
    assert set(one.status().partitions or ()) == {0, 1, 2, 3}

    async def finish(partitions: Collection[int]) -> None:
        """The first of each surplus partition was running; the second has not started."""
        await ack(one, [d for d in held if d.partition in partitions and d.message.id.startswith("a")])

    recorder.on_revoked = finish
    await owns(two, 2)
    given = set(recorder.revoked)
    assert len(given) == 2
    assert set(two.status().partitions or ()) == given
    assert set(one.status().partitions or ()) == {0, 1, 2, 3} - given

    await two.close()
    again = await owns(one, 4)
    again += await receive(one, 2 - len(again))
    assert sorted(ids(again)) == sorted(f"b{partition}" for partition in given)


async def test_two_members_on_one_connection_share_too(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    one, two = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await one.receive(1, 0.1)
    await owns(two, 2, one)
    assert set(one.status().partitions or ()).isdisjoint(two.status().partitions or ())
    assert len(one.status().partitions or ()) == 2


async def test_nothing_is_lost_or_reordered_while_members_come_and_go(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    expected = {partition: [f"{partition}-{number}" for number in range(150)] for partition in range(4)}
    seen: dict[int, list[str]] = {partition: [] for partition in range(4)}

    async def member(until: asyncio.Event) -> None:
        own = await bench.adapter()
        recorder = Recorder()
        consumer = bench.consumer(own, group, recorder)
        pending: list[RawDelivery] = []

        async def finish(partitions: Collection[int]) -> None:
            pending[:] = [one for one in pending if one.partition not in partitions]

        recorder.on_revoked = finish
        while not until.is_set():
            pending += await consumer.receive(5, 0.05)
            while pending:
                delivery = pending.pop(0)
                seen[delivery.partition].append(delivery.message.id)
                await ack(consumer, [delivery])
        await consumer.close()

    async def source() -> None:
        for number in range(150):
            for partition in range(4):
                await publish(adapter, ORDERED, f"{partition}-{number}", partition=partition)

    ends = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(40):
        tasks.create_task(member(ends[0]))
        sending = tasks.create_task(source())
        await asyncio.sleep(0.3)
        tasks.create_task(member(ends[1]))
        await asyncio.sleep(0.8)
        tasks.create_task(member(ends[2]))
        await asyncio.sleep(0.8)
        ends[0].set()
        await sending
        while sum(map(len, seen.values())) < 600:
            await asyncio.sleep(0.05)
        for end in ends:
            end.set()

    assert seen == expected


async def test_a_lost_connection_loses_the_deliveries_and_fences_their_settlement(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await publish(adapter, ORDERED, "a", "b", partition=0)
    held = await receive(consumer, 2)
    await settle(consumer, held[:1], Retry(), after=60.0, failure="{}")

    adapter._session.consuming.abort()
    try:
        await consumer.receive(1, 5)
        raise AssertionError("the loss was not told")
    except ConnectionFailed as error:
        assert "orders" in str(error)

    assert recorder.lost == held
    (late,) = await settle(consumer, held[1:], Ack())
    assert isinstance(late, SettleError) and isinstance(late.error, LeaseLost)
    again = await receive(consumer, 2)
    assert ids(again) == ["a", "b"]
    assert (again[0].attempt, again[1].attempt) == (2, 1)
    assert 50 < again[0].hold <= 60  # what is left of the retry's delay
    assert again[1].hold == 0
    assert again[0].fence > held[0].fence


async def test_a_reject_leaves_its_place_to_the_next(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "a", "b", partition=3)
    first, second = await receive(consumer, 2)

    await settle(consumer, [first], Reject("no"), failure="{}")
    await ack(consumer, [second])

    assert await adapter.dead_letters(group).count() == 1


async def test_a_group_of_an_ordered_topic_may_give_order_up(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED, "search", ordered=False)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "a", partition=0)
    await publish(adapter, ORDERED, "b", partition=3)

    deliveries = await receive(consumer, 2)

    assert [(one.message.id, one.partition) for one in deliveries] == [("a", 0), ("b", 3)]


async def test_a_member_that_leaves_while_it_hands_over_leaves_no_lock_behind(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    for delay in (0.0, 0.002, 0.005):
        recorder = Recorder()
        revoked = asyncio.Event()

        async def finish(_: Collection[int], revoked: asyncio.Event = revoked) -> None:
            revoked.set()

        recorder.on_revoked = finish
        one, two = bench.consumer(adapter, group, recorder), bench.consumer(other, group)
        await owns(one, 4)
        await two.receive(1, 0.05)
        async with asyncio.timeout(15):
            await revoked.wait()
        await asyncio.sleep(delay)

        await one.close()

        await owns(two, 4)
        await two.close()


async def test_a_member_cancelled_while_it_claims_leaves_no_lock_behind(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    for turns in range(0, 240, 3):
        await cut_off(bench.consumer(adapter, group), turns)

    async with asyncio.timeout(5):  # sooner than `UNOWNED`
        await owns(bench.consumer(other, group), 4)


async def test_nothing_passes_a_message_whose_settlement_finds_the_connection_broken(bench: Bench) -> None:
    topic = TopicSpec("orders", ordered=True, partitions=1)
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    lost = Recorder()
    consumer = bench.consumer(adapter, group, lost)
    assert isinstance(consumer, PartitionedConsumer)
    names = [f"{number:02}" for number in range(20)]
    await publish(adapter, topic, *names, key="k")
    held = await receive(consumer, 2)
    async with asyncio.timeout(15):  # the others have come, too
        while len(consumer._owned[0].intake.waiting) < len(names) - len(held):
            await asyncio.sleep(0.01)

    adapter._session.consuming.abort()
    (result,) = await settle(consumer, held[:1], Ack())

    assert isinstance(result, SettleError)
    with pytest.raises(ConnectionFailed):
        await consumer.receive(10, 0)
    assert lost.lost == held[1:]
    again: list[RawDelivery] = []
    async with asyncio.timeout(10):
        while len(again) < len(names):
            with suppress(ConnectionFailed):
                again += await consumer.receive(20, 0.5)
    assert ids(again) == names


@pytest.mark.parametrize("known", [False, True])
async def test_nothing_of_a_key_is_sent_behind_a_message_that_the_broker_refused(
    bench: Bench, known: bool
) -> None:
    topic = TopicSpec("orders", ordered=True, partitions=1)
    adapter = await bench.adapter(confirm_each=not known)
    await bench.group(adapter, topic)
    channel = await adapter.native.channel()
    full = f"{bench.namespace}-full"
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    await channel.queue_declare(full, durable=True, arguments=arguments)
    await channel.queue_bind(full, adapter._session.names.exchange(topic), "0")
    try:
        filled: list[Receipt | PublishError] = []
        while not any(
            isinstance(one, PublishError) for one in filled
        ):  # a few are taken before it says "full"
            filled += await adapter.publish([outgoing(topic, f"fill-{n}", key="other") for n in range(20)])

        first, *behind, other = await adapter.publish(
            [*(outgoing(topic, f"m{number}", key="k") for number in range(5)), outgoing(topic, "o", key="k2")]
        )
    finally:
        await channel.queue_delete(full)

    assert isinstance(first, PublishUncertain)
    assert {type(result) for result in behind} == {PublishError}
    assert isinstance(other, PublishUncertain)
    assert all(isinstance(one, Receipt) for one in await adapter.publish([outgoing(topic, "m", key="k")]))
