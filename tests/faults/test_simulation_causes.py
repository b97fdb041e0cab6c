"""A simulated history excuses what was injected, and nothing more."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from messaging import Release
from messaging.adapter import GroupSpec, Settlement, Subscription, TopicSpec
from messaging.testing import VirtualClock
from messaging_contracts.faults import History, Struck
from messaging_contracts.simulation.adapter import FaultyAdapter, FaultyConsumer
from messaging_contracts.simulation.faults import Faults
from messaging_contracts.simulation.loop import ProcessClock, VirtualLoop
from tests.unit.scripted import ScriptedAdapter, ScriptedConsumer, raw

GROUP = GroupSpec(TopicSpec("orders", ordered=True), "billing", ordered=True)


class Bench:
    """One consumer that takes everything, and what its history excuses."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.history = History()
        self.clock = ProcessClock(self.loop)
        self.faults = Faults(Random(0), self.history)
        self.inner = inner = ScriptedConsumer(VirtualClock())
        adapter = FaultyAdapter(
            ScriptedAdapter(inner.clock, inner),
            self.faults,
            self.clock,
            "m1",
            window=1000,
            cut=lambda: None,
            lapse=lambda: None,
            leaving=lambda: False,
            unstored=tuple,
            in_hand=(),
        )
        self.consumer = FaultyConsumer(adapter, inner, Subscription(GROUP, prefetch=32, concurrency=4))

    async def release(self, *partitions: int) -> list[str]:
        """Give a message of each partition back; which of them the history takes for interrupted from now on."""
        await self.consumer.settle(
            [Settlement(raw(f"of-{number}", partition=number), Release()) for number in partitions]
        )
        return [id for event in self.history.events if isinstance(event, Struck) for id in event.ids or ()]


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.loop.close()


def test_a_hand_over_that_ends_leaves_another_that_is_under_way(bench: Bench):
    async def both():
        with bench.consumer.handing_over({0}, 1.0):
            with bench.consumer.handing_over({1}, 1.5):
                await asyncio.sleep(0.5)
            assert await bench.release(0) == []
            await asyncio.sleep(1.0)
            return await bench.release(0)

    assert bench.loop.run_until_complete(both()) == ["of-0"]


def test_a_hand_over_excuses_nothing_of_other_partitions(bench: Bench):
    async def one():
        with bench.consumer.handing_over({0}, 1.0):
            await asyncio.sleep(1.5)
            return await bench.release(0, 1)

    assert bench.loop.run_until_complete(one()) == ["of-0"]


def test_a_hand_over_that_failed_excuses_nothing_afterwards(bench: Bench):
    async def failed():
        with pytest.raises(RuntimeError), bench.consumer.handing_over({0}, 1.0):
            raise RuntimeError
        await asyncio.sleep(1.5)
        return await bench.release(0)

    assert bench.loop.run_until_complete(failed()) == []
