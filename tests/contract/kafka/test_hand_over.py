"""Partitions that go from one member to another: what a next owner redoes, and what a former one may still settle."""

import asyncio
import time

from messaging.adapter import DONE, Hold, SettleError, TopicSpec
from messaging.errors import LeaseLost
from messaging.message import Ack, Release, Retry
from messaging_kafka.consumer import KafkaConsumer
from tests.contract.bench import Recorder, ack, ids, nothing, publish, receive, settle
from tests.contract.kafka.support import MORTAL, QUICK, Bench, owned

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
ONE = TopicSpec("orders", ordered=True, partitions=1)


async def test_a_handed_over_partition_redoes_only_what_was_not_done(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, *map(str, range(10)))
    first = bench.consumer(adapter, group)
    deliveries = await receive(first, 8)
    await ack(first, [deliveries[at] for at in (0, 1, 3, 4, 6)])
    await first.close()

    again = await receive(bench.consumer(adapter, group), 5)

    assert ids(again) == ["2", "5", "7", "8", "9"]
    assert {(one.attempt, one.returns, one.guard) for one in again} == {(1, 0, "none")}


async def test_after_a_crash_what_was_committed_is_not_redone_and_the_rest_is_counted(bench: Bench) -> None:
    adapter = await bench.adapter(**MORTAL)
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, *map(str, range(5)))
    dead = bench.consumer(adapter, group)
    deliveries = await receive(dead, 5)
    await ack(dead, [deliveries[0], deliveries[2]])
    await silence(dead)

    again = await receive(bench.consumer(await bench.adapter(**QUICK), group), 3)

    assert ids(again) == ["1", "3", "4"]
    assert {(one.attempt, one.returns) for one in again} == {(1, 1)}


async def silence(consumer: KafkaConsumer) -> None:
    """Make it a dead member: no heartbeat, no word."""
    assert consumer._partitions is not None
    task = consumer._partitions.membership._task
    assert task is not None
    task.cancel()
    await asyncio.wait((task,))
    await consumer._fetcher.close()


async def test_a_dead_member_is_fenced(bench: Bench) -> None:
    adapter, other = await bench.adapter(**MORTAL), await bench.adapter(**QUICK)
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, "one")
    ownership = Recorder()
    dead = bench.consumer(adapter, group, ownership)
    (delivery,) = await receive(dead, 1)
    await silence(dead)
    heir = bench.consumer(other, group)
    (again,) = await receive(heir, 1)
    assert dead._partitions is not None
    dead._partitions.membership.lease.deadline = time.monotonic() + 100  # as if its clock had stood still

    (result,) = await settle(dead, [delivery], Ack())
    await ack(heir, [again])

    assert isinstance(result, SettleError)
    assert isinstance(result.error, LeaseLost)
    assert again.fence > delivery.fence
    await nothing(heir)


async def test_a_member_that_joins_takes_its_part_without_stopping_the_rest(bench: Bench) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    topic = TopicSpec("orders", ordered=True, partitions=4)
    group = await bench.group(adapter, topic)
    ownership = Recorder()
    first = bench.consumer(adapter, group, ownership)
    assert len(await owned(first, 4)) == 4
    second = bench.consumer(other, group)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(owned(second, 2))
        assert len(await owned(first, 2)) == 2

    assert len(ownership.revoked) == 2
    assert ownership.lost == []
    kept = set(await owned(first)) - set(ownership.revoked)
    assert kept == set(range(4)) - set(ownership.revoked)


async def test_settling_during_a_rebalance_deadlocks_nobody(bench: Bench) -> None:
    """A lock that is held across the poll and wanted in the revocation stops both members for good."""
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *map(str, range(20)), partition=0)
    await publish(adapter, ORDERED, *map(str, range(20, 40)), partition=1)
    ownership = Recorder()
    first = bench.consumer(adapter, group, ownership)
    held = await receive(first, 40)

    async def settle_what_is_going(partitions) -> None:
        going = [one for one in held if one.partition in partitions]
        results = await settle(first, going, Ack())
        assert results == [DONE] * len(going)

    ownership.on_revoked = settle_what_is_going
    receiving = asyncio.create_task(first.receive(1, 20))
    second = bench.consumer(other, group)
    await owned(second, 1)
    receiving.cancel()
    await asyncio.wait((receiving,))

    assert len(ownership.revoked) == 1
    await nothing(second)


async def test_a_handler_that_never_ends_delays_a_hand_over_by_the_drain_at_most(bench: Bench) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "one", partition=0)
    await publish(adapter, ORDERED, "two", partition=1)
    ownership = Recorder()
    deadlines: list[float] = []

    async def wait_for_ever(partitions) -> None:
        deadlines.append(time.monotonic())
        await asyncio.sleep(0.5)

    ownership.on_revoked = wait_for_ever
    first = bench.consumer(adapter, group, ownership)
    await receive(first, 2)
    second = bench.consumer(other, group)

    (again,) = await receive(second, 1)

    assert again.partition in ownership.revoked
    assert time.monotonic() - deadlines[0] < 5
    assert (again.attempt, again.returns) == (1, 0)


async def test_a_held_retry_keeps_its_attempt_and_its_delay_at_the_next_owner(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, "one", "two", key="ann")
    first = bench.consumer(adapter, group)
    one, _ = await receive(first, 2)

    (held,) = await settle(first, [one], Retry(), after=60.0, failure="{}")
    await first.close()
    one, two = await receive(bench.consumer(adapter, group), 2)

    assert isinstance(held, Hold)
    assert (one.message.id, one.attempt) == ("one", 2)
    assert 50 < one.hold <= 60
    assert (two.message.id, two.attempt, two.hold) == ("two", 1, 0.0)


async def test_a_release_is_not_counted_wherever_it_ends(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, "one")
    for _ in range(3):
        consumer = bench.consumer(adapter, group)
        (one,) = await receive(consumer, 1)
        (held,) = await settle(consumer, [one], Release())
        assert isinstance(held, Hold)
        await consumer.close()
    (one,) = await receive(bench.consumer(adapter, group), 1)

    assert (one.attempt, one.returns, one.hold) == (1, 0, 0.0)


async def test_a_marked_message_that_comes_back_after_a_crash_trips_the_guard_alone(bench: Bench) -> None:
    adapter = await bench.adapter(**MORTAL)
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, "poison", "neighbour")
    consumer = bench.consumer(adapter, group)
    poison, neighbour = await receive(consumer, 2)
    assert await consumer.isolate(poison)
    assert poison.guard == "alone"
    await silence(consumer)

    poison, neighbour = await receive(bench.consumer(await bench.adapter(**QUICK), group), 2)

    assert (poison.message.id, poison.guard) == ("poison", "tripped")
    assert (neighbour.message.id, neighbour.guard, neighbour.returns) == ("neighbour", "none", 0)
