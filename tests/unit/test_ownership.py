import asyncio

from messaging.adapter import DONE, Hold, Lease, SettleError
from messaging.errors import (
    ConnectionFailed,
    LeaseLost,
)
from messaging.message import Ack, Release, Retry
from messaging.workers import ABANDON_AFTER
from tests.unit.scripted import Bench, Work, acking, raw

# leases


async def test_leases_are_extended_for_all_that_is_held():
    work = Work()
    async with Bench(work, lease=30, concurrency=1).running() as bench:
        await bench.put(raw("1", "a"), raw("2", "a"), raw("3", "b"))
        work.finish("1", Retry(after=25))
        await bench.clock.advance(10)
        assert bench.consumer.extended == [["1", "2", "3"]]
        work.finish("3")
        await bench.clock.advance(20)
        work.finish("1")
        await bench.clock.advance(1)
        work.finish("2")
        await bench.clock.advance(40)
        assert [len(one) for one in bench.consumer.extended] == [3, 2, 2]


async def test_what_could_not_be_extended_is_lost():
    work = Work()
    bench = Bench(work, lease=30)

    async def extend(deliveries, seconds):
        return [one.message.id == "kept" for one in deliveries]

    bench.consumer.on_extend = extend
    async with bench.running():
        await bench.put(raw("kept"), raw("gone"))
        await bench.clock.advance(10)

        assert work.cancelled == ["gone"]
        assert bench.counters.lost == 1
        work.finish("kept")


async def test_what_cannot_be_extended_while_the_broker_is_away_ends_with_its_lease():
    work = Work()
    bench = Bench(work, lease=30)

    async def fail(deliveries, seconds):
        raise ConnectionFailed("cut")

    bench.consumer.on_extend = fail
    async with bench.running():
        await bench.put(raw("1", lease=Lease(bench.clock.monotonic() + 30)))
        await bench.clock.advance(29)
        before = list(work.cancelled)
        await bench.clock.advance(1)

        assert (before, work.cancelled) == ([], ["1"])
        assert (bench.counters.lost, bench.health.last_error) == (1, "cut")


async def test_an_extension_that_fails_is_tried_again():
    work = Work()
    bench = Bench(work, lease=30)

    async def fail(deliveries, seconds):
        bench.consumer.on_extend = None
        raise ConnectionFailed("cut")

    bench.consumer.on_extend = fail
    async with bench.running():
        await bench.put(raw("1"))
        await bench.clock.advance(10)
        assert bench.health.last_error == "cut"
        await bench.clock.advance(10)

        assert len(bench.consumer.extended) == 2
        assert bench.health.last_error is None
        assert work.running == {"1"}
        work.finish("1")


async def test_what_was_settled_during_an_extension_is_not_lost():
    """The broker settles first and then knows nothing to extend; the answer to the extension comes first."""
    bench = Bench(acking, lease=30)
    settled = asyncio.Event()

    async def settle(settlements):
        await settled.wait()
        bench.clock.touch()
        return [DONE]

    async def extend(deliveries, seconds):
        return [False]

    bench.consumer.on_settle, bench.consumer.on_extend = settle, extend
    async with bench.running():
        await bench.put(raw("1"))
        await bench.clock.advance(10)
        settled.set()
        await bench.clock.settle()

        assert (bench.counters.acked, bench.counters.lost) == (1, 0)


# lost


async def test_a_lost_delivery_is_cancelled_and_not_settled_and_its_key_waits_for_the_handler():
    ended = asyncio.Event()

    async def slow_to_end(delivery):
        started.append(delivery.message.id)
        if delivery.message.id == "a1":
            try:
                await asyncio.Event().wait()
            finally:
                await ended.wait()
                bench.clock.touch()
        return Ack()

    started = []
    bench = Bench(slow_to_end)
    async with bench.running():
        await bench.put(first := raw("a1", "a"))
        bench.dispatcher.on_lost([first, raw("stranger")], "gone")
        bench.dispatcher.on_lost([first], "gone")
        await bench.put(raw("a2", "a"))
        assert started == ["a1"]

        ended.set()
        await bench.clock.settle()

        assert started == ["a1", "a2"]
        assert bench.consumer.outcomes() == ["a2"]
        assert bench.counters.lost == 1
        assert bench.health.held == 0


async def test_what_waits_behind_a_lost_delivery_of_its_key_is_lost_with_it():
    work = Work()
    bench = Bench(work, lease=30)

    async def settle(settlements):
        return [SettleError(LeaseLost("taken")) for _ in settlements]

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("a1", "a", fence=1), raw("a2", "a", fence=1), raw("b1", "b", fence=1))
        work.finish("a1", Retry())
        await bench.clock.settle()
        assert work.started == ["a1", "b1"]
        assert bench.health.held == 1

        await bench.put(raw("a1", "a", fence=2))
        assert work.started == ["a1", "b1", "a1"]
        work.finish("b1")


async def test_a_lost_delivery_that_waits_or_is_parked_is_forgotten():
    work = Work()
    async with Bench(work, concurrency=1).running() as bench:
        deliveries = [raw("a1", "a"), raw("a2", "a"), raw("b1", "b")]
        await bench.put(*deliveries)
        work.finish("a1", Retry(after=60))
        await bench.clock.settle()

        bench.dispatcher.on_lost(deliveries, "gone")
        await bench.clock.advance(100)

        assert work.started == ["a1", "b1"]
        assert (bench.health.held, bench.health.parked) == (0, 0)


async def test_a_delivery_that_is_lost_during_its_settlement_is_counted_once():
    bench = Bench(acking)
    gate = asyncio.Event()

    async def settle(settlements):
        await gate.wait()
        bench.clock.touch()
        return [Hold(50)]

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(one := raw("1", "a"))
        bench.dispatcher.on_lost([one], "gone")
        gate.set()
        await bench.clock.settle()

        assert (bench.counters.lost, bench.counters.acked) == (1, 0)
        assert (bench.health.held, bench.health.parked) == (0, 0)


# revoke


async def test_a_revoked_partition_finishes_what_runs_and_starts_nothing_more():
    work = Work()
    async with Bench(work, concurrency=4).running() as bench:
        await bench.put(
            raw("run", "a", partition=1),
            raw("next", "a", partition=1),
            raw("parked", "b", partition=1),
            raw("other", "c", partition=2),
        )
        work.finish("parked", Retry(after=5))
        await bench.clock.settle()

        revoking = asyncio.create_task(bench.dispatcher.on_revoke({1}, 30))
        await bench.put(raw("late", "d", partition=1))
        await bench.clock.advance(6)
        assert not revoking.done()
        work.finish("run")
        await bench.clock.settle()

        assert revoking.done()
        assert work.started == ["run", "parked", "other"]
        assert bench.health.held == 1
        work.finish("other")


async def test_what_fails_while_its_partition_is_revoked_is_settled_and_not_kept():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", "a", partition=1))
        revoking = asyncio.create_task(bench.dispatcher.on_revoke({1}, 30))
        await bench.clock.settle()
        work.finish("1", Retry(after=5))
        await bench.clock.settle()

        assert revoking.done()
        assert (bench.health.held, bench.health.parked) == (0, 0)
        assert bench.counters.retried == 1


async def test_a_revocation_cancels_at_its_deadline_and_gives_back():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", "a", partition=1), raw("2", "b", partition=2))
        revoking = asyncio.create_task(bench.dispatcher.on_revoke({1}, 30))
        await bench.clock.advance(30)

        assert revoking.done()
        assert work.cancelled == ["1"]
        assert bench.consumer.settled == [("1", Release())]
        work.finish("2")


async def test_what_is_held_back_by_a_settlement_that_is_answered_after_the_hand_over_does_not_run_again():
    work, answered = Work(), asyncio.Event()

    async def slow(settlements):
        await answered.wait()
        return [Hold(until=bench.clock.monotonic()) for _ in settlements]

    async with Bench(work).running() as bench:
        bench.consumer.on_settle = slow
        await bench.put(raw("1", "a", partition=1))
        work.finish("1", Release(after=1))
        revoking = asyncio.create_task(bench.dispatcher.on_revoke({1}, 30))
        await bench.clock.advance(30 + ABANDON_AFTER)
        assert revoking.done()
        assert bench.counters.lost == 1

        answered.set()
        await bench.clock.advance(60)

        assert work.started == ["1"], "another member has its partition"
        assert bench.health.held == 0


async def test_a_revocation_takes_back_suspects_and_lets_the_others_go_on():
    work = Work()
    async with Bench(work, concurrency=4).running() as bench:
        await bench.put(raw("long", "a", partition=2))
        await bench.put(
            raw("s", "b", partition=1, returns=3), raw("c", "c", partition=2), raw("d", "d", partition=2)
        )
        await bench.dispatcher.on_revoke({1}, 30)
        await bench.clock.settle()

        assert work.running == {"long", "c", "d"}
        for id in ("long", "c", "d"):
            work.finish(id)


async def test_a_partition_that_comes_back_is_handled_again():
    async with Bench(acking).running() as bench:
        await bench.dispatcher.on_revoke({1}, 30)
        await bench.put(raw("1", "a", partition=1))

        assert bench.counters.acked == 1


async def test_a_partition_that_is_lost_and_comes_back_while_it_is_handed_over_is_handled_from_its_first_message():
    release = asyncio.Event()
    handled: list[str] = []

    async def stubborn(delivery):
        handled.append(delivery.message.id)
        if not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                await release.wait()
        return Ack()

    first = raw("1", "a", partition=1, fence=1)
    async with Bench(stubborn, concurrency=4).running() as bench:
        await bench.put(first)
        revoking = asyncio.create_task(bench.dispatcher.on_revoke({1, 2}, 30))
        await bench.clock.settle()
        bench.dispatcher.on_lost([first], "the connection was lost")

        await bench.put(
            raw("stale", "b", partition=1, fence=1),
            raw("1", "a", partition=1, fence=2),
            raw("2", "a", partition=1, fence=2),
        )
        release.set()
        await bench.clock.settle()

        assert revoking.done()
        assert handled == ["1", "1", "2"]
        assert bench.consumer.outcomes(Ack) == ["1", "2"]


async def test_one_whose_settlement_the_broker_took_without_an_answer_takes_no_successor_with_it():
    work = Work()
    async with Bench(work, concurrency=4, lease=30.0).running() as bench:

        async def unheard(settlements):
            lost = SettleError(ConnectionFailed("no answer"))
            return [lost if one.delivery.message.id == "1" else DONE for one in settlements]

        async def extend(deliveries, seconds):
            for one in deliveries:
                if one.message.id != "1":
                    one.lease.deadline = bench.clock.monotonic() + seconds
            return [one.message.id != "1" for one in deliveries]

        bench.consumer.on_settle, bench.consumer.on_extend = unheard, extend
        lease = Lease(deadline=bench.clock.monotonic() + 30)
        await bench.put(raw("1", "a", lease=lease), raw("2", "a", lease=Lease(deadline=lease.deadline)))
        work.finish("1")
        await bench.clock.advance(60)

        assert work.cancelled == [], "it is ours, and the next of its key would pass it"
        assert bench.health.held == 1
        work.finish("2")
