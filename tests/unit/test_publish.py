import asyncio
import logging
from collections import defaultdict, deque
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging import exchanges as module
from messaging import publish
from messaging.adapter import Adapter
from messaging.errors import Closed, ConnectionFailed, PublishError, PublishUncertain
from messaging.message import Receipt
from messaging.publish import Publisher
from messaging.refusals import Refusals
from messaging.testing import VirtualClock
from tests.unit.publishing import Desk, nothing_is_left, one_at_a_time, requesting
from tests.unit.scripted import later, outgoing


@pytest.fixture
async def desk():
    return Desk()


async def test_calls_of_one_tick_share_one_exchange(desk):
    desk.gate.set()

    results = await asyncio.gather(*(desk.start(outgoing(id)) for id in "abc"))

    assert desk.batches == [["a", "b", "c"]]
    assert results == [[Receipt("a")], [Receipt("b")], [Receipt("c")]]
    assert desk.nothing_is_left()


async def test_exchanges_under_way_and_their_size_are_bounded(desk, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    many = [outgoing(str(number)) for number in range(20)]

    calls = await desk.started(*many)
    assert desk.under_way == module.EXCHANGES
    desk.gate.set()
    await calls

    assert [len(batch) for batch in desk.batches] == [2] * 10
    assert desk.nothing_is_left()


async def test_an_ordered_partition_has_one_batch_under_way(desk):
    first = await desk.started(outgoing("1", "a", ordered=True))
    second = await desk.started(outgoing("2", "b", ordered=True))
    other = await desk.started(outgoing("3", "c", ordered=True, partition=1))
    assert desk.batches == [["1"], ["3"]]

    desk.gate.set()
    await asyncio.gather(first, second, other)

    assert desk.batches == [["1"], ["3"], ["2"]]
    assert desk.nothing_is_left()


async def test_a_bounded_batch_leaves_the_rest_of_a_partition_for_the_next(desk, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    messages = [outgoing(str(number), "k", ordered=True, partition=number // 3) for number in range(6)]
    desk.gate.set()

    await desk.start(*messages)

    assert sorted(id for batch in desk.batches for id in batch) == list("012345")
    assert max(len(batch) for batch in desk.batches) == 2
    assert desk.nothing_is_left()


async def test_a_failed_message_fails_what_waits_behind_it_with_the_same_key(desk):
    desk.answers["1"] = PublishError("refused")
    first = await desk.started(outgoing("1", "a", ordered=True))
    behind = await desk.started(outgoing("2", "a", ordered=True), outgoing("3", "b", ordered=True))

    desk.gate.set()

    assert await first == [desk.answers["1"]]
    failed, sent = await behind
    assert isinstance(failed, PublishError)
    assert "message 1, published before it with the same key, failed: refused" in str(failed)
    assert sent == Receipt("3")
    assert desk.batches == [["1"], ["3"]]


@pytest.mark.parametrize("error", [ConnectionFailed("cut"), ValueError("a defect")])
async def test_an_exchange_that_raises_leaves_the_fate_unknown_and_fails_the_successors(desk, error):
    desk.answers["1"] = error
    first = await desk.started(outgoing("1", "a", ordered=True))
    behind = await desk.started(outgoing("2", "a", ordered=True))

    desk.gate.set()

    (result,) = await first
    assert isinstance(result, PublishUncertain)
    (failed,) = await behind
    assert isinstance(failed, PublishError)
    assert not isinstance(failed, PublishUncertain)
    assert desk.nothing_is_left()


async def test_an_adapter_that_answers_too_little_leaves_no_call_waiting(desk):
    desk.adapter.on_publish = lambda messages: later(desk.clock, 0, [])

    (result,) = await desk.start(outgoing("1"))

    assert isinstance(result, PublishUncertain)


async def test_any_sequence_is_an_answer(desk):
    async def answer(messages):
        desk.clock.touch()
        return deque(Receipt(one.message.id) for one in messages)

    desk.adapter.on_publish = answer

    assert await desk.start(outgoing("1"), outgoing("2")) == [Receipt("1"), Receipt("2")]


async def test_a_log_that_cannot_be_written_changes_no_result(desk, capsys):
    late = [desk.start(outgoing(id), within=3) for id in "12"]
    handler = logging.Handler()
    handler.emit = full_disk
    logging.getLogger("messaging").addHandler(handler)
    try:
        await desk.clock.settle()
        await desk.clock.advance(4)
        assert [type(call.result()[0]) for call in late] == [PublishUncertain, PublishUncertain]

        desk.answers["4"] = PublishError("refused")
        desk.gate.set()
        assert await desk.start(outgoing("3"), outgoing("4")) == [Receipt("3"), desk.answers["4"]]
    finally:
        logging.getLogger("messaging").removeHandler(handler)

    assert "no space left" in capsys.readouterr().err, "nobody was told that the log is lost"


def full_disk(record):
    raise OSError("no space left")


async def test_publishing_nothing_returns_at_once(desk):
    assert await desk.publisher.publish([], None) == []
    assert desk.batches == []


async def test_a_timeout_before_the_hand_over_means_not_sent(desk, monkeypatch):
    one_at_a_time(monkeypatch)
    await desk.started(outgoing("1"))
    second = await desk.started(outgoing("2"), within=5)

    await desk.clock.advance(5)
    (result,) = await second
    desk.gate.set()
    await desk.clock.settle()

    assert isinstance(result, PublishError)
    assert not isinstance(result, PublishUncertain)
    assert "Message 2 for orders was not sent" in str(result)
    assert desk.batches == [["1"]]
    assert desk.nothing_is_left()


async def test_a_timeout_after_the_hand_over_is_uncertain(desk):
    call = await desk.started(outgoing("1"), within=5)

    await desk.clock.advance(5)

    (result,) = await call
    assert isinstance(result, PublishUncertain)
    assert "Message 1 for orders was not confirmed within 5 s" in str(result)
    desk.gate.set()
    await desk.clock.settle()
    assert desk.nothing_is_left()


async def test_a_confirmation_that_comes_with_the_timeout_counts(desk):
    call = await desk.started(outgoing("1"), within=5)
    desk.clock.call_later(5, desk.gate.set)

    await desk.clock.advance(5)

    assert isinstance((await call)[0], Receipt | PublishUncertain)
    assert desk.nothing_is_left()


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_cancelled_call_that_waits_is_not_sent(desk, monkeypatch, ordered):
    one_at_a_time(monkeypatch)
    await desk.started(outgoing("1", "a", ordered=ordered))
    second = await desk.started(outgoing("2", "a", ordered=ordered))

    second.cancel()
    await desk.clock.settle()
    desk.gate.set()
    await desk.clock.settle()

    assert second.cancelled()
    assert desk.batches == [["1"]]
    assert desk.nothing_is_left()


async def test_a_cancelled_call_does_not_disturb_the_batch_it_shares(desk):
    first, second = desk.start(outgoing("1")), desk.start(outgoing("2"))
    await desk.clock.settle()

    first.cancel()
    desk.gate.set()

    assert await second == [Receipt("2")]
    assert first.cancelled()
    assert desk.nothing_is_left()


async def test_abandoned_messages_do_not_pile_up_behind_a_stuck_broker(desk, monkeypatch):
    one_at_a_time(monkeypatch)
    monkeypatch.setattr(publish, "PURGE_AFTER", 10)
    await desk.started(outgoing("1", "a", ordered=True))

    for number in range(50):
        await desk.started(outgoing(f"x{number}"), outgoing(f"y{number}", "a", ordered=True), within=1)
        await desk.clock.advance(1)

    assert desk.waiting <= 12
    desk.gate.set()
    await desk.clock.settle()
    assert desk.batches == [["1"]]
    assert desk.nothing_is_left()


@pytest.mark.parametrize("room", [1, 1000])
async def test_a_message_whose_turn_did_not_come_in_time_holds_its_successors_of_the_same_key(
    desk, monkeypatch, room
):
    """What was published after it would else be handled without it, or before it once it is published again (7)."""
    monkeypatch.setattr(publish, "OUTSTANDING", room)
    await desk.started(outgoing("1", "a", ordered=True))
    late = await desk.started(outgoing("2", "a", ordered=True), within=5)
    behind = await desk.started(outgoing("3", "a", ordered=True), outgoing("4", "b", ordered=True))

    await desk.clock.advance(5)
    await late
    desk.gate.set()
    result, other = await behind

    assert type(result) is PublishError
    assert "Message 3 for orders was not sent: message 2, published before it with the same key" in str(
        result
    )
    assert other == Receipt("4")
    assert desk.batches == [["1"], ["4"]]
    assert desk.nothing_is_left()


async def test_a_message_that_is_late_fails_none_that_was_published_before_it(desk):
    await desk.started(outgoing("1", "a", ordered=True))
    before = await desk.started(outgoing("2", "a", ordered=True))
    late = await desk.started(outgoing("3", "a", ordered=True), within=5)

    await desk.clock.advance(5)
    await late
    desk.gate.set()

    assert await before == [Receipt("2")]


async def test_callers_who_publish_again_and_again_stay_together(desk):
    """Else each exchange that ends would be followed by one of as few as were confirmed with it."""

    async def again_and_again(name):
        for number in range(20):
            await desk.publisher.publish([outgoing(f"{name}-{number}")], 5)

    desk.gate.set()
    first = asyncio.create_task(again_and_again("first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(first, *(again_and_again(name) for name in range(63)))

    assert sum(map(len, desk.batches)) == 64 * 20
    assert len(desk.batches) < 80


@pytest.mark.parametrize("shares", [2, 4])
async def test_many_callers_are_divided_so_that_the_broker_works_while_the_next_exchange_is_made(
    desk, monkeypatch, shares
):
    monkeypatch.setattr(Adapter, "shares", shares)
    calls = [desk.start(outgoing(str(number))) for number in range(256)]
    await desk.clock.settle()

    assert [len(batch) for batch in desk.batches] == [256 // shares] * shares

    desk.gate.set()
    await asyncio.gather(*calls)
    assert desk.nothing_is_left()


async def test_callers_without_order_do_not_keep_an_ordered_message_waiting(desk, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    one_at_a_time(monkeypatch)

    async def again_and_again(name):
        for number in range(10):
            await desk.publisher.publish([outgoing(f"{name}-{number}")], None)

    callers = [asyncio.create_task(again_and_again(name)) for name in range(6)]
    ordered = desk.start(outgoing("ordered", "a", ordered=True))
    desk.gate.set()
    await asyncio.gather(*callers, ordered)

    assert "ordered" in chain.from_iterable(desk.batches[:2])


async def test_a_partition_with_much_to_send_does_not_keep_the_others_waiting(desk, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    one_at_a_time(monkeypatch)
    much = desk.start(*(outgoing(str(number), "a", ordered=True) for number in range(6)))
    other = desk.start(outgoing("other", "b", ordered=True, partition=1))

    desk.gate.set()
    await asyncio.gather(much, other)

    assert desk.batches == [["0", "1"], ["other"], ["2", "3"], ["4", "5"]]


async def test_close_refuses_new_messages_and_sends_what_waits(desk, monkeypatch):
    one_at_a_time(monkeypatch)
    first = await desk.started(outgoing("1"))
    second = await desk.started(outgoing("2"))
    closing = asyncio.create_task(desk.publisher.close(10))
    await desk.clock.settle()

    with pytest.raises(Closed):
        await desk.publisher.publish([outgoing("3")], None)
    desk.gate.set()
    await closing

    assert await first == [Receipt("1")]
    assert await second == [Receipt("2")]
    assert desk.nothing_is_left()


async def test_close_gives_up_at_its_deadline_and_leaves_no_call_waiting(desk, monkeypatch):
    one_at_a_time(monkeypatch)
    sent = await desk.started(outgoing("1"))
    waiting = [await desk.started(outgoing(str(n), "a", ordered=n % 2 == 0)) for n in range(2, 4)]
    closing = asyncio.create_task(desk.publisher.close(10))

    await desk.clock.advance(10)
    await closing

    assert isinstance((await sent)[0], PublishUncertain)
    for call in waiting:
        (result,) = await call
        assert "the bus was closed" in str(result)
        assert not isinstance(result, PublishUncertain)
    assert desk.publisher._outstanding == 0


async def test_an_answer_that_comes_as_close_gives_up_lets_nothing_be_sent_any_more(desk, monkeypatch):
    one_at_a_time(monkeypatch)

    async def answer(messages):
        try:
            await desk.gate.wait()
        except asyncio.CancelledError:  # as `asyncio.wait_for` of Python 3.11 loses it
            desk.clock.touch()
        return [Receipt(one.message.id) for one in messages]

    desk.adapter.on_publish = answer
    sent = await desk.started(outgoing("1"))
    waiting = await desk.started(outgoing("2"))

    closing = asyncio.create_task(desk.publisher.close(1))
    await desk.clock.advance(2)
    await closing

    assert await sent == [Receipt("1")]
    assert "the bus was closed" in str((await waiting)[0])
    assert desk.batches == [["1"]]


async def test_a_cancelled_close_leaves_nothing_under_way(desk):
    sent = await desk.started(outgoing("1"))
    closing = asyncio.create_task(desk.publisher.close(10))
    await desk.clock.settle()

    closing.cancel()
    await asyncio.wait((closing,))

    assert closing.cancelled()
    assert isinstance((await sent)[0], PublishUncertain)
    assert not desk.tasks


async def test_close_on_an_idle_publisher_returns_at_once(desk):
    await desk.publisher.close(10)


def fate(number):
    return st.tuples(
        st.just(str(number)),
        st.sampled_from([None, "a", "b", "c"]),
        st.sampled_from(["ok", "ok", "ok", "refused", "raises"]),
        st.sampled_from([None, None, 1.0, 3.0]),
        st.sampled_from([None, None, None, 0.5, 2.0]),
        st.floats(0, 2),
    )


@given(
    st.integers(1, 30).flatmap(lambda size: st.tuples(*map(fate, range(size)))),
    st.floats(0, 2),
    st.integers(1, 4),
    st.sampled_from([{}, {"topics_apart": True}, *({"per_request": number} for number in (1, 3, 10))]),
)
@settings(max_examples=120, deadline=None)
def test_whatever_happens_every_call_resolves_in_order_and_nothing_is_left(plan, delay, partitions, says):
    asyncio.run(one_history(plan, delay, partitions, says))


async def one_history(plan, delay, partitions, says):
    clock = VirtualClock(patience=30)
    adapter = requesting(**says)(clock)
    publisher = Publisher(adapter, clock, Refusals("scripted", clock))
    fates = {id: fate for id, _, fate, *_ in plan}
    stored, busy = defaultdict(list), set()

    async def store(messages):
        lanes = {one.partition for one in messages if one.topic.ordered}
        assert not lanes & busy, "two batches of one ordered partition are under way"
        busy.update(lanes)
        try:
            results = await later(clock, delay, [])
            failed = set()
            for one in messages:
                verdict = fates[one.message.id]
                if verdict == "raises":
                    raise ConnectionFailed("cut")
                if verdict == "refused" or (one.topic.ordered and one.partition in failed):
                    failed.add(one.partition)
                    results.append(PublishError("refused"))
                else:
                    stored[one.message.key].append(int(one.message.id))
                    results.append(Receipt(one.message.id))
        finally:
            busy.difference_update(lanes)
        return results

    adapter.on_publish = store

    async def call(number, key, within, cancel_after, at):
        ordered = key is not None
        lane = hash(key) % partitions if ordered else 0
        topic = "orders" if ordered else f"topic-{number % 3}"
        one = outgoing(str(number), key, ordered=ordered, partition=lane, topic=topic)
        task = asyncio.create_task(publisher.publish([one], within))
        if cancel_after is not None:
            clock.call_later(cancel_after, task.cancel)
        await asyncio.wait((task,))
        return task

    tasks = []
    for number, (_, key, _, within, cancel_after, at) in enumerate(sorted(plan, key=lambda one: one[-1])):
        fates[str(number)] = plan[number][2]
        await clock.advance(max(0.0, at - clock.monotonic()))
        tasks.append(asyncio.create_task(call(number, key, within, cancel_after, at)))
    await clock.advance(100)

    assert all(task.done() for task in tasks), "a call never resolved"
    for task in tasks:
        if not task.result().cancelled():
            (result,) = task.result().result()
            assert isinstance(result, Receipt | PublishError)
    for key, numbers in stored.items():
        assert key is None or numbers == sorted(numbers)
    assert nothing_is_left(publisher)
