"""The ladder of delay tiers, and what a group keeps for how long."""

import asyncio
import math
import random
import time

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, TopicNotFound
from messaging.message import Retry
from messaging_contracts.standstill import standstill
from messaging_rabbitmq.answering import answers
from messaging_rabbitmq.tiers import all_tiers, tier_for
from messaging_rabbitmq.topology import LONGEST_RETENTION
from tests.contract.bench import publish, receive, settle
from tests.contract.clocks import clock_wrong_by
from tests.contract.rabbitmq.support import Bench


def test_steps_are_never_early_take_the_largest_tier_and_end() -> None:
    assert all_tiers()[0] == 125 and all_tiers()[-1] == 4_096_000 and len(all_tiers()) == 16
    for after in [
        0.001,
        0.125,
        0.126,
        1,
        17.3,
        4096,
        4097,
        100_000,
        *(random.uniform(0, 9000) for _ in range(50)),
    ]:
        remaining, steps = after, 0
        while milliseconds := tier_for(remaining):
            assert milliseconds in all_tiers()
            remaining -= milliseconds / 1000
            steps += 1
        assert -0.1251 <= remaining <= 0
        assert steps <= 17 + after / 4096
    assert tier_for(0) == tier_for(-1) == 0
    assert tier_for(math.inf) == 4_096_000


async def test_retention_bounds_what_waits_for_a_group_and_cannot_change_in_silence(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2, retention=0.3)
    await bench.group(adapter, topic)
    await publish(adapter, topic, "m1")

    async with asyncio.timeout(15):
        while (await adapter.groups())[0].lag:
            await asyncio.sleep(0.05)

    with pytest.raises(ConfigurationError, match="retention"):
        await adapter.declare(
            Topology(groups=[GroupSpec(TopicSpec("orders", partitions=2, retention=9.0), "billing")])
        )


async def test_a_retention_beyond_rabbitmqs_limit_is_refused_before_anything_is_declared(
    bench: Bench,
) -> None:
    adapter = await bench.adapter()

    for retention in (LONGEST_RETENTION + 1, 1e30):
        with pytest.raises(ConfigurationError, match="'orders' asks for a retention .* 315360000 s"):
            await bench.group(adapter, TopicSpec("orders", partitions=2, retention=retention))

    with pytest.raises(TopicNotFound):
        await adapter.declare(Topology(topics=[TopicSpec("orders", partitions=2)], mode="verify"))


async def test_the_longest_retention_is_one_that_rabbitmq_takes(bench: Bench) -> None:
    await bench.group(await bench.adapter(), TopicSpec("orders", partitions=2, retention=LONGEST_RETENTION))


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_a_members_wrong_clock_makes_its_retries_neither_late_nor_early_for_others(
    bench: Bench, ahead: float
) -> None:
    """0.3 s are two tiers: what is left after the first is told to whoever gets it then (5)."""
    wrong, right = await bench.adapter(), await bench.adapter()
    group = await bench.group(wrong)
    await right.declare(Topology(groups=[group]))
    await publish(wrong, group.topic, "m1")
    consumer = bench.consumer(wrong, group)
    delivery = await receive(consumer, 1)

    async with standstill(right.dead_letters(group).count) as lost:
        began = time.monotonic()
        with clock_wrong_by(ahead):
            await settle(consumer, delivery, Retry("busy"), after=0.3)
            await consumer.close()
        (again,) = await receive(bench.consumer(right, group), 1)
        waited, late = time.monotonic() - began, 2 * lost.seconds

    assert again.attempt == 2
    assert 0.3 <= waited < 2.5 + late


async def test_a_copy_that_waited_in_the_groups_queue_waits_no_more_for_the_member_that_wrote_it(
    bench: Bench,
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m1")
    consumer = bench.consumer(adapter, group)

    await settle(consumer, await receive(consumer, 1), Retry("busy"), after=1.75)
    await asyncio.sleep(2)

    assert len(await consumer.receive(1, 0.4)) == 1, "it waited once more for the rest"


async def test_a_tier_that_is_asked_whether_it_answers_counts_no_delivery(bench: Bench) -> None:
    """RabbitMQ 4.0 takes a message out of a queue after 20 of them, however long it was to wait."""
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m1")
    consumer = bench.consumer(adapter, group)
    await settle(consumer, await receive(consumer, 1), Retry(), after=64)
    tier = adapter._session.names.tier(group, 64_000)

    assert all([await answers(adapter._session.settings, tier) for _ in range(3)])

    kept = await (await adapter.native.channel()).basic_get(tier)
    assert kept.body == b"m1"
    assert not (kept.header.properties.headers or {}).get("x-delivery-count")
