"""Members that own partitions: order, hand-over, fencing."""

import asyncio
import time

import pytest

from messaging.adapter import Done, Hold, SettleError, Settlement, Topology
from messaging.errors import ConnectionFailed, LeaseLost
from messaging.message import Ack, Reject, Release, Retry
from messaging_contracts.standstill import standstill
from messaging_redis.scripts import FENCED_READ
from tests.contract.bench import cut_off

SHORT = {"partition_lease": 0.6, "block": 0.1}
"""Options of a member that dies: a machine that stands still loses its partitions as well."""
LASTING = {"partition_lease": 4, "block": 0.1}
"""Options of one that lives."""


def order_by_key(deliveries):
    by_key = {}
    for delivery in deliveries:
        by_key.setdefault(delivery.message.key, []).append(int(delivery.message.id[1:]))
    return by_key


async def owns(member, count, within=15.0):
    """Until the member owns exactly `count` partitions."""
    until = time.monotonic() + within
    while len(member.status().partitions) != count:
        assert time.monotonic() < until, f"{member.status().partitions}, not {count}"
        await member.receive(0, 0.02)


async def test_one_member_gets_each_key_in_publish_order(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 500, keys=7)

    got = await bench.drain(consumer, 500)

    assert all(numbers == sorted(numbers) for numbers in order_by_key(got).values())
    assert len(got) == len({delivery.message.id for delivery in got}) == 500
    assert len({delivery.fence for delivery in got}) == 1


async def test_members_share_the_partitions_and_a_join_drains_the_surplus_first(bench, new_owner):
    adapter = await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    owner = new_owner()
    first, second = bench.consumer(adapter, group, owner=owner), bench.consumer(adapter, group)
    await owns(first, 4)
    finished = []

    async def finish():
        assert len(second.status().partitions) < 2
        finished.append(time.monotonic())

    owner.finish = finish
    await second.receive(0, 0.05)
    await owns(first, 2)
    await owns(second, 2)

    assert len(owner.revoked) == 2
    assert finished
    assert set(first.status().partitions) | set(second.status().partitions) == {0, 1, 2, 3}


async def test_others_are_read_on_while_a_partition_that_was_just_read_is_given_back(bench, new_owner):
    adapter = await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    owner, given_back = new_owner(), asyncio.Event()
    owner.finish = given_back.wait
    first, second = bench.consumer(adapter, group, owner=owner), bench.consumer(adapter, group)
    await owns(first, 4)
    await first.receive(100, 0.2)
    await bench.publish(adapter, group.topic, 40, keys=20)
    reading = asyncio.create_task(first.receive(100, 1))
    while first._reading is None:
        await asyncio.sleep(0)
    reading.cancel()  # what it brings is there for the next one
    await asyncio.wait((reading,))

    await second.receive(0, 0.05)
    async with asyncio.timeout(15):
        while not owner.revoked:
            await asyncio.sleep(0.01)
    await first.receive(100, 1)
    await bench.publish(adapter, group.topic, 40, keys=20)
    more = await first.receive(100, 5)

    given_back.set()
    assert more
    assert not {one.partition for one in more} & set(owner.revoked)


async def test_what_is_in_hand_when_a_partition_is_given_back_comes_again_in_order_uncounted(bench):
    adapter = await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    first, second = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 80, keys=8)
    held = await bench.receive(first, 80)
    await bench.settle(first, held[:20])

    await first.close()
    got = await bench.drain(second, 60)

    assert all(numbers == sorted(numbers) for numbers in order_by_key(got).values())
    assert {delivery.message.id for delivery in got} == {delivery.message.id for delivery in held[20:]}
    assert all((delivery.attempt, delivery.returns) == (1, 0) for delivery in got)
    assert min(delivery.fence for delivery in got) > max(delivery.fence for delivery in held)


async def test_a_killed_member_is_replaced_within_its_lease_in_order_and_counted(bench):
    adapter, lasting = await bench.adapter(**SHORT), await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    await lasting.declare(Topology(groups=(group,)))
    dying, other = bench.consumer(adapter, group), bench.consumer(lasting, group)
    await other.receive(0, 0.05)
    await dying.receive(0, 0.05)
    await owns(dying, 2)
    await owns(other, 2)
    await bench.publish(adapter, group.topic, 100, keys=10)
    in_hand = await dying.receive(100, 2)
    await bench.stop_short(dying)

    started = time.monotonic()
    async with standstill(lasting.native.ping) as lost:
        got = await bench.drain(other, 100)
        took, late = time.monotonic() - started, 2 * lost.seconds

    assert took < 4 * SHORT["partition_lease"] + late
    assert all(numbers == sorted(numbers) for numbers in order_by_key(got).values())
    returned = {delivery.message.id for delivery in in_hand}
    assert all(delivery.returns == (delivery.message.id in returned) for delivery in got)


async def test_a_member_cancelled_while_it_joins_keeps_no_partition_from_others(bench):
    adapter = await bench.adapter(partition_lease=60)
    group = await bench.group(adapter, ordered=True)
    await bench.publish(adapter, group.topic, 20, keys=8)
    for turns in range(60):
        await cut_off(bench.consumer(adapter, group), turns)

    got = await bench.drain(bench.consumer(adapter, group), 20, within=5)

    assert len(got) == 20


async def test_the_settlement_of_a_member_that_lost_its_partition_is_refused(bench, new_owner):
    adapter, lasting = await bench.adapter(**SHORT), await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    await lasting.declare(Topology(groups=(group,)))
    frozen, other = bench.consumer(adapter, group), bench.consumer(lasting, group)
    await bench.publish(adapter, group.topic, 40, keys=8)
    held = await bench.receive(frozen, 40)
    await frozen._background.stop()  # it no longer beats, as a frozen process
    again = await bench.receive(other, 40, within=10)

    outcomes = [Ack(), Retry(), Reject("no"), Ack()]
    results = await frozen.settle([Settlement(d, outcomes[n % 4]) for n, d in enumerate(held)])

    assert all(isinstance(result, SettleError) and isinstance(result.error, LeaseLost) for result in results)
    assert all(new.fence > old.fence for new in again for old in held if new.message.id == old.message.id)
    assert await bench.settle(other, again) == [Done()] * 40
    assert await adapter.dead_letters(group).count() == 0


async def test_a_member_that_finds_its_lease_gone_tells_what_it_lost_and_reads_again(bench, new_owner):
    adapter = await bench.adapter(**SHORT)
    group = await bench.group(adapter, ordered=True)
    owner = new_owner()
    consumer = bench.consumer(adapter, group, owner=owner)
    await bench.publish(adapter, group.topic, 12, keys=4)
    held = await bench.receive(consumer, 12)

    time.sleep(SHORT["partition_lease"] + 0.1)  # the loop stands still
    got = await bench.drain(consumer, 12)

    assert set(owner.lost) == set(held)
    assert all(numbers == sorted(numbers) for numbers in order_by_key(got).values())
    # Nobody else had it: that was no crash.
    assert all(delivery.returns == 0 for delivery in got)


async def test_a_retry_is_held_and_its_record_outlives_the_member(bench):
    adapter = await bench.adapter(**SHORT)
    group = await bench.group(adapter, ordered=True)
    first = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2, keys=1)
    one, two = await bench.receive(first, 2)

    before = time.monotonic()
    (held,) = await bench.settle(first, [one], Retry("no"), after=5.0, failure='{"n":1}')
    await bench.stop_short(first)
    lasting = await bench.adapter(**LASTING)
    await lasting.declare(Topology(groups=(group,)))
    second = bench.consumer(lasting, group)
    again, successor = await bench.receive(second, 2, within=10)

    assert isinstance(held, Hold)
    assert before + 5 <= held.until <= time.monotonic() + 5
    assert (again.message.id, again.attempt, again.failure, again.returns) == ("m0", 2, '{"n":1}', 1)
    assert (successor.message.id, successor.attempt) == ("m1", 1)
    # Not early at the new owner either: what is left of the delay comes along.
    assert before + 5 <= time.monotonic() + again.hold + 0.01
    assert again.hold <= 5
    assert successor.hold == 0
    assert await bench.settle(second, [again, successor]) == [Done()] * 2
    assert await adapter.native.hlen(adapter._topology.group_keys(group).failures) == 0


async def test_a_release_keeps_its_place_and_is_not_counted(bench):
    adapter = await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True)
    first = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3, keys=1)
    deliveries = await bench.receive(first, 3)

    (result,) = await bench.settle(first, deliveries[:1], Release(), after=1.0)
    await first.close()
    got = await bench.drain(bench.consumer(adapter, group), 3)

    assert isinstance(result, Hold)
    assert [delivery.message.id for delivery in got] == ["m0", "m1", "m2"]
    assert all((delivery.attempt, delivery.returns) == (1, 0) for delivery in got)


async def test_paused_partitions_yield_nothing_and_do_not_stop_the_others(bench):
    adapter = await bench.adapter(block=0.1)
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 40)
    got = []

    while len(got) < 30:
        got += await consumer.receive(100, 1, paused=(2,))

    assert {delivery.partition for delivery in got} == {0, 1, 3}
    assert await consumer.receive(100, 0.3, paused=(2,)) == []
    assert {delivery.partition for delivery in await bench.receive(consumer, 10)} == {2}


async def test_a_message_wakes_a_waiting_member_at_once(bench):
    adapter = await bench.adapter(block=5, socket_timeout=2)
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(10, 0.2) == []
    waiting = asyncio.create_task(consumer.receive(10, 4))
    await asyncio.sleep(0.1)

    async with standstill(adapter.native.ping) as lost:
        started = time.monotonic()
        await adapter.publish([bench.outgoing(group.topic, 1, "k")])
        (delivery,) = await waiting
        took, late = time.monotonic() - started, 2 * lost.seconds

    assert took < 0.5 + late
    assert delivery.message.id == "m1"


async def test_a_redriven_letter_comes_to_this_group_only_at_attempt_one(bench):
    from messaging.adapter import GroupSpec, Topology

    adapter = await bench.adapter(block=0.1)
    group = await bench.group(adapter, ordered=True)
    other = GroupSpec(group.topic, "audit", ordered=True)
    await adapter.declare(Topology(groups=(other,)))
    consumer, audit = bench.consumer(adapter, group), bench.consumer(adapter, other)
    await bench.publish(adapter, group.topic, 1, keys=1)
    await bench.settle(consumer, await bench.receive(consumer, 1), Reject("no"), failure='{"n":1}')
    await bench.drain(audit, 1)

    store = adapter.dead_letters(group)
    async with store.scan() as letters:
        (letter,) = [letter async for letter in letters]
        assert await store.redrive([(letter, letter.message, '{"n":1}')]) == [None]
    (again,) = await bench.receive(consumer, 1)

    assert (again.message, again.attempt, again.failure) == (letter.message, 1, '{"n":1}')
    assert await bench.settle(consumer, [again], Retry("no"), after=0.0, failure='{"n":2}') != [Done()]
    assert await bench.settle(consumer, [again]) == [Done()]
    assert await store.count() == 0
    assert await audit.receive(10, 0.3) == []
    assert await consumer.receive(10, 0.3) == []


async def test_a_poison_message_is_marked_and_trips_in_an_ordered_group_too(bench):
    adapter = await bench.adapter(partition_lease=1, block=0.1)
    group = await bench.group(adapter, ordered=True, partitions=1)
    await bench.publish(adapter, group.topic, 1, keys=1)

    for returns in range(4):
        member = bench.consumer(adapter, group)
        (delivery,) = await bench.receive(member, 1, within=8)
        assert (delivery.returns, delivery.guard) == (returns, "none")
        if returns == 3:
            assert await member.isolate(delivery)
        await bench.stop_short(member)
    (delivery,) = await bench.receive(bench.consumer(adapter, group), 1, within=8)

    assert delivery.guard == "tripped"


async def test_an_unordered_group_may_read_an_ordered_topic(bench):
    from messaging.adapter import GroupSpec, Topology

    adapter = await bench.adapter()
    ordered = await bench.group(adapter, ordered=True)
    loose = GroupSpec(ordered.topic, "loose", ordered=False)
    await adapter.declare(Topology(groups=(loose,)))
    await bench.publish(adapter, ordered.topic, 20, keys=4)

    got = await bench.drain(bench.consumer(adapter, loose), 20)

    assert len({delivery.message.id for delivery in got}) == 20


async def test_members_that_come_and_go_lose_and_reorder_nothing(bench, new_owner):
    adapter = await bench.adapter(**LASTING)
    group = await bench.group(adapter, ordered=True, partitions=6)
    settled, sent, stop = [], 0, asyncio.Event()

    async def run(enough=None):
        owner = new_owner()
        consumer = bench.consumer(adapter, group, owner=owner)
        handled = 0
        while not stop.is_set() and (enough is None or handled < enough):
            batch = await consumer.receive(5, 0.1)
            results = await bench.settle(consumer, batch)
            done = [d for d, result in zip(batch, results, strict=True) if isinstance(result, Done)]
            settled.extend(done)
            handled += len(done)
        await consumer.close()

    async def publish(until):
        nonlocal sent
        while sent < 600 or not until.done():
            await adapter.publish(
                [bench.outgoing(group.topic, n, str(n % 12)) for n in range(sent, sent + 10)]
            )
            sent += 10
            await asyncio.sleep(0.03)

    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        joined = asyncio.gather(*(tasks.create_task(run(enough)) for enough in (60, 30)))
        await publish(joined)
        while len({d.message.id for d in settled}) < sent:
            await asyncio.sleep(0.05)
        stop.set()

    assert len(settled) == len({d.message.id for d in settled}) == sent
    assert all(numbers == sorted(numbers) for numbers in order_by_key(settled).values())


async def test_what_a_read_took_whose_answer_was_lost_comes_first_and_uncounted(bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 10, keys=1)
    first = await bench.drain(consumer, 10)
    await bench.publish(adapter, group.topic, 10, keys=1, first=10)
    connection = consumer._connection
    run = connection.run

    async def lose_the_answer(script, keys, arguments):
        answer = await run(script, keys, arguments)
        if script is FENCED_READ and any(entries for _, entries, _ in answer[1:]):
            monkeypatch.undo()
            raise ConnectionFailed("the answer was lost")
        return answer

    monkeypatch.setattr(connection, "run", lose_the_answer)
    with pytest.raises(ConnectionFailed):
        await bench.drain(consumer, 10)
    await bench.publish(adapter, group.topic, 10, keys=1, first=20)
    rest = await bench.drain(consumer, 20)

    assert [int(one.message.id[1:]) for one in (*first, *rest)] == list(range(30))
    assert {one.returns for one in rest} == {0}
