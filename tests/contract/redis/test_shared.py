"""Members that share all partitions."""

import asyncio
import time

import pytest

from messaging.adapter import Done, GroupSpec, SettleError, Topology
from messaging.errors import LeaseLost
from messaging.message import Ack, Reject, Release, Retry
from messaging_contracts.standstill import standstill


async def test_every_message_comes_once_with_all_it_carries(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)

    receipts = await bench.publish(adapter, group.topic, 300)
    got = await bench.drain(consumer, 300)

    assert {delivery.message.id for delivery in got} == {f"m{n}" for n in range(300)}
    assert {delivery.position for delivery in got} == {receipt.position for receipt in receipts}
    assert all(delivery.attempt == delivery.deliveries == 1 and not delivery.returns for delivery in got)
    assert await consumer.receive(10, 0.2) == []


async def test_every_group_gets_every_message_and_members_share_them(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    other = GroupSpec(group.topic, "audit")
    await adapter.declare(Topology(groups=(other,)))
    await bench.publish(adapter, group.topic, 60)

    members = [bench.consumer(adapter, group) for _ in range(3)]
    shares = [await member.receive(20, 2) for member in members]
    audit = await bench.drain(bench.consumer(adapter, other), 60)

    ids = [delivery.message.id for share in shares for delivery in share]
    assert len(ids) == len(set(ids))
    assert len({delivery.message.id for delivery in audit}) == 60


@pytest.mark.parametrize("limit", [1, 3, 40])
async def test_no_more_than_asked_for_is_taken(bench, limit):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 200)
    consumer = bench.consumer(adapter, group)

    first = await consumer.receive(limit, 10)
    others = await bench.drain(bench.consumer(adapter, group), 200 - len(first))

    assert 1 <= len(first) <= limit
    assert len({delivery.message.id for delivery in [*first, *others]}) == 200


async def test_a_cancelled_receive_loses_nothing(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    got = []

    for number in range(40):
        waiting = asyncio.create_task(consumer.receive(5, 1))
        await asyncio.sleep(0)
        await adapter.publish([bench.outgoing(group.topic, number)])
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        got += [] if isinstance(outcome, BaseException) else outcome
    got += await bench.receive(consumer, 40 - len(got), within=10)

    assert {delivery.message.id for delivery in got} == {f"m{n}" for n in range(40)}


async def test_a_retry_comes_back_when_due_never_early_with_its_failure(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    (first,) = await bench.receive(consumer, 1)

    started = time.monotonic()
    async with standstill(adapter.native.ping) as lost:
        assert await bench.settle(consumer, [first], Retry("no"), after=0.4, failure='{"n":1}') == [Done()]
        (second,) = await bench.receive(consumer, 1)
        waited = time.monotonic() - started
        late = adapter.capabilities.lateness + 2 * lost.seconds
    await bench.settle(consumer, [second], Retry("no"), after=0.0, failure='{"n":2}')
    (third,) = await bench.receive(consumer, 1)

    assert 0.4 <= waited < 0.4 + late
    assert (second.attempt, second.failure, second.returns) == (2, '{"n":1}', 0)
    assert (third.attempt, third.failure, third.deliveries) == (3, '{"n":2}', 3)
    assert first.position == second.position == third.position
    assert first.message == second.message == third.message


async def test_a_shorter_retry_does_not_wait_for_a_longer_one(bench):
    adapter = await bench.adapter(poll=30)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2)
    slow, quick = await bench.receive(consumer, 2)

    await bench.settle(consumer, [slow], Retry(), after=20.0)
    await asyncio.sleep(0.1)
    await bench.settle(consumer, [quick], Retry(), after=0.2)

    (again,) = await bench.receive(consumer, 1, within=15)
    assert again.message.id == quick.message.id


async def test_another_member_moves_the_retries_of_a_dead_one(bench):
    adapter = await bench.adapter(poll=0.2)
    group = await bench.group(adapter)
    dying, other = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    deliveries = await bench.receive(dying, 1)
    await bench.settle(dying, deliveries, Retry(), after=0.3)
    await bench.stop_short(dying)

    (again,) = await bench.receive(other, 1, within=15)

    assert again.attempt == 2


@pytest.mark.parametrize("after", [0.0, 0.3])
async def test_a_release_is_not_counted(bench, after):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    (delivery,) = await bench.receive(consumer, 1)

    for _ in range(5):
        started = time.monotonic()
        assert await bench.settle(consumer, [delivery], Release(), after=after) == [Done()]
        (delivery,) = await bench.receive(consumer, 1)
        assert time.monotonic() - started >= after

    assert (delivery.attempt, delivery.returns) == (1, 0)


@pytest.mark.parametrize("turns", range(0, 16, 3))
async def test_a_member_that_is_closed_as_a_read_begins_does_not_wait_for_its_end(bench, turns):
    adapter = await bench.adapter(block=10, lease=60)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    await bench.drain(consumer, 1)

    reading = asyncio.create_task(consumer.receive(1, 5))
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait((reading,))

    async with asyncio.timeout(5):
        await consumer.close()


async def test_close_gives_back_what_was_not_settled_uncounted_and_at_once(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    leaving, staying = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 200)
    await bench.receive(leaving, 150)

    await leaving.close()
    await leaving.close()
    got = await bench.drain(staying, 200)

    assert len({delivery.message.id for delivery in got}) == 200
    assert all(delivery.attempt == 1 and not delivery.returns for delivery in got)


async def test_the_entries_of_a_killed_member_are_taken_over_and_counted(bench):
    adapter, lasting = await bench.adapter(lease=0.6), await bench.adapter(lease=4)
    group = await bench.group(adapter)
    await lasting.declare(Topology(groups=(group,)))
    dying, other = bench.consumer(adapter, group), bench.consumer(lasting, group)
    await bench.publish(adapter, group.topic, 20)
    await bench.receive(dying, 20)
    await bench.stop_short(dying)

    got = await bench.drain(other, 20)

    assert len({delivery.message.id for delivery in got}) == 20
    assert all((delivery.attempt, delivery.returns, delivery.deliveries) == (1, 1, 2) for delivery in got)


async def test_a_member_with_a_longer_lease_keeps_it_beside_one_with_a_short_lease(bench):
    patient, hasty = await bench.adapter(lease=30), await bench.adapter(lease=0.3)
    group = await bench.group(patient)
    await hasty.declare(Topology(groups=(group,)))
    holder, other = bench.consumer(patient, group), bench.consumer(hasty, group)
    await bench.publish(patient, group.topic, 1)
    held = await bench.receive(holder, 1)

    assert await other.receive(10, 1.0) == []
    assert await bench.settle(holder, held) == [Done()]


async def test_an_extended_lease_is_not_taken_over_and_a_lost_one_is_told(bench):
    lease = 2.0
    adapter = await bench.adapter(lease=lease)
    group = await bench.group(adapter)
    holder, other = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    (held,) = await bench.receive(holder, 1)

    until = time.monotonic() + 1.2 * lease
    while time.monotonic() < until:
        assert await other.receive(1, 0.1) == []
        assert list(await holder.extend([held], lease)) == [True]
    (taken,) = await bench.receive(other, 1, within=10)

    assert list(await holder.extend([held], lease)) == [False]
    assert taken.message.id == held.message.id


async def test_what_a_member_that_lost_its_lease_wants_to_copy_is_refused(bench):
    adapter = await bench.adapter(lease=0.4)
    group = await bench.group(adapter)
    slow, other = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2)
    held = await bench.receive(slow, 2)
    await bench.receive(other, 2, within=10)

    results = await bench.settle(slow, held[:1], Retry(), after=0.0)
    results += await bench.settle(slow, held[1:], Reject("no"))

    assert all(isinstance(result, SettleError) and isinstance(result.error, LeaseLost) for result in results)
    assert await adapter.dead_letters(group).count() == 0


async def test_settling_twice_is_done(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3)
    deliveries = await bench.receive(consumer, 3)

    await bench.settle(consumer, deliveries)

    for outcome in (Ack(), Retry(), Reject("no"), Release()):
        assert await bench.settle(consumer, deliveries, outcome) == [Done()] * 3
        for delivery in deliveries:
            delivery.token.settled = False  # as after an answer that never arrived
    assert await adapter.dead_letters(group).count() == 0
    assert await consumer.receive(10, 0.3) == []


async def test_mixed_outcomes_in_one_batch_have_a_result_each(bench):
    from messaging.adapter import Settlement

    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 400)
    deliveries = await bench.receive(consumer, 400)
    outcomes = [Ack(), Retry(), Reject("no"), Release()]

    results = await consumer.settle(
        [Settlement(delivery, outcomes[n % 4], failure="{}") for n, delivery in enumerate(deliveries)]
    )
    again = await bench.drain(consumer, 200)

    assert results == [Done()] * 400
    assert await adapter.dead_letters(group).count() == 100
    assert sorted(delivery.attempt for delivery in again) == [1] * 100 + [2] * 100


async def test_a_poison_message_is_marked_before_it_runs_alone_and_trips_when_it_comes_back(bench):
    adapter = await bench.adapter(lease=1)
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 1)

    for returns in range(4):
        member = bench.consumer(adapter, group)
        (delivery,) = await bench.receive(member, 1, within=6)
        assert (delivery.returns, delivery.guard) == (returns, "none")
        if returns == 3:
            assert await member.isolate(delivery)
        await bench.stop_short(member)
    last = bench.consumer(adapter, group)
    (delivery,) = await bench.receive(last, 1, within=6)

    assert delivery.guard == "tripped"
    await bench.settle(last, [delivery], Reject("killed us", cause="lease_lost"))
    assert await adapter.dead_letters(group).count() == 1


async def test_a_suspect_that_is_released_is_not_tripped_and_a_recorded_failure_clears_it(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    (delivery,) = await bench.receive(consumer, 1)
    delivery.returns = 3
    await consumer.isolate(delivery)

    await bench.settle(consumer, [delivery], Release())
    (released,) = await bench.receive(consumer, 1)
    assert (released.guard, released.returns) == ("none", 3)
    await consumer.isolate(released)
    await bench.settle(consumer, [released], Retry(), after=0.0)
    (retried,) = await bench.receive(consumer, 1)

    assert (retried.guard, retried.returns, retried.attempt) == ("none", 0, 2)


async def test_dead_members_leave_no_consumers_behind_for_ever(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 8)
    await bench.drain(consumer, 8)
    await consumer.close()

    keys = adapter._topology.group_keys(group)
    for stream in [*keys.topic.streams, keys.retry]:
        assert await adapter.native.xinfo_consumers(stream, "billing") == []


async def test_what_is_no_retry_keeps_no_retry_back_and_is_told(bench, caplog):
    junk = [b"\xc1", b"\x07", b"\x90", b"\x91\x01", b"\x91\xa1x"]
    adapter = await bench.adapter(poll=0.1)
    group = await bench.group(adapter)
    consumer, keys = bench.consumer(adapter, group), adapter._topology.group_keys(group)
    await bench.publish(adapter, group.topic, 1)
    await adapter.native.zadd(keys.delayed, dict.fromkeys(junk, 1))

    await bench.settle(consumer, await bench.receive(consumer, 1), Retry("no"), after=0.1)

    assert [one.attempt for one in await bench.receive(consumer, 1)] == [2]
    assert await adapter.native.zcard(keys.delayed) == 0
    assert "5 entries among the delayed retries of orders/billing" in caplog.text
