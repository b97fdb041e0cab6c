"""The ladder of delay tiers, and what a group keeps for how long."""

import asyncio
import math
import random

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError
from messaging_rabbitmq.tiers import all_tiers, tier_for
from tests.contract.rabbitmq.support import Bench, publish


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

    async with asyncio.timeout(5):
        while (await adapter.groups())[0].lag:
            await asyncio.sleep(0.05)

    with pytest.raises(ConfigurationError, match="retention"):
        await adapter.declare(
            Topology(groups=[GroupSpec(TopicSpec("orders", partitions=2, retention=9.0), "billing")])
        )
