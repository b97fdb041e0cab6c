import asyncio

import pytest

from messaging.adapter import DONE, SettleError, Settlement
from messaging.errors import LeaseLost
from messaging.message import Ack, Reject, Release, Retry


def names(deliveries):
    return [delivery.message.id for delivery in deliveries]


async def test_members_share_and_each_message_goes_to_one(world):
    await world.declare()
    first, second = world.consumer(), world.consumer()
    await world.publish(*(world.outgoing(partition=number % 2) for number in range(10)))

    got = [*await first.receive(4, 0), *await second.receive(100, 0), *await first.receive(100, 0)]

    assert len(got) == len(set(names(got))) == 10


async def test_a_waiting_member_is_woken_by_a_publish(world):
    await world.declare()
    consumer = world.consumer()
    waiting = asyncio.create_task(consumer.receive(10, 60))
    await world.clock.settle()
    assert not waiting.done()

    await world.publish(world.outgoing(id="a"))

    assert names(await waiting) == ["a"]
    assert world.clock.monotonic() == 0


async def test_receive_returns_nothing_after_its_wait(world):
    await world.declare()
    waiting = asyncio.create_task(world.consumer().receive(10, 5))

    await world.clock.advance(4.9)
    assert not waiting.done()
    await world.clock.advance(0.1)

    assert waiting.done() and list(await waiting) == []


async def test_cancelling_a_receive_loses_nothing_and_wakes_the_next_member(world):
    await world.declare()
    first, second = world.consumer(), world.consumer()
    cancelled = asyncio.create_task(first.receive(10, 60))
    await world.clock.settle()
    waiting = asyncio.create_task(second.receive(10, 60))
    await world.clock.settle()

    publishing = asyncio.create_task(world.publish(world.outgoing(id="a")))
    await asyncio.sleep(0)
    cancelled.cancel()
    await world.clock.settle()

    assert cancelled.cancelled() and publishing.done()
    assert names(await waiting) == ["a"]


async def test_paused_partitions_yield_nothing(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a", partition=0), world.outgoing(id="b", partition=1))

    (delivery,) = await consumer.receive(10, 0, paused=[0])
    await consumer.settle([Settlement(delivery, Release())])

    assert names([delivery]) == ["b"]
    assert names(await consumer.receive(10, 0, paused=[1])) == ["a"]
    assert names(await consumer.receive(10, 0)) == ["b"]


async def test_a_release_counts_nothing_and_comes_before_what_is_new(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a"), world.outgoing(id="b"))
    (delivery,) = await consumer.receive(1, 0)

    assert await consumer.settle([Settlement(delivery, Release())]) == [DONE]
    again, new = await consumer.receive(10, 0)

    assert names([again, new]) == ["a", "b"]
    assert (again.attempt, again.deliveries, again.returns) == (1, 2, 0)


async def test_a_delayed_release_is_exact_and_uncounted(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing())
    (delivery,) = await consumer.receive(1, 0)
    await consumer.settle([Settlement(delivery, Release(), after=5)])
    waiting = asyncio.create_task(consumer.receive(10, 60))

    await world.clock.advance(4.999)
    assert not waiting.done()
    await world.clock.advance(0.001)

    (again,) = waiting.result()
    assert (again.attempt, again.returns) == (1, 0)


@pytest.mark.parametrize("after", [0.0, 0.3, 17.3, 3600.0])
async def test_a_retry_is_kept_by_the_broker_and_comes_exactly_then(world, after):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a"))
    (delivery,) = await consumer.receive(1, 0)

    results = await consumer.settle([Settlement(delivery, Retry(), after=after, failure='{"n":1}')])
    assert results == [DONE]
    await consumer.close()
    if after:
        await world.clock.advance(after - 0.01)
        assert not await world.consumer().receive(10, 0)
        await world.clock.advance(0.01)
    (again,) = await world.consumer().receive(10, 0)

    assert (again.attempt, again.failure, again.returns) == (2, '{"n":1}', 0)


async def test_two_retries_that_are_close_come_each_at_its_own_time(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a"), world.outgoing(id="b"))
    a, b = await consumer.receive(2, 0)
    await consumer.settle([Settlement(b, Retry(), after=5.03), Settlement(a, Retry(), after=5)])

    await world.clock.advance(5)
    assert names(await consumer.receive(10, 0)) == ["a"]
    await world.clock.advance(0.03)
    assert names(await consumer.receive(10, 0)) == ["b"]


async def test_a_lease_that_ends_gives_the_message_to_another(world, owner):
    await world.declare()
    slow = owner()
    first, second = world.consumer(slow), world.consumer()
    await world.publish(world.outgoing(id="a"))
    (old,) = await first.receive(1, 0)
    assert old.lease.deadline == world.clock.monotonic() + first.lease

    await world.clock.advance(29.9)
    assert not await second.receive(1, 0)
    await world.clock.advance(0.1)
    (new,) = await second.receive(1, 0)

    assert (new.attempt, new.deliveries, new.returns) == (1, 2, 1)
    assert slow.lost == ["a"]
    (refused,) = await first.settle([Settlement(old, Ack())])
    assert isinstance(refused, SettleError)
    assert isinstance(refused.error, LeaseLost)
    assert await second.settle([Settlement(new, Ack())]) == [DONE]


async def test_extending_keeps_one_delivery_and_not_its_neighbour(world, owner):
    await world.declare()
    listening = owner()
    consumer = world.consumer(listening)
    await world.publish(world.outgoing(id="a"), world.outgoing(id="b"))
    a, b = await consumer.receive(2, 0)

    for _ in range(3):
        await world.clock.advance(20)
        assert await consumer.extend([a], 30) == [True]

    assert listening.lost == ["b"]
    assert await consumer.extend([a, b], 30) == [True, False]


async def test_settling_twice_is_a_no_op(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(), world.outgoing())
    a, b = await consumer.receive(2, 0)

    assert await consumer.settle([Settlement(a, Ack()), Settlement(a, Retry())]) == [DONE, DONE]
    assert await consumer.settle([Settlement(b, Reject())]) == [DONE]
    assert await consumer.settle([Settlement(b, Ack()), Settlement(a, Ack())]) == [DONE, DONE]

    assert not await world.consumer().receive(10, 0)
    assert await world.adapter.dead_letters(world.group).count() == 1


async def test_closing_gives_back_in_order_and_uncounted(world):
    await world.declare(partitions=1)
    first, second = world.consumer(), world.consumer()
    await world.publish(*(world.outgoing(id=name) for name in "abc"))
    await first.receive(3, 0)

    await first.close()
    await first.close()
    got = await second.receive(10, 0)

    assert names(got) == ["a", "b", "c"]
    assert {(delivery.attempt, delivery.returns) for delivery in got} == {(1, 0)}


async def test_only_a_message_lost_with_its_mark_trips_the_guard(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="poison"))
    for returns in range(3):
        (delivery,) = await consumer.receive(1, 0)
        assert (delivery.returns, delivery.guard) == (returns, "none")
        await world.clock.advance(30)
    (delivery,) = await consumer.receive(1, 0)
    assert await consumer.isolate(delivery)
    await consumer.settle([Settlement(delivery, Release())])

    (released,) = await consumer.receive(1, 0)
    assert (released.returns, released.guard) == (3, "none")
    assert await consumer.isolate(released)
    await world.clock.advance(30)
    (tripped,) = await consumer.receive(1, 0)

    assert tripped.guard == "tripped"
    with pytest.raises(LeaseLost, match="poison"):
        await consumer.isolate(released)


async def test_a_recorded_failure_clears_the_returns(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing())
    await consumer.receive(1, 0)
    await world.clock.advance(30)
    (delivery,) = await consumer.receive(1, 0)
    assert delivery.returns == 1

    await consumer.settle([Settlement(delivery, Retry(), failure="{}")])
    (again,) = await consumer.receive(1, 0)

    assert (again.attempt, again.returns) == (2, 0)


async def test_a_member_that_does_nothing_for_a_lease_is_no_member_and_may_come_back(world):
    await world.declare()
    consumer = world.consumer()
    await consumer.receive(1, 0)
    assert consumer.status().connected
    assert [info.members for info in await world.adapter.groups()] == [1]

    await world.clock.advance(30)
    assert not consumer.status().connected
    assert [info.members for info in await world.adapter.groups()] == [0]
    await consumer.receive(1, 0)

    assert consumer.status().connected


async def test_health_tells_lag_age_members_and_dead_letters(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(), world.outgoing(), world.outgoing())
    await world.clock.advance(7)
    rejected, retried = await consumer.receive(2, 0)
    await consumer.settle([Settlement(rejected, Reject()), Settlement(retried, Retry(), after=60)])

    health = await world.adapter.health()

    (info,) = health.groups
    assert health.connected
    assert (info.topic, info.group, info.lag, info.members, info.dead_letters) == (
        "orders",
        "billing",
        2,
        1,
        1,
    )
    assert info.oldest == 7
