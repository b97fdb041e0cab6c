"""Leases: they last while the group waits for others, and what has ended does not come to life again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from messaging.adapter import DONE, TopicSpec
from messaging.errors import ConnectionFailed
from messaging.message import Ack
from messaging_contracts.faults.proxy import LOOPBACK, Proxy
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.membership import Membership
from tests.contract.bench import Recorder, ids, outgoing, publish, receive, settle
from tests.contract.kafka.support import MORTAL, QUICK, Bench, membership, owned, receive_through

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
OTHER = TopicSpec("others", ordered=True, partitions=1)
SESSION = 2.0


@asynccontextmanager
async def pulling(*consumers: KafkaConsumer) -> AsyncIterator[None]:
    """They stay members, and take nothing."""

    async def pull(consumer: KafkaConsumer) -> None:
        while True:
            await consumer.receive(1, 0.5, paused=range(10))

    tasks = [asyncio.create_task(pull(one)) for one in consumers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def shortest(leases: Sequence[Membership]) -> list[float]:
    """What was left of each lease at the worst, until this is cancelled."""
    least = [SESSION] * len(leases)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            now = time.monotonic()
            least = [min(least[at], one.lease.deadline - now) for at, one in enumerate(leases)]
            await asyncio.sleep(0.02)
    return least


async def nowhere() -> Sequence[range]:
    """Where a leader that dies leads its group."""
    await asyncio.Event().wait()
    return []


async def test_leases_last_while_the_group_waits_for_its_dead_leader(bench: Bench) -> None:
    """The member's own, and those of its other subscriptions: a join keeps no heartbeat waiting."""
    options = {**QUICK, "session": SESSION, "heartbeat": 0.3}
    one, two = await bench.adapter(**options), await bench.adapter(**options)
    group, other_group = await bench.group(one, ORDERED), await bench.group(two, OTHER)
    leader, ownership, other_ownership = bench.consumer(one, group), Recorder(), Recorder()
    member, other = bench.consumer(two, group, ownership), bench.consumer(two, other_group, other_ownership)
    await owned(leader, 2)
    await owned(other, 1)
    async with pulling(leader, other):
        (mine,) = await owned(member, 1)
        await two.publish([outgoing(ORDERED, "one", partition=mine)])
        deliveries = await receive(member, 1)
        membership(leader)._kinds = nowhere
        watching = asyncio.create_task(shortest([membership(member), membership(other)]))
        membership(member).rejoin()
        await owned(member, 2)
        watching.cancel()
        least = await watching
        settled = await settle(member, deliveries, Ack())

    assert min(least) > SESSION / 4, least
    assert not ownership.lost
    assert not other_ownership.lost
    assert settled == [DONE]


async def test_a_join_that_nobody_answers_ends_with_the_lease(fragile: Bench, proxy: Proxy) -> None:
    adapter = await fragile.adapter(f"kafka://{LOOPBACK}:{proxy.port}", **{**MORTAL, "connect_timeout": 1})
    group, ownership = await fragile.group(adapter, OTHER), Recorder()
    await publish(adapter, OTHER, "one")
    member = fragile.consumer(adapter, group, ownership)
    await receive(member, 1)

    proxy.black_hole()
    membership(member).rejoin()
    async with asyncio.timeout(5):
        while not ownership.lost:
            with contextlib.suppress(ConnectionFailed):
                await member.receive(1, 0.2)
    await proxy.close_connections()
    proxy.heal()

    assert ids(await receive_through(member, 1)) == ["one"]


async def test_what_was_held_when_the_lease_ended_comes_again_although_the_group_never_noticed(
    bench: Bench,
) -> None:
    """The dispatcher drops what has no lease: without being given it again, nobody would ever handle it."""
    adapter, ownership = await bench.adapter(**QUICK), Recorder()
    group = await bench.group(adapter, OTHER)
    await publish(adapter, OTHER, "one")
    member = bench.consumer(adapter, group, ownership)
    (delivery,) = await receive(member, 1)

    delivery.lease.deadline = time.monotonic()
    (again,) = await receive(member, 1)

    assert ids(ownership.lost) == ["one"]
    assert ids([again]) == ["one"]
    assert again.lease.deadline > time.monotonic() > delivery.lease.deadline
    assert await settle(member, [again], Ack()) == [DONE]
