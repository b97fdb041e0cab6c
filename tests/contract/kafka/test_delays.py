"""Delayed retries of unordered groups: a ladder of delays, never early, several steps where needed."""

import asyncio
import time
from random import Random

import pytest

from messaging.adapter import DONE, TopicSpec
from messaging.message import Ack, Retry
from messaging_contracts.standstill import standstill
from messaging_kafka import tiers
from messaging_kafka.library import Place
from tests.contract.bench import ack, ids, nothing, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, brokers_of

PLAIN = TopicSpec("orders", partitions=2)


def steps(delay: float) -> list[float]:
    """How long each step of a delay waits."""
    waits: list[float] = []
    while delay > 0:
        waits.append(tiers.delay_of(tiers.tier_for(delay)))
        delay -= waits[-1]
    return waits


@pytest.mark.parametrize("delay", [0.001, 0.125, 0.2, 1, 17.3, 59.9, 4096, 86400.0, 30 * 86400.0])
def test_the_steps_of_a_delay_are_never_early_and_an_eighth_late_at_most(delay: float) -> None:
    assert delay <= sum(steps(delay)) < delay + tiers.UNIT + 1e-6


def test_most_delays_take_few_steps() -> None:
    random = Random(3)
    assert max(len(steps(random.uniform(0, 300))) for _ in range(1000)) <= 12
    assert steps(17.3) == [16, 1, 0.25, 0.125]


async def test_a_delay_of_several_steps_is_kept_and_its_message_unchanged(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, "one", headers={"tenant": "ours"}, key="ann")
    consumer = bench.consumer(adapter, group)
    (first,) = await receive(consumer, 1)

    asked = time.monotonic()
    async with standstill(adapter.dead_letters(group).count) as lost:
        assert await settle(consumer, [first], Retry(), after=0.9, failure="{}") == [DONE]
        (second,) = await receive(consumer, 1)
        waited = time.monotonic() - asked
        late = adapter.capabilities.lateness + 0.5 + 2 * lost.seconds

    assert 0.9 <= waited < 0.9 + late
    assert (second.attempt, second.failure) == (2, "{}")
    assert second.message == first.message


async def test_a_long_delay_does_not_hold_up_a_short_one(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, "long", "short")
    consumer = bench.consumer(adapter, group)
    long, short = sorted(await receive(consumer, 2), key=lambda one: one.message.id)

    await settle(consumer, [long], Retry(), after=600.0, failure="{}")
    await settle(consumer, [short], Retry(), after=0.1, failure="{}")

    assert ids(await receive(consumer, 1)) == ["short"]
    await nothing(consumer)


async def test_all_tiers_are_consumed_by_whoever_is_there(bench: Bench) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, *map(str, range(6)))
    gone = bench.consumer(adapter, group)
    deliveries = await receive(gone, 6)
    for number, delivery in enumerate(deliveries):
        await settle(gone, [delivery], Retry(), after=number * 0.2, failure="{}")
    await gone.close()

    again = await receive(bench.consumer(other, group), 6)

    assert sorted(ids(again)) == sorted(ids(deliveries))
    assert {one.attempt for one in again} == {2}


async def test_members_share_the_due_retries_that_are_too_many_for_one(bench: Bench) -> None:
    """They were due together, in one tier: its owner would handle them one after the other, the last much too late."""
    members = [await bench.adapter(**QUICK) for _ in range(2)]
    group = await bench.group(members[0], PLAIN)
    consumers = [bench.consumer(member, group) for member in members]
    await asyncio.gather(*(nothing(consumer) for consumer in consumers))
    await publish(members[0], PLAIN, *map(str, range(60)))
    again: list[list[str]] = [[], []]

    async def work(number: int) -> None:
        while len(again[0]) + len(again[1]) < 60:
            for delivery in await consumers[number].receive(1, 0.2):
                if delivery.attempt == 1:
                    await settle(consumers[number], [delivery], Retry(), after=1.0, failure="{}")
                    continue
                await asyncio.sleep(0.05)
                again[number].append(delivery.message.id)
                await ack(consumers[number], [delivery])

    async with asyncio.timeout(30):
        await asyncio.gather(work(0), work(1))

    assert sorted(again[0] + again[1], key=int) == [str(number) for number in range(60)]
    assert min(len(handled) for handled in again) >= 10


async def test_due_retries_have_every_second_turn_beside_a_backlog(bench: Bench) -> None:
    """They are older than what waits in the topic; and however many fail again and again, the topic goes on."""
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=4)
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    failed = [f"failed {number}" for number in range(10)]
    await publish(adapter, topic, *failed)
    await settle(consumer, await receive(consumer, 10), Retry(), after=0.1, failure="{}")
    for partition in range(4):
        await publish(
            adapter, topic, *(f"{partition} {number}" for number in range(100)), partition=partition
        )
    await asyncio.sleep(0.4)  # all of them are due, and fetched

    came = [(await receive(consumer, 1))[0].message.id for _ in range(40)]

    assert came.count("failed 0") == 1
    assert {name for name in came[:24] if name in failed} == set(failed)
    assert {name[0] for name in came if name not in failed} == {"0", "1", "2", "3"}


async def test_what_was_retried_leaves_its_partition(bench: Bench) -> None:
    """The copy is stored first, then the watermark moves: nothing of a retry holds the topic's position back."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, "one", partition=0)
    consumer = bench.consumer(adapter, group)
    await settle(consumer, await receive(consumer, 1), Retry(), after=600.0, failure="{}")

    names = adapter._session.names
    committed = await brokers_of(adapter).committed(names.group(group))

    assert committed[Place(names.topic(PLAIN), 0)].offset == 1


async def test_a_thousand_retries_come_once_each_and_none_is_early(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    names = [str(number) for number in range(1000)]
    await publish(adapter, PLAIN, *names, partition=1)
    consumer = bench.consumer(adapter, group, prefetch=1000)
    due: dict[str, float] = {}
    deliveries = await receive(consumer, 1000)
    for start in range(0, 1000, 100):
        part = deliveries[start : start + 100]
        after = 0.1 * (start % 300) / 100 + 0.05
        due |= dict.fromkeys(ids(part), time.time() + after)
        await settle(consumer, part, Retry(), after=after, failure="{}")
    seen: list[str] = []
    early: list[str] = []
    while len(seen) < 1000:
        part = await receive(consumer, 1)
        part += await consumer.receive(500, 0)
        early += [one.message.id for one in part if time.time() < due[one.message.id]]
        seen += ids(part)
        await ack(consumer, part)

    assert early == []
    assert sorted(seen) == sorted(names)
    assert await settle(consumer, [], Ack()) == []


async def test_what_changes_its_tier_while_its_member_leaves_comes_once(bench: Bench) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, "one")
    leaving = bench.consumer(adapter, group)
    await settle(leaving, await receive(leaving, 1), Retry(), after=0.3, failure="{}")
    stored, confirmed = asyncio.Event(), asyncio.Event()
    write = adapter._session.writer.write_copies

    async def slow(parcels):
        fates = await write(parcels)
        stored.set()
        await confirmed.wait()
        return fates

    adapter._session.writer.write_copies = slow  # type: ignore[method-assign]
    receiving = asyncio.create_task(leaving.receive(10, 5.0))
    await stored.wait()
    receiving.cancel()
    closing = asyncio.create_task(leaving.close())
    await asyncio.wait((closing,), timeout=0.1)
    confirmed.set()
    await closing

    consumer = bench.consumer(other, group)
    assert ids(await receive(consumer, 1)) == ["one"]
    await nothing(consumer, 1.0)
