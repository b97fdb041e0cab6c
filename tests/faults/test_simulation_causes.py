"""A simulated history excuses what was injected, and nothing more."""

from __future__ import annotations

import asyncio
from collections import deque
from random import Random

import pytest

from messaging import Ack, Release
from messaging.adapter import GroupSpec, Settlement, Subscription, TopicSpec
from messaging.testing import VirtualClock
from messaging_contracts.faults import History, Kept, Struck
from messaging_contracts.simulation.adapter import FaultyAdapter, FaultyConsumer
from messaging_contracts.simulation.faults import LATENCIES, Faults
from messaging_contracts.simulation.loop import ProcessClock, Stalled, VirtualLoop
from messaging_contracts.simulation.requested import Requested
from messaging_contracts.simulation.store import LATE, FaultyStore, Outage
from messaging_memory.store import MemoryStore
from tests.unit.scripted import ScriptedAdapter, ScriptedConsumer, raw

GROUP = GroupSpec(TopicSpec("orders", ordered=True), "billing", ordered=True)


class Ways(Faults):
    """Each way takes as long as a test says."""

    ways = deque((0.0,))

    def delay(self):
        return self.ways.popleft() if len(self.ways) > 1 else self.ways[0]


KEY_LEASE = 30.0


class Bench:
    """One consumer that takes everything, and what its history excuses."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.history = History()
        self.clock = ProcessClock(self.loop)
        self.faults = Ways(Random(0), self.history)
        self.delays(0.0)
        self.inner = inner = ScriptedConsumer(VirtualClock())
        adapter = FaultyAdapter(
            ScriptedAdapter(inner.clock, inner),
            self.faults,
            self.clock,
            "m1",
            window=1000,
            cut=lambda: None,
            lapse=lambda: None,
            drained=lambda: False,
            unstored=tuple,
            in_hand=(),
            requested=Requested(),
            problem=pytest.fail,
        )
        self.consumer = FaultyConsumer(adapter, inner, Subscription(GROUP, prefetch=32, concurrency=4))

    def delays(self, *seconds: float) -> None:
        """How long the next ways take; the last one tells of all that follow."""
        self.faults.ways = deque(seconds)

    async def release(self, *partitions: int) -> list[str]:
        """Give a message of each partition back; which of them the history takes for interrupted from now on."""
        await self.consumer.settle(
            [Settlement(raw(f"of-{number}", partition=number), Release()) for number in partitions]
        )
        return self.excused

    @property
    def excused(self) -> list[str]:
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


@pytest.mark.parametrize("delay", [0.01, 4.0])
def test_a_settlement_that_is_cut_off_is_excused_where_a_fault_held_it_up(bench: Bench, delay: float):
    async def leave():
        bench.delays(delay)
        settling = asyncio.create_task(bench.consumer.settle([Settlement(raw("m1"), Ack())]))
        await asyncio.sleep(delay / 2)
        settling.cancel()
        await asyncio.wait([settling])
        await bench.consumer.close()

    bench.loop.run_until_complete(leave())
    assert bench.excused == (["m1"] if delay > max(LATENCIES) else [])


def test_what_is_on_its_way_keeps_its_lease_while_nobody_receives(bench: Bench):
    async def leave():
        bench.inner.put(raw("m1"))
        bench.delays(0.0, 1.0)
        receiving = asyncio.create_task(bench.consumer.receive(10, 1.0))
        await asyncio.sleep(0.5)
        receiving.cancel()
        return await bench.consumer.extend([raw("m0")], 30.0)

    assert bench.loop.run_until_complete(leave()) == [True]
    assert bench.inner.extended == [["m0", "m1"]]


def test_a_store_that_is_far_away_is_a_cause_while_it_is(bench: Bench):
    store = FaultyStore(
        MemoryStore(clock=bench.clock),
        bench.faults,
        bench.clock,
        Outage(),
        lease=KEY_LEASE,
        requested=Requested(),
        member="m1",
        record=bench.history.record,
    )

    async def begin():
        bench.delays(KEY_LEASE * LATE + 1.0, 0.0)
        asking = asyncio.create_task(store.begin(":orders:billing:m1", digest="", lease=KEY_LEASE))
        await asyncio.sleep(0.5)
        told = [
            (event.how, event.id, event.group) for event in bench.history.events if isinstance(event, Kept)
        ]
        await asking
        return told

    assert bench.loop.run_until_complete(begin()) == [("missed", "m1", "billing")]


@pytest.mark.parametrize("delay", [0.0, 1e-3])
def test_what_repeats_for_ever_ends(delay: float):
    async def repeat():
        while True:
            await asyncio.sleep(delay)

    loop = VirtualLoop()
    with pytest.raises(Stalled, match="repeats"):
        loop.run_until_complete(repeat())
    asyncio.gather(*asyncio.all_tasks(loop)).cancel()
    loop.close()
