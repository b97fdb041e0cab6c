"""Consuming: polls strand nothing, leases are ours until they are not, delays are kept, order survives."""

import asyncio
import json
import time

import pytest

from messaging.adapter import Done, Hold, SettleError, TopicSpec
from messaging.errors import ConnectionFailed, LeaseLost, TopicNotFound
from messaging.message import Ack, Reject, Release, Retry
from messaging.partition import partition_of
from messaging_contracts.standstill import standstill
from messaging_sqs import arrivals, copies
from messaging_sqs.entries import DELAY
from messaging_sqs.settings import LONGEST_LEASE
from tests.contract.bench import Recorder, ack, handled, ids, nothing, publish, receive, settle
from tests.contract.sqs.support import Bench, intercept, poll_begun, stored

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def test_a_cancelled_receive_loses_nothing(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    consumer = any_bench.consumer(adapter, group)
    waiting = asyncio.create_task(consumer.receive(10, 5.0))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await publish(adapter, group.topic, "one")
    assert ids(await receive(consumer, 1)) == ["one"]  # long before the lease of whoever took it could end


async def test_what_a_poll_brings_while_a_member_leaves_goes_back_at_once(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    leaving = any_bench.consumer(adapter, group)
    await nothing(leaving, 0.2)
    closing = asyncio.create_task(leaving.close())
    await asyncio.sleep(0)
    await publish(adapter, group.topic, "one")
    await closing
    (delivery,) = await receive(any_bench.consumer(adapter, group), 1)
    assert delivery.attempt == 1


async def test_a_poll_that_nobody_waits_for_gives_back_what_it_brings(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    leaving = any_bench.consumer(adapter, group)
    await nothing(leaving, 0.2)
    await leaving._polls.abandon()
    await publish(adapter, group.topic, "one")
    (delivery,) = await receive(any_bench.consumer(adapter, group), 1)
    assert delivery.attempt == 1


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_member_does_not_wait_for_ever_for_a_settlement_when_it_leaves(
    bench: Bench, monkeypatch, ordered
):
    adapter = await bench.adapter(operation_timeout=3)
    group = await bench.group(adapter, TopicSpec("orders", ordered=ordered, partitions=2))
    await publish(adapter, group.topic, "one", key="k" if ordered else None)
    leaving = bench.consumer(adapter, group)
    held = await receive(leaving, 1)

    async def say_nothing(call, parameters):
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "delete_message_batch", say_nothing)
        settling = asyncio.create_task(settle(leaving, held, Ack()))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await leaving.close()
            (result,) = await settling

    assert isinstance(result, SettleError)
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["one"]


async def test_a_member_whose_close_is_cut_off_gives_back_what_it_has(bench: Bench, monkeypatch):
    adapter = await bench.adapter(lease=60)
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    leaving = bench.consumer(adapter, group)
    held = await receive(leaving, 1)
    await leaving._polls.abandon()
    under_way = asyncio.Event()

    async def say_nothing(call, parameters):
        under_way.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "delete_message_batch", say_nothing)
        settling = asyncio.create_task(settle(leaving, held, Ack()))
        await under_way.wait()
        closing = asyncio.create_task(leaving.close())
        for _ in range(10):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing, settling))

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["one"]


async def test_no_more_is_asked_for_than_there_is_room(any_bench: Bench):
    adapter = await any_bench.adapter(pollers=4)
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, *(f"{number}" for number in range(60)))
    consumer = any_bench.consumer(adapter, group)
    assert len(await receive(consumer, 25)) == 25
    await asyncio.sleep(0.3)  # what a poll under way may bring
    assert len(consumer._held) == 25


async def test_a_lease_is_extended_and_then_ends(any_bench: Bench):
    adapter = await any_bench.adapter(lease=3)
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer, other = any_bench.consumer(adapter, group), any_bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    for _ in range(4):
        assert await consumer.extend([delivery], 3) == [True]
        await nothing(other, 0.8)
    (again,) = await receive(other, 1)
    assert again.message.id == "one"
    (late,) = await settle(consumer, [delivery], Reject("too late"), failure="{}")
    assert isinstance(late, SettleError)
    assert isinstance(late.error, LeaseLost)
    assert await adapter.dead_letters(group).count() == 0
    assert await consumer.extend([delivery], 3) == [False]


async def test_what_waits_in_the_adapter_keeps_its_lease(any_bench: Bench):
    adapter = await any_bench.adapter(lease=3)
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, *"ab")
    await stored(adapter, group, 2)
    consumer, other = any_bench.consumer(adapter, group), any_bench.consumer(adapter, group)
    waiting = asyncio.create_task(consumer.receive(10, 0.0))
    await waiting
    async with asyncio.timeout(15):
        while len(consumer._held) < 2:
            await asyncio.sleep(0.01)
    await nothing(other, 3.5)
    assert sorted(ids(await receive(consumer, 2))) == ["a", "b"]


async def test_no_lease_is_asked_for_beyond_twelve_hours(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    delivery.token.received -= LONGEST_LEASE - 10
    asked: list[int] = []

    async def note(call, parameters):
        asked.extend(entry["VisibilityTimeout"] for entry in parameters["Entries"])
        return await call(**parameters)

    intercept(adapter, monkeypatch, "change_message_visibility_batch", note)
    await consumer.extend([delivery], 30)
    assert asked[0] in {9, 10}
    assert delivery.lease.deadline <= time.monotonic() + 10


async def test_a_retry_beyond_900_seconds_takes_steps_and_is_never_early(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    monkeypatch.setattr(copies, "LONGEST_STEP", 1)
    asked = time.monotonic()
    async with standstill(adapter.dead_letters(group).count) as lost:
        assert await settle(consumer, [delivery], Retry(), after=3.4, failure="{}") == [Done()]
        (again,) = await receive(consumer, 1)
        waited, late = time.monotonic() + again.hold - asked, 2 + 2 * lost.seconds
    assert 3.4 <= waited < 3.4 + late
    assert (again.attempt, again.returns, again.failure) == (2, 0, "{}")


async def test_a_delay_is_never_clamped(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    sent: list[dict] = []

    async def note(call, parameters):
        sent.extend(parameters["Entries"])
        return await call(**parameters)

    intercept(adapter, monkeypatch, "send_message_batch", note)
    await settle(consumer, [delivery], Retry(), after=30 * 86_400.0)
    (copy,) = sent
    assert copy["DelaySeconds"] == 900
    assert json.loads(copy["MessageAttributes"]["messaging"]["StringValue"])[DELAY] == repr(30 * 86_400.0)


async def test_attempts_are_recorded_failures_and_nothing_else(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    for returns in range(4):
        (delivery,) = await receive(consumer, 1)
        assert (delivery.attempt, delivery.returns) == (1, min(returns, 2))  # given back, never a suspect
        await settle(consumer, [delivery], Release())
    (delivery,) = await receive(consumer, 1)
    await settle(consumer, [delivery], Retry())
    (delivery,) = await receive(consumer, 1)
    assert (delivery.attempt, delivery.returns, delivery.deliveries) == (2, 0, 2)


async def test_the_copy_is_stored_before_the_message_goes_and_only_once(any_bench: Bench, monkeypatch):
    from messaging.errors import ConnectionFailed

    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    fail = True

    async def fail_once(call, parameters):
        nonlocal fail
        if fail:
            fail = False
            raise ConnectionFailed("throttled")
        return await call(**parameters)

    intercept(adapter, monkeypatch, "delete_message_batch", fail_once)
    (first,) = await settle(consumer, [delivery], Reject("bad"), failure="{}")
    assert isinstance(first, SettleError)
    assert await settle(consumer, [delivery], Reject("bad"), failure="{}") == [Done()]
    assert await settle(consumer, [delivery], Ack()) == [Done()]
    assert await adapter.dead_letters(group).count() == 1


async def test_one_entry_of_a_settled_batch_may_fail_alone(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, *"abc")
    consumer = any_bench.consumer(adapter, group)
    deliveries = await receive(consumer, 3)
    failing = True

    async def one_fails(call, parameters):
        entries = parameters["Entries"]
        if not failing:
            return await call(**parameters)
        answer = await call(**{**parameters, "Entries": entries[:1] + entries[2:]})
        refusal = {"Id": entries[1]["Id"], "Code": "InternalError", "Message": "", "SenderFault": False}
        return {**answer, "Failed": [refusal]}

    intercept(adapter, monkeypatch, "delete_message_batch", one_fails)
    first, second, third = await settle(consumer, deliveries, Ack())
    assert (first, third) == (Done(), Done())
    assert isinstance(second, SettleError)
    failing = False
    assert await settle(consumer, deliveries, Ack()) == [Done()] * 3


async def test_a_release_after_many_receives_starts_a_new_count(any_bench: Bench):
    adapter = await any_bench.adapter(max_receives=10)
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    for _ in range(25):
        (delivery,) = await receive(consumer, 1)
        assert (delivery.message.id, delivery.attempt) == ("one", 1)
        await settle(consumer, [delivery], Release())
    assert await adapter.dead_letters(group).count() == 0


async def test_what_nobody_ends_becomes_a_dead_letter_by_the_service_itself(any_bench: Bench):
    adapter = await any_bench.adapter(max_receives=10)
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one")
    url, sqs = await adapter._topology.queue_url(group), adapter.native.sqs
    dead = adapter.dead_letters(group)
    async with asyncio.timeout(30):
        while not await dead.count():
            await asyncio.to_thread(sqs.receive_message, QueueUrl=url, VisibilityTimeout=0)
    async with dead.scan() as letters:
        (letter,) = [one async for one in letters]
    assert (letter.message.id, letter.failure) == ("one", None)


async def test_a_queue_that_is_gone_ends_the_subscription(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await nothing(consumer, 0.1)
    await adapter.delete_group(group)
    with pytest.raises(TopicNotFound, match="billing"):
        for _ in range(5):
            await consumer.receive(1, 1.0)


# --- ordered -------------------------------------------------------------------------------------------------------


async def test_a_key_goes_on_in_order_after_its_member_left(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *(f"{number:02}" for number in range(14)), key="k")
    await stored(adapter, group, 14)
    leaving = any_bench.consumer(adapter, group)
    held = await receive(leaving, 4)
    await ack(leaving, held[:2])
    await leaving.close()
    others = await handled(any_bench.consumer(adapter, group), 12)
    assert {delivery.attempt for delivery in others} == {1}
    assert ids([*held[:2], *others]) == [f"{number:02}" for number in range(14)]


async def test_a_failed_message_is_held_with_its_key_and_brings_its_neighbours_no_nearer_to_the_dead_letters(
    any_bench: Bench,
):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *"abc", key="k")
    consumer, other = any_bench.consumer(adapter, group), any_bench.consumer(adapter, group)
    first = await receive(consumer, 1)
    before = time.monotonic()
    (held,) = await settle(consumer, first[:1], Retry(), after=60.0)
    assert isinstance(held, Hold)
    assert before + 60 <= held.until <= time.monotonic() + 60
    await nothing(other, 1.0)
    await consumer.close()
    deliveries = await receive(other, 1)
    assert deliveries[0].message.id == "a"
    assert {delivery.attempt for delivery in deliveries} == {1}


async def test_while_one_message_of_a_key_is_ours_no_other_member_gets_a_later_one(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *"ab", key="k")
    one, other = any_bench.consumer(adapter, group), any_bench.consumer(adapter, group)
    (first,) = await receive(one, 1) if (held := await one.receive(1, 5.0)) == () else held
    await nothing(other, 0.5)
    await ack(one, [first])
    assert ids(await receive(other, 1)) == ["b"]


async def test_the_deliveries_of_a_key_have_one_lease_and_those_of_another_have_theirs(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "a1", "a2", key="a")
    await publish(adapter, ORDERED, "b1", key="b")
    await stored(adapter, group, 3)
    consumer = any_bench.consumer(adapter, group)
    deliveries = {delivery.message.id: delivery for delivery in await receive(consumer, 3)}
    assert deliveries["a1"].lease is deliveries["a2"].lease
    assert deliveries["a1"].lease is not deliveries["b1"].lease


async def test_an_extension_that_meets_a_removal_under_way_takes_no_successor_of_the_key(
    any_bench: Bench, monkeypatch
):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "a", "b", key="k")
    await stored(adapter, group, 2)
    told = Recorder()
    consumer = any_bench.consumer(adapter, group, told)
    first, second = await receive(consumer, 2)
    extended: list[bool] = []

    async def answer_late(call, parameters):
        answer = await call(**parameters)
        extended.extend(await consumer.extend([first, second], 30))
        return answer

    intercept(adapter, monkeypatch, "delete_message_batch", answer_late)
    assert await settle(consumer, [first], Ack()) == [Done()]
    assert extended == [True, True]
    assert await settle(consumer, [second], Ack()) == [Done()]
    assert told.lost == []


async def test_a_dead_letter_of_an_ordered_group_lets_its_key_go_on(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *"ab", key="k")
    await stored(adapter, group, 2)
    consumer = any_bench.consumer(adapter, group)
    deliveries = await receive(consumer, 2)
    assert await settle(consumer, deliveries, Reject("bad"), failure="{}") == [Done(), Done()]
    await publish(adapter, ORDERED, "c", key="k")
    assert ids(await receive(consumer, 1)) == ["c"]
    assert await adapter.dead_letters(group).count() == 2


async def test_a_message_of_a_paused_partition_is_kept_and_received_once(any_bench: Bench):
    adapter = await any_bench.adapter(lease=3)
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *"ab", key="k")
    await stored(adapter, group, 2)
    consumer = any_bench.consumer(adapter, group)
    assert await consumer.receive(10, 4.0, paused=(0, 1)) == ()
    deliveries = await receive(consumer, 2)
    assert ids(deliveries) == ["a", "b"]
    assert {delivery.token.count for delivery in deliveries} == {1}


async def test_a_receive_goes_on_polling_after_a_poll_that_brought_nothing(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter(poll_wait=1)
    group = await any_bench.group(adapter)
    second = poll_begun(adapter, monkeypatch, 2)
    receiving = asyncio.create_task(any_bench.consumer(adapter, group).receive(1, 30.0))
    async with asyncio.timeout(20):
        await second.wait()
        await publish(adapter, group.topic, "late")
        assert ids(await receiving) == ["late"]


async def test_what_a_paused_partition_keeps_takes_no_room_from_the_others_up_to_a_bound(
    any_bench: Bench, monkeypatch
):
    monkeypatch.setattr(arrivals, "MOST_ASIDE", 3)
    adapter = await any_bench.adapter(poll_wait=1)
    group = await any_bench.group(adapter, ORDERED)
    full = [key for key in map(str, range(20)) if partition_of(key, 2) == 0]
    free = [key for key in map(str, range(20)) if partition_of(key, 2) == 1]
    for key in full[:2]:
        await publish(adapter, ORDERED, key, key=key)
    await stored(adapter, group, 2)
    consumer = any_bench.consumer(adapter, group)
    assert await consumer.receive(2, 1.0, paused=(0,)) == ()
    await publish(adapter, ORDERED, free[0], key=free[0])
    assert ids(await consumer.receive(2, 5.0, paused=(0,))) == free[:1]
    for key in (*full[2:4], free[1]):
        await publish(adapter, ORDERED, key, key=key)
        assert await consumer.receive(1, 0.5, paused=(0, 1)) == ()
    assert len(consumer._held) < 6
    assert sorted(ids(await receive(consumer, 5))) == sorted([*full[:4], free[1]])


async def test_what_cannot_be_read_of_a_poll_is_told_and_comes_again(bench: Bench, monkeypatch, caplog):
    adapter = await bench.adapter(lease=1)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    real = consumer.unpacked

    def defective(*_: object):
        monkeypatch.setattr(consumer, "unpacked", real)
        raise RuntimeError("a defect")

    monkeypatch.setattr(consumer, "unpacked", defective)
    await publish(adapter, group.topic, "one")
    with pytest.raises(ConnectionFailed, match="a defect"):
        await receive(consumer, 1)
    assert "by a defect" in caplog.text
    assert ids(await receive(consumer, 1)) == ["one"]


@pytest.mark.parametrize("topic", [TopicSpec("orders"), ORDERED])
async def test_what_was_lost_takes_no_memory(bench: Bench, topic: TopicSpec):
    adapter = await bench.adapter(lease=1)
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, topic, "one", key="ann")
    await receive(consumer, 1)
    async with asyncio.timeout(20):
        while consumer._held:
            await asyncio.sleep(0.05)
