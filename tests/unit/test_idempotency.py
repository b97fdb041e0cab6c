from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from messaging.adapter import Lease
from messaging.binding import StoreState
from messaging.clock import sleep
from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    IdempotencyConflict,
)
from messaging.message import Ack, Reject, Release, Retry
from tests.unit.idempotency import LEASE, TTL, Store, always, delivery, protect, taking
from tests.unit.scripted import Bench, raw


@pytest.fixture
def store(clock):
    return Store(clock)


# once


async def test_a_second_delivery_of_a_handled_message_is_acknowledged_unhandled(store):
    handler = always(Ack())
    handle = protect(store, handler)

    assert [await handle(delivery()), await handle(delivery())] == [Ack(), Ack()]
    assert len(handler.handled) == 1


async def test_a_handled_key_is_forgotten_after_its_ttl(store, clock):
    handler = always(Ack())
    handle = protect(store, handler)

    await handle(delivery())
    await clock.advance(TTL)
    await handle(delivery())

    assert len(handler.handled) == 2


async def test_the_key_is_the_message_id_in_its_scope(store):
    await protect(store, always(Ack()), scope="production/orders/billing")(delivery("m7"))

    assert set(store.entries) == {"production/orders/billing:m7"}
    assert store.entries["production/orders/billing:m7"]["digest"] == sha256(b"{}").hexdigest()


async def test_the_key_may_be_a_function_of_the_message(store):
    handler = always(Ack())
    handle = protect(store, handler, key=lambda message: message.body.decode())

    for id, body in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        await handle(delivery(id, body))

    assert [handled.message.id for handled in handler.handled] == ["a", "c"]


@pytest.mark.parametrize("nothing", [None, "", 5])
async def test_a_key_that_is_none_is_a_failure_and_not_shared_by_all_that_have_none(store, nothing):
    handler = protect(store, always(Ack()), key=lambda message: nothing)

    with pytest.raises(TypeError, match="idempotency key"):
        await handler(delivery())

    assert store.entries == {}


async def test_two_payloads_under_one_key_are_rejected(store):
    handle = protect(store, handler := always(Ack()), key=lambda message: "same")

    await handle(delivery("a", b"1"))
    outcome = await handle(delivery("b", b"2"))

    assert isinstance(outcome, Reject)
    assert outcome.cause == "exception"
    assert isinstance(outcome.__cause__, IdempotencyConflict)
    assert len(handler.handled) == 1


# replies


async def test_a_responder_sends_its_stored_reply_again(store):
    hooks = {"encode_reply": lambda reply: reply.encode(), "decode_reply": lambda reply: reply.decode()}
    handle = protect(store, handler := always(Ack("42")), **hooks)

    assert [await handle(delivery()), await handle(delivery())] == [Ack("42"), Ack("42")]
    assert len(handler.handled) == 1


async def test_without_hooks_no_reply_is_stored(store):
    handle = protect(store, always(Ack("42")))

    assert [await handle(delivery()), await handle(delivery())] == [Ack("42"), Ack()]
    assert ("complete", "s:m1", None) in store.calls


async def test_a_reply_that_cannot_be_stored_is_a_failure(store):
    def encode(reply):
        raise TypeError("no reply of ours")

    with pytest.raises(TypeError):
        await protect(store, always(Ack("42")), encode_reply=encode)(delivery())
    assert store.entries == {}


# another owner


async def test_while_another_member_has_the_key_the_message_is_released_for_the_rest_of_its_lease(
    store, clock
):
    await store.begin("s:m1", digest=sha256(b"{}").hexdigest(), lease=LEASE)
    await clock.advance(12)
    handler = always(Ack())

    assert await protect(store, handler)(delivery()) == Release(after=18.0)
    assert handler.handled == []


async def test_the_key_of_a_member_that_died_is_taken_over(store, clock):
    await store.begin("s:m1", digest=sha256(b"{}").hexdigest(), lease=LEASE)
    await clock.advance(LEASE)

    assert await protect(store, handler := always(Ack()))(delivery()) == Ack()
    assert len(handler.handled) == 1


async def test_a_slow_first_owner_cannot_overwrite_the_second_and_its_outcome_stands(store, clock, caplog):
    async def handler(delivery):
        store.entries.clear()
        await store.begin("s:m1", digest=sha256(b"{}").hexdigest(), lease=LEASE)
        return Ack()

    with caplog.at_level(logging.WARNING, "messaging"):
        outcome = await protect(store, handler)(delivery())

    assert outcome == Ack()
    assert store.entries["s:m1"]["done"] is False
    assert "took over" in caplog.text
    assert (caplog.records[0].message_id, caplog.records[0].member) == ("m1", "here")


# failure


@pytest.mark.parametrize("outcome", [Release(), Retry("busy"), Reject("bad")])
async def test_what_is_no_ack_clears_the_key(store, outcome):
    assert await protect(store, always(outcome))(delivery()) is outcome
    assert store.entries == {}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
async def test_an_exception_clears_the_key_and_passes_unchanged(store, error):
    async def handler(delivery):
        raise error

    with pytest.raises(type(error)) as caught:
        await protect(store, handler)(delivery())

    assert caught.value is error
    assert store.entries == {}


async def test_cancellation_clears_the_key_and_passes(store, clock):
    task = asyncio.create_task(protect(store, taking(clock, 60))(delivery()))
    await clock.advance(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.entries == {}


async def test_a_second_cancellation_does_not_stop_the_clearing(store, clock):
    store.slow["clear"] = 1.0
    task = asyncio.create_task(protect(store, taking(clock, 60))(delivery()))
    await clock.advance(1)
    task.cancel()
    await clock.settle()
    task.cancel()
    await clock.advance(1)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.entries == {}


async def test_a_cancellation_while_completing_does_not_undo_what_was_handled(store, clock):
    store.slow["complete"] = 1.0
    handle = protect(store, handler := always(Ack()))
    task = asyncio.create_task(handle(delivery()))
    await clock.settle()
    task.cancel()
    await clock.advance(1)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await handle(delivery()) == Ack()
    assert len(handler.handled) == 1


# the lease


async def test_the_lease_is_extended_while_the_handler_runs(store, clock):
    task = asyncio.create_task(protect(store, taking(clock, 5 * LEASE))(delivery()))
    await clock.advance(4 * LEASE)
    second = await protect(store, always(Ack()))(delivery())
    await clock.advance(LEASE)

    assert isinstance(second, Release)
    assert await task == Ack()
    assert store.entries["s:m1"]["done"] is True


async def test_the_lease_counts_from_when_the_store_was_asked(store, clock):
    begin = store.begin

    async def slow(key, **values):
        begun = await begin(key, **values)
        await sleep(clock, LEASE * 0.9)
        return begun

    store.begin = slow
    handling = asyncio.create_task(protect(store, taking(clock, LEASE))(delivery()))
    await clock.advance(LEASE * 0.95)
    assert store.count("extend") == 1, "at a third of the lease, which is over, and not a third later"
    await clock.advance(LEASE)
    assert await handling == Ack()


async def test_a_key_that_is_given_when_its_lease_is_over_is_not_used_and_is_cleared(store, clock):
    store.slow["begin"] = LEASE
    handler = always(Ack())
    handling = asyncio.create_task(protect(store, handler)(delivery()))
    await clock.advance(LEASE)
    assert await handling == Release()
    assert handler.handled == []
    assert store.entries == {}


async def test_a_delivery_whose_lease_ends_while_the_store_answers_is_lost_unhandled_and_its_key_cleared():
    bench = Bench(None)
    store = Store(bench.clock)
    store.slow["begin"] = 10.0
    bench.binding.handler = protect(store, handler := always(Ack()))
    async with bench.running():
        await bench.put(raw("late", lease=Lease(5)), raw("other", lease=Lease(50)))
        await bench.clock.advance(10)

        assert [handled.message.id for handled in handler.handled] == ["other"]
        assert bench.counters.lost == 1
        assert bench.consumer.outcomes() == ["other"]
        assert set(store.entries) == {"s:other"}


async def test_a_message_that_expires_while_the_store_answers_is_not_handled(store, clock):
    store.slow["begin"] = 5.0
    handler = always(Ack())
    expires_at = datetime.fromtimestamp(clock.time() + 5.0, UTC)
    handling = asyncio.create_task(protect(store, handler)(delivery(expires_at=expires_at)))
    await clock.advance(5.0)
    assert await handling == Release(), "it is dropped, or a dead letter, where it comes again"
    assert handler.handled == []
    assert store.entries == {}


async def test_nothing_is_extended_once_the_handler_has_ended(store, clock):
    task = asyncio.create_task(protect(store, taking(clock, LEASE))(delivery()))
    await clock.advance(LEASE)
    await task
    extended = store.count("extend")
    await clock.advance(10 * LEASE)

    assert store.count("extend") == extended
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_short_handler_extends_nothing(store, clock):
    await protect(store, always(Ack()))(delivery())
    await clock.advance(LEASE)

    assert store.count("extend") == 0


async def test_the_lease_survives_a_short_outage_of_the_store(store, clock, caplog):
    task = asyncio.create_task(protect(store, taking(clock, 3 * LEASE))(delivery()))
    await clock.advance(LEASE / 2)
    store.broken["extend"] = ConnectionFailed("away")
    await clock.advance(LEASE / 3)
    del store.broken["extend"]
    await clock.advance(2 * LEASE)
    second = await protect(store, always(Ack()))(delivery())
    await clock.advance(LEASE)

    assert isinstance(second, Release)
    assert await task == Ack()
    assert "was not extended" in caplog.text


async def test_a_lost_lease_is_not_extended_further(store, clock):
    task = asyncio.create_task(protect(store, taking(clock, 10 * LEASE))(delivery()))
    await clock.advance(1)
    store.entries.clear()
    await clock.advance(10 * LEASE)

    assert await task == Ack()
    assert store.count("extend") == 1


# the store is away


async def test_while_the_store_is_away_messages_are_released_uncounted_and_one_line_says_so(store, caplog):
    store.broken["begin"] = ConnectionFailed("no route")
    handle = protect(store, handler := always(Ack()))

    outcomes = [await handle(delivery()), await handle(delivery())]
    del store.broken["begin"]
    await handle(delivery())
    store.broken["begin"] = ConnectionFailed("no route")
    await handle(delivery())

    assert outcomes == [Release(after=1.0), Release(after=1.0)]
    assert len(handler.handled) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_when_the_store_goes_away_after_the_handler_its_outcome_stands(store, caplog):
    store.broken["complete"] = ConnectionFailed("no route")

    assert await protect(store, always(Ack()))(delivery()) == Ack()
    assert "was not completed" in caplog.text


async def test_when_the_store_goes_away_after_a_failure_the_failure_is_what_counts(store, caplog):
    store.broken["clear"] = ConnectionFailed("no route")
    error = ValueError("x")

    with pytest.raises(ValueError) as caught:
        await protect(store, always(error))(delivery())

    assert caught.value is error
    assert "was not cleared" in caplog.text


@pytest.mark.parametrize("call", ["complete", "clear", "extend"])
async def test_a_defect_of_the_store_is_shown_as_one(store, clock, caplog, call):
    store.broken[call] = AttributeError("no such column")
    task = asyncio.create_task(
        protect(store, always(Release()) if call == "clear" else taking(clock, LEASE / 2))(delivery())
    )
    await clock.advance(LEASE)

    assert isinstance(await task, Release if call == "clear" else Ack)
    record = caplog.records[0]
    assert (record.levelname, record.exc_info[0]) == ("ERROR", AttributeError)


@pytest.mark.parametrize("error", [ConfigurationError("no permission"), TimeoutError("no answer")])
async def test_what_is_wrong_with_the_store_before_the_handler_costs_no_message_an_attempt(store, error):
    store.broken["begin"] = error

    assert await protect(store, handler := always(Ack()))(delivery()) == Release(after=1.0)
    assert handler.handled == []


async def test_a_defect_of_the_store_before_the_handler_is_a_failure_of_the_message(store):
    store.broken["begin"] = AttributeError("no such column")

    with pytest.raises(AttributeError):
        await protect(store, handler := always(Ack()))(delivery())

    assert handler.handled == []


async def test_a_key_that_no_store_can_take_is_a_failure_of_its_message(store):
    with pytest.raises(ValueError, match="UTF-8"):
        await protect(store, always(Ack()), key=lambda message: "\ud800")(delivery())

    assert store.calls == []


# what operators are told


@pytest.mark.parametrize("failing", [ConnectionFailed("no route"), TimeoutError("no answer")])
async def test_it_is_known_whether_the_store_answers(store, clock, failing):
    state = StoreState()
    handle = protect(store, always(Ack()), state=state)
    store.broken["begin"] = failing
    await handle(delivery())
    away = state.failing(clock.monotonic())
    del store.broken["begin"]
    await handle(delivery())

    assert str(failing) in str(away)
    assert state.failing(clock.monotonic()) is None
    state.check()


async def test_a_store_that_nobody_asks_any_more_is_forgotten(store, clock):
    state = StoreState(ConnectionFailed("no route"), clock.monotonic())

    assert "no route" in str(state.failing(clock.monotonic()))
    await clock.advance(31)
    assert state.failing(clock.monotonic()) is None


@pytest.mark.parametrize(
    "failing", [AuthenticationFailed("no such user"), ConfigurationError("no permission")]
)
async def test_a_store_that_refuses_for_good_is_told_from_one_that_is_away(failing):
    with pytest.raises(type(failing)):
        StoreState(failing).check()
    for away in (ConnectionFailed("no route"), TimeoutError("no answer"), Closed("the bus was closed")):
        StoreState(away).check()


async def test_a_store_that_hangs_does_not_hold_the_outcome_for_ever(store, clock, caplog):
    store.slow["complete"] = 1e6
    task = asyncio.create_task(protect(store, always(Ack()))(delivery()))
    await clock.advance(5)

    assert await task == Ack()
    assert "was not completed" in caplog.text


async def test_a_store_that_hangs_is_told_of_and_given_up(store, clock, caplog):
    state = StoreState()
    handler = always(Ack())
    store.slow["begin"] = 1e6
    task = asyncio.create_task(protect(store, handler, state=state)(delivery()))
    await clock.advance(4)
    early = state.failing(clock.monotonic())
    await clock.advance(2)
    silent = state.failing(clock.monotonic())
    await clock.advance(2 * LEASE)

    assert early is None
    assert "answered nothing for more than 5 s" in str(silent)
    assert isinstance(await task, Release)
    assert "did not answer in time" in str(state.failing(clock.monotonic()))
    assert "did not answer in time" in caplog.text
    assert handler.handled == []


async def test_a_store_that_answers_others_is_not_away(store, clock):
    state = StoreState()
    handle = protect(store, always(Ack()), state=state)
    store.slow["begin"] = 8
    slow = asyncio.create_task(handle(delivery("slow")))
    await clock.advance(4)
    store.slow["begin"] = 0
    await handle(delivery("quick"))
    await clock.advance(3)
    meanwhile = state.failing(clock.monotonic())
    await clock.advance(2)

    assert meanwhile is None
    assert await slow == Ack()
    assert state.failing(clock.monotonic()) is None
