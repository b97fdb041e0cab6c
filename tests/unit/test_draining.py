import asyncio

import pytest

from messaging import App
from messaging.adapter import DONE, SettleError
from messaging.errors import (
    ConnectionFailed,
)
from messaging.message import Ack, Release, Retry
from messaging_memory.consumer import MemoryConsumer
from tests.unit.scripted import Bench, Work, acking, later, raw
from tests.unit.topics import jobs

DOWN = SettleError(ConnectionFailed("down"))


# drain


async def test_a_drain_finishes_what_runs_and_starts_nothing_more():
    work = Work()
    async with Bench(work, concurrency=1, grace=30.0).running() as bench:
        await bench.put(raw("1", "a"), raw("2", "a"), raw("3", "b"))
        bench.dispatcher.stop()
        await bench.clock.advance(29)
        assert not bench.task.done()
        work.finish("1")
        await bench.clock.settle()

        assert bench.task.done()
        assert bench.consumer.settled == [("1", Ack())]
        assert bench.consumer.closed
        assert work.started == ["1"]


async def test_a_drain_cancels_after_its_grace_and_gives_back():
    work = Work()
    async with Bench(work, grace=30.0).running() as bench:
        await bench.put(raw("1"))
        bench.dispatcher.stop()
        await bench.clock.advance(30)

        assert bench.task.done()
        assert bench.consumer.settled == [("1", Release())]


async def test_a_drain_does_not_wait_for_parked_keys_or_suspects():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", "a"), raw("run", "b"))
        work.finish("1", Retry(after=3600))
        await bench.put(raw("s", "c", returns=3))
        bench.dispatcher.stop()
        await bench.clock.settle()
        work.finish("run")
        await bench.clock.settle()

        assert bench.task.done()
        assert bench.consumer.isolated == []


async def test_what_is_held_on_the_broker_while_draining_keeps_its_lease_until_the_member_has_left():
    """On an ordered group the partition goes with it, and takes what still runs."""
    work = Work()
    async with Bench(work, lease=3.0, grace=30.0).running() as bench:
        await bench.put(raw("failed", "a"), raw("runs", "b"))
        bench.dispatcher.stop()
        await bench.clock.settle()
        work.finish("failed", Retry(after=60))
        await bench.clock.settle()
        await bench.clock.advance(1)
        assert sorted(bench.consumer.extended[-1]) == ["failed", "runs"]
        work.finish("runs")
        await bench.clock.settle()

        assert bench.task.done()


async def test_a_failure_that_is_held_while_draining_is_left_to_the_broker():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", "a"))
        bench.dispatcher.stop()
        await bench.clock.settle()
        work.finish("1", Retry(after=60))
        await bench.clock.settle()

        assert bench.task.done()
        assert bench.consumer.outcomes(Retry) == ["1"]


async def test_a_drain_without_grace_ends_without_time():
    work = Work()
    async with Bench(work, grace=0.0).running() as bench:
        await bench.put(raw("1"))
        bench.dispatcher.stop()
        await bench.clock.settle()

        assert bench.task.done()
        assert bench.consumer.settled == [("1", Release())]


async def test_a_drain_waits_for_a_settlement_that_is_slow_but_not_for_ever():
    bench = Bench(acking, grace=30.0)
    bench.consumer.on_settle = lambda settlements: later(bench.clock, 10, [DONE])
    async with bench.running():
        await bench.put(raw("1"))
        bench.dispatcher.stop()
        await bench.clock.advance(10)
        assert bench.task.done()
    assert bench.counters.acked == 1

    stuck = Bench(acking, grace=30.0)
    stuck.consumer.on_settle = lambda settlements: later(stuck.clock, 0, [DOWN])
    async with stuck.running():
        await stuck.put(raw("1"))
        stuck.dispatcher.stop()
        await stuck.clock.advance(36)
        assert stuck.task.done()
    assert stuck.counters.acked == 0


async def test_a_settlement_that_hangs_stops_no_stop():
    bench = Bench(acking, grace=30.0)
    bench.consumer.on_settle = lambda settlements: asyncio.Event().wait()
    bench.running_task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"), raw("2", "b"))
    bench.dispatcher.stop()
    await bench.clock.advance(60)

    assert bench.task.done()
    assert bench.task.exception() is None
    assert bench.consumer.closed
    assert bench.counters.acked == 0


async def test_a_settlement_that_hangs_stops_no_cancellation():
    bench = Bench(acking, grace=30.0)
    bench.consumer.on_settle = lambda settlements: asyncio.Event().wait()
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))
    task.cancel()
    await bench.clock.advance(10)

    assert task.cancelled()
    assert bench.consumer.closed


async def test_cancelling_gives_back_what_was_not_settled():
    work = Work()
    bench = Bench(work)
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1", "a"), raw("2", "b"))
    work.finish("2", Retry(after=60))
    await bench.clock.settle()

    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert work.cancelled == ["1"]
    assert bench.consumer.outcomes() == ["2"]
    assert bench.consumer.closed


@pytest.mark.parametrize("rounds", range(1, 12))
async def test_a_cancellation_at_any_moment_of_a_drain_closes_the_consumer(rounds):
    work = Work()
    bench = Bench(work, grace=0.0)
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))
    bench.dispatcher.stop()
    for _ in range(rounds):
        await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait((task,))

    assert bench.consumer.closed
    assert work.running == set()
    assert all(one.done() for one in bench.dispatcher._workers._tasks)


# a random life


async def test_a_stop_that_is_cancelled_gives_back_what_it_holds(bus, clock, monkeypatch):
    app, leave, leaving, left = App("a"), MemoryConsumer.close, asyncio.Event(), asyncio.Event()

    async def leave_slowly(self):
        leaving.set()
        await left.wait()
        await leave(self)

    @app.subscribe(jobs)
    async def handle(job: str): ...

    async def run():
        async with app.running(bus):
            await clock.settle()

    monkeypatch.setattr(MemoryConsumer, "close", leave_slowly)
    running = asyncio.create_task(run())
    await leaving.wait()
    running.cancel()
    await clock.settle()
    left.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert [info.members for info in await bus.groups()] == [0]
