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
    MessagingError,
    TopicNotFound,
)
from messaging.message import Ack, Reject, Release, Retry
from tests.unit.scripted import Bench, Work, acking, message, raw

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


@pytest.mark.parametrize("error", [ConnectionFailed("cut"), MessagingError("cut")])
async def test_what_is_not_known_to_be_fatal_ends_no_subscription(caplog, error):
    with caplog.at_level(logging.WARNING, "messaging"):
        async with Bench(acking).running() as bench:
            assert not bench.dispatcher.receiving
            bench.consumer.fail(*(error for _ in range(3)))
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


async def test_retries_that_together_hold_a_message_longer_than_the_broker_can_end_as_a_dead_letter():
    async def handler(delivery):
        return Retry("again", after=400)

    async with Bench(handler, max_hold=1000.0).running() as bench:
        await bench.put(raw("1"))
        await bench.clock.advance(900)

    outcomes = [outcome for _, outcome in bench.consumer.settled]
    assert [type(one) for one in outcomes] == [Retry, Retry, Reject]
    assert outcomes[-1].reason == "again; a retry after 400 s is beyond the broker's longest, 200 s"


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
