import asyncio

from messaging.adapter import DONE, Hold, SettleError, Settlement
from messaging.errors import LeaseLost
from messaging.message import Ack, Release, Retry


def names(deliveries):
    return [delivery.message.id for delivery in deliveries]


async def test_one_member_owns_all_and_hands_over_half_when_another_joins(world, owner):
    await world.declare(ordered=True, partitions=4)
    busy = asyncio.Event()

    async def until_idle(_):
        await busy.wait()

    listening = owner(until_idle)
    first, second = world.consumer(listening), world.consumer()
    await first.receive(1, 0)
    assert first.status().partitions == {0, 1, 2, 3}

    await second.receive(1, 0)
    await world.clock.settle()
    assert second.status().partitions == set()
    assert listening.revoked == [([2, 3], world.clock.monotonic() + first.lease)]
    busy.set()
    await world.clock.settle()

    assert first.status().partitions == {0, 1}
    assert second.status().partitions == {2, 3}


async def test_a_partition_in_hand_over_yields_nothing_new(world, owner):
    await world.declare(ordered=True, partitions=2)
    busy = asyncio.Event()

    async def until_idle(_):
        await busy.wait()

    first, second = world.consumer(owner(until_idle)), world.consumer()
    await world.publish(world.outgoing(id="running", key="k", partition=1))
    (running,) = await first.receive(1, 0)
    await second.receive(1, 0)
    await world.publish(world.outgoing(id="next", key="k", partition=1))

    assert not await first.receive(10, 0)
    assert not await second.receive(10, 0)
    assert await first.settle([Settlement(running, Ack())]) == [DONE]
    busy.set()
    await world.clock.settle()

    (delivery,) = await second.receive(10, 0)
    assert delivery.message.id == "next"
    assert delivery.fence > running.fence


async def test_a_hand_over_that_does_not_end_is_ended(world, owner):
    await world.declare(ordered=True, partitions=2)

    async def never(_):
        await asyncio.Event().wait()

    listening = owner(never)
    first, second = world.consumer(listening), world.consumer()
    await world.publish(world.outgoing(id="stuck", key="k", partition=1))
    (stuck,) = await first.receive(1, 0)
    await second.receive(1, 0)
    waiting = asyncio.create_task(second.receive(1, 100))

    await world.clock.advance(60)

    (delivery,) = waiting.result()
    assert delivery.message.id == "stuck"
    assert listening.lost == ["stuck"]
    (refused,) = await first.settle([Settlement(stuck, Ack())])
    assert isinstance(refused, SettleError)


async def test_what_a_member_holds_survives_a_hand_over_longer_than_its_lease(world, owner):
    await world.declare(ordered=True, partitions=2)
    busy = asyncio.Event()

    async def until_idle(_):
        await busy.wait()

    listening = owner(until_idle)
    first, second = world.consumer(listening), world.consumer()
    await world.publish(*(world.outgoing(id=f"m{n}", key="k", partition=1) for n in range(2)))
    running, unstarted = await first.receive(2, 0)
    await world.clock.advance(10)
    await second.receive(1, 0)
    await world.clock.advance(15)
    assert await first.extend([running], 30) == [True]
    await world.clock.advance(10)

    assert listening.lost == []
    assert await first.settle([Settlement(running, Ack())]) == [DONE]
    busy.set()
    await world.clock.settle()
    (delivery,) = await second.receive(10, 0)
    assert names([delivery]) == names([unstarted])
    assert delivery.returns == 0


async def test_leaving_gives_partitions_to_those_who_stay(world):
    await world.declare(ordered=True, partitions=4)
    consumers = [world.consumer() for _ in range(3)]
    for consumer in consumers:
        await consumer.receive(1, 0)
        await world.clock.settle()
    assert sorted(len(consumer.status().partitions) for consumer in consumers) == [1, 1, 2]

    await consumers[0].close()

    assert [len(consumer.status().partitions) for consumer in consumers[1:]] == [2, 2]


async def test_a_retry_is_held_and_a_later_owner_sees_it_counted(world):
    await world.declare(ordered=True)
    first, second = world.consumer(), world.consumer()
    await world.publish(world.outgoing(id="a", key="k"))
    (delivery,) = await first.receive(1, 0)

    (hold,) = await first.settle([Settlement(delivery, Retry(), after=5, failure='{"n":1}')])
    assert hold == Hold(world.clock.monotonic() + 5)
    await world.clock.advance(5)
    delivery.attempt = 2
    (hold,) = await first.settle([Settlement(delivery, Retry(), after=0, failure='{"n":2}')])
    assert isinstance(hold, Hold)
    await first.close()
    (again,) = await second.receive(1, 0)

    assert (again.attempt, again.failure, again.returns) == (3, '{"n":2}', 0)


async def test_a_held_key_stays_parked_when_its_owner_leaves_and_others_go_on(world):
    await world.declare(ordered=True, partitions=1)
    first, second = world.consumer(), world.consumer()
    await world.publish(
        world.outgoing(id="a1", key="a"), world.outgoing(id="b1", key="b"), world.outgoing(id="a2", key="a")
    )
    failing, *_ = await first.receive(3, 0)
    await first.settle([Settlement(failing, Retry(), after=60)])
    await first.close()
    await world.publish(world.outgoing(id="a3", key="a"), world.outgoing(id="b2", key="b"))

    others = await world.drained(second)
    waiting = asyncio.create_task(second.receive(10, 100))
    await world.clock.advance(59.9)
    assert not waiting.done()
    await world.clock.advance(0.1)

    assert names(others) == ["b1", "b2"]
    assert names(waiting.result()) == ["a1", "a2", "a3"]


async def test_a_delayed_release_is_held_so_that_its_key_is_not_overtaken(world):
    await world.declare(ordered=True)
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a", key="k"), world.outgoing(id="b", key="k"))
    (a,) = await consumer.receive(1, 0)

    (hold,) = await consumer.settle([Settlement(a, Release(), after=3)])
    assert hold == Hold(world.clock.monotonic() + 3)
    await consumer.close()
    await world.clock.advance(3)

    got = await world.consumer().receive(10, 0)
    assert names(got) == ["a", "b"]
    assert (got[0].attempt, got[0].returns) == (1, 0)


async def test_what_comes_back_goes_before_what_is_new(world):
    await world.declare(ordered=True, partitions=1)
    first, second = world.consumer(), world.consumer()
    await world.publish(*(world.outgoing(id=f"m{number}", key="k") for number in range(6)))
    deliveries = await first.receive(4, 0)
    await first.settle([Settlement(deliveries[0], Ack())])
    await first.settle([Settlement(delivery, Release()) for delivery in reversed(deliveries[1:3])])
    await first.close()

    assert names(await second.receive(10, 0)) == ["m1", "m2", "m3", "m4", "m5"]


async def test_the_partition_goes_with_the_lease(world, owner):
    await world.declare(ordered=True, partitions=1)
    frozen = owner()
    first, second = world.consumer(frozen), world.consumer()
    await world.publish(*(world.outgoing(id=f"m{number}", key="k") for number in range(3)))
    old = await first.receive(2, 0)
    waiting = asyncio.create_task(second.receive(10, 100))

    await world.clock.advance(30)

    new = waiting.result()
    assert names(new) == ["m0", "m1", "m2"]
    assert [delivery.returns for delivery in new] == [1, 1, 0]
    assert all(delivery.fence > old[0].fence for delivery in new)
    assert frozen.lost == ["m0", "m1"]
    results = await first.settle([Settlement(delivery, Ack()) for delivery in old])
    assert all(isinstance(result, SettleError) and isinstance(result.error, LeaseLost) for result in results)


async def test_a_living_member_that_lost_one_lease_goes_on_with_a_new_fence(world, owner):
    await world.declare(ordered=True, partitions=2)
    listening = owner()
    consumer = world.consumer(listening)
    await world.publish(world.outgoing(id="a", key="a"), world.outgoing(id="b", key="b", partition=1))
    deliveries = {delivery.message.id: delivery for delivery in await consumer.receive(2, 0)}
    await world.clock.advance(20)
    await consumer.extend([deliveries["b"]], 30)
    await world.clock.advance(10)

    assert listening.lost == ["a"]
    (again,) = await consumer.receive(10, 0)
    assert again.message.id == "a"
    assert again.fence > deliveries["a"].fence
    assert await consumer.settle([Settlement(deliveries["b"], Ack())]) == [DONE]


async def test_paused_partitions_wait_and_others_do_not(world):
    await world.declare(ordered=True, partitions=2)
    consumer = world.consumer()
    await consumer.receive(1, 0)
    waiting = asyncio.create_task(consumer.receive(10, 60, paused={0}))
    await world.clock.settle()

    await world.publish(world.outgoing(id="a", key="a", partition=0))
    await world.clock.settle()
    assert not waiting.done()
    await world.publish(world.outgoing(id="b", key="b", partition=1))

    assert names(await waiting) == ["b"]


async def test_a_failing_on_revoke_does_not_keep_the_partition(world, owner):
    await world.declare(ordered=True, partitions=2)

    async def broken(_):
        raise ZeroDivisionError

    first, second = world.consumer(owner(broken)), world.consumer()
    await first.receive(1, 0)
    await second.receive(1, 0)
    await world.clock.settle()

    assert [len(consumer.status().partitions) for consumer in (first, second)] == [1, 1]
