import asyncio
import contextlib
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging.adapter import DONE, Hold, Lease, SettleError
from messaging.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    LeaseLost,
    TopicNotFound,
)
from messaging.message import Ack, Reject, Release, Retry
from tests.unit.scripted import Bench, Work, acking, later, message, raw

DOWN = SettleError(ConnectionFailed("down"))


# receiving


async def test_prefetch_bounds_what_is_unparked_in_the_process():
    work = Work()
    async with Bench(work, prefetch=3, concurrency=2).running() as bench:
        bench.consumer.put(*(raw(str(n)) for n in range(20)))
        most = 0
        for n in range(20):
            await bench.clock.settle()
            most = max(most, bench.health.held)
            work.finish(str(n))
        await bench.clock.settle()

    assert most == 3
    assert bench.counters.acked == 20


async def test_it_ends_though_the_broker_loses_the_cancellation_of_what_it_waits_for(monkeypatch):
    bench = Bench(acking, lease=3.0)

    async def deaf(*_):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ConnectionFailed("down")

    bench.consumer.on_extend = deaf
    async with asyncio.timeout(5), bench.running():
        await bench.put(raw("a", hold=100))
        await bench.clock.advance(1)
        monkeypatch.setattr(bench.consumer, "receive", deaf)
        await bench.clock.advance(1)


async def test_parked_deliveries_make_room_for_others():
    work = Work()
    async with Bench(work, prefetch=2, concurrency=2).running() as bench:
        await bench.put(raw("a1", "a"), raw("a2", "a"), raw("b1", "b"))
        assert work.started == ["a1"]

        work.finish("a1", Retry(after=60))
        await bench.clock.settle()

        assert work.started == ["a1", "b1"]
        assert (bench.health.parked, bench.health.held) == (2, 3)
        work.finish("b1")


async def test_a_partition_whose_window_is_full_is_paused_and_health_says_so():
    work = Work()
    async with Bench(work, window=1).running() as bench:
        await bench.put(raw("a1", "a", partition=3))
        work.finish("a1", Retry(after=60))
        await bench.clock.advance(2)
        assert bench.consumer.asked[-1][1] == {3}
        assert bench.health.parked_full

        await bench.clock.advance(60)
        work.finish("a1")
        await bench.clock.advance(2)
        assert bench.consumer.asked[-1][1] == frozenset()


async def test_what_is_left_of_a_delay_that_a_former_owner_began_is_waited_for():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("a1", "a", hold=10.0), raw("a2", "a"), raw("b1", "b"))
        assert work.started == ["b1"]
        assert bench.health.parked == 2

        await bench.clock.advance(9.9)
        assert work.started == ["b1"]
        await bench.clock.advance(0.1)

        assert work.started == ["b1", "a1"]
        for id in ("b1", "a1", "a2"):
            work.finish(id)
            await bench.clock.settle()
    assert bench.consumer.outcomes(Ack) == ["b1", "a1", "a2"]


async def test_a_broken_connection_ends_no_subscription(caplog):
    with caplog.at_level(logging.WARNING, "messaging"):
        async with Bench(acking).running() as bench:
            assert not bench.dispatcher.receiving
            bench.consumer.fail(*(ConnectionFailed("cut") for _ in range(3)))
            await bench.clock.settle()
            assert bench.health.last_error == "cut"
            assert not bench.health.receiving
            await bench.clock.advance(1)

            await bench.put(raw("1"))

            assert bench.counters.acked == 1
            assert bench.health.receiving
            assert bench.health.last_error is None
            assert bench.health.reconnects == 3
    assert len([one for one in caplog.records if "was interrupted" in one.message]) == 1


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("no"),
        ConfigurationError("changed"),
        TopicNotFound("deleted"),
        RuntimeError("bug"),
    ],
)
async def test_a_fatal_error_ends_it_with_that_error_and_its_own_cause(error):
    bench = Bench(Work())
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))
    error.__cause__ = cause = OSError("the reason")

    bench.consumer.fail(error)
    with pytest.raises(type(error)) as raised:
        await task

    assert raised.value is error
    assert error.__cause__ is cause
    assert bench.consumer.closed
    assert bench.consumer.settled == []
    assert not bench.dispatcher.receiving


# outcomes


async def test_every_outcome_is_settled_and_counted():
    outcomes = {"1": Ack(), "2": Release(after=3), "3": Retry("bad", after=2), "4": Reject("worse")}

    async def handler(delivery):
        return outcomes[delivery.message.id]

    bench = Bench(handler, ordered=False)
    settled = []

    async def settle(settlements):
        settled.extend(settlements)
        return [DONE] * len(settlements)

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(*(raw(id) for id in outcomes))

    assert [(one.delivery.message.id, one.after, one.failure is not None) for one in settled] == [
        ("1", 0, False),
        ("2", 3, False),
        ("3", 2, True),
        ("4", 0, True),
    ]
    health = bench.health
    assert (health.acked, health.released, health.retried, health.rejected) == (1, 1, 1, 1)
    assert health.held == 0


async def test_a_held_failure_runs_again_when_it_is_due_with_its_next_attempt():
    attempts = []

    async def handler(delivery):
        attempts.append((delivery.attempt, bench.clock.monotonic()))
        return Retry(after=10) if delivery.attempt < 3 else Ack()

    bench = Bench(handler)
    async with bench.running():
        await bench.put(raw("1", "a"))
        await bench.clock.advance(25)

    assert attempts == [(1, 0), (2, 10), (3, 20)]


async def test_what_is_due_earlier_wakes_earlier():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("late", "a"), raw("early", "b"), raw("later", "c"))
        work.finish("late", Retry(after=20))
        await bench.clock.settle()
        work.finish("early", Retry(after=5))
        work.finish("later", Retry(after=30))
        await bench.clock.advance(5)
        assert work.started[3:] == ["early"]
        await bench.clock.advance(25)
        assert work.started[3:] == ["early", "late", "later"]
        for id in ("early", "late", "later"):
            work.finish(id)


async def test_a_release_that_is_held_counts_no_attempt():
    async def handler(delivery):
        seen.append(delivery.attempt)
        return Release(after=5) if len(seen) == 1 else Ack()

    seen = []
    bench = Bench(handler)

    async def settle(settlements):
        return [
            Hold(bench.clock.monotonic() + one.after) if isinstance(one.outcome, Release) else DONE
            for one in settlements
        ]

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("1", "a"))
        await bench.clock.advance(5)

    assert seen == [1, 1]


async def test_a_delay_beyond_the_brokers_longest_is_a_dead_letter():
    async def handler(delivery):
        return Retry("slow down", after=1001)

    async with Bench(handler, max_delay=1000.0).running() as bench:
        await bench.put(raw("1"))

    ((_, outcome),) = bench.consumer.settled
    assert outcome.cause == "delay_unsupported"
    assert outcome.reason == "slow down; a retry after 1001 s is beyond the broker's longest, 1000 s"


async def test_a_retry_without_a_delay_is_settled_with_none():
    async def handler(delivery):
        return Retry() if delivery.attempt == 1 else Ack()

    async with Bench(handler).running() as bench:
        await bench.put(raw("1"))

    assert bench.counters.acked == 1


async def test_a_reply_goes_to_the_address_of_its_request_and_nowhere_else():
    def answer(delivery, outcome):
        return outcome, message(f"re-{delivery.message.id}")

    async with Bench(acking, answer=answer).running() as bench:
        await bench.put(raw("1", reply_to="inbox"), raw("2"))

    assert [(address, one.id) for address, one in bench.adapter.replies] == [("inbox", "re-1")]


async def test_settling_that_fails_for_a_while_is_repeated_until_it_is_taken():
    bench = Bench(acking)
    answers = [[DOWN], [DOWN], [DONE]]

    async def settle(settlements):
        return answers.pop(0)

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("1"))
        await bench.clock.advance(5)

        assert bench.counters.acked == 1
        assert bench.health.held == 0


async def test_settling_that_fails_until_the_lease_ends_is_given_up():
    bench = Bench(acking)

    async def settle(settlements):
        return [DOWN] * len(settlements)

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("1", lease=Lease(10)))
        await bench.clock.advance(9)
        assert bench.health.held == 1
        await bench.clock.advance(10)

        assert (bench.health.held, bench.counters.lost, bench.counters.acked) == (0, 1, 0)


async def test_a_settlement_that_is_refused_is_a_loss():
    bench = Bench(acking)

    async def settle(settlements):
        return [SettleError(LeaseLost("taken"))]

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("1", "a"))

        assert (bench.counters.lost, bench.counters.acked, bench.health.held) == (1, 0, 0)


async def test_an_outcome_that_comes_while_others_are_settled_is_settled_next():
    work = Work()
    bench = Bench(work)
    gate = asyncio.Event()

    async def settle(settlements):
        await gate.wait()
        bench.clock.touch()
        return [DONE] * len(settlements)

    bench.consumer.on_settle = settle
    async with bench.running():
        await bench.put(raw("1"), raw("2"))
        work.finish("1")
        await bench.clock.settle()
        work.finish("2")
        await bench.clock.settle()
        gate.set()
        await bench.clock.settle()

        assert bench.counters.acked == 2
        assert bench.health.held == 0


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

moves = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([None, "a", "b"]), st.integers(0, 1)),
        st.tuples(
            st.just("finish"),
            st.integers(0, 9),
            st.sampled_from([Ack(), Release(), Retry(after=2), Retry(after=0), Reject("no")]),
        ),
        st.tuples(st.just("lose"), st.integers(0, 9), st.none()),
        st.tuples(st.just("revoke"), st.integers(0, 1), st.none()),
        st.tuples(st.just("advance"), st.floats(0, 4), st.none()),
        st.tuples(st.just("suspect"), st.sampled_from(["a", "c"]), st.integers(0, 1)),
    ),
    max_size=40,
)


@given(moves, st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_keys_never_overlap_bounds_hold_and_nothing_is_left(moves, concurrency, prefetch):
    asyncio.run(one_life(moves, concurrency, prefetch))


async def one_life(moves, concurrency, prefetch):
    keys, number = set(), 0
    gates = {}

    async def handler(delivery):
        key = (delivery.partition, delivery.key) if delivery.key is not None else delivery.message.id
        assert key not in keys, "two of a key run at once"
        assert len(keys) < concurrency
        keys.add(key)
        gate = gates[delivery.message.id] = asyncio.get_running_loop().create_future()
        try:
            return await gate
        finally:
            keys.discard(key)
            del gates[delivery.message.id]

    bench = Bench(handler, concurrency=concurrency, prefetch=prefetch)
    async with bench.running():
        known = []
        for what, first, second in moves:
            if what in {"put", "suspect"}:
                number += 1
                one = raw(str(number), first, partition=second, returns=3 * (what == "suspect"))
                known.append(one)
                bench.consumer.put(one)
            elif what == "finish" and gates:
                list(gates.values())[first % len(gates)].set_result(second)
            elif what == "lose" and known:
                bench.dispatcher.on_lost([known[first % len(known)]], "gone")
            elif what == "revoke":
                before = set(bench.dispatcher._lanes.of_partitions({first}))
                await bench.dispatcher.on_revoke({first}, bench.clock.monotonic())
                assert not before & set(bench.dispatcher._lanes.held)
            elif what == "advance":
                await bench.clock.advance(first)
            await bench.clock.settle()
        for _ in range(200):
            for gate in list(gates.values()):
                gate.set_result(Ack())
            await bench.clock.advance(3)
            if not bench.consumer.waiting and not bench.health.held:
                break
        assert not bench.consumer.waiting, "the dispatcher does not receive any more"
        assert (bench.health.held, bench.health.parked, bench.health.running) == (0, 0, 0)
        assert not bench.dispatcher._lost
        assert not bench.dispatcher._workers._interrupted
