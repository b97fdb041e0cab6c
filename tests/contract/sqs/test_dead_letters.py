"""Dead letters: read without harm, each once, redriven to their group."""

import asyncio
import json
import time
import zlib
from base64 import b64encode
from dataclasses import replace
from random import Random

import pytest

from messaging.adapter import Done, GroupSpec, Hold, Lease, SettleError, TopicSpec
from messaging.errors import ConnectionFailed, PublishError
from messaging.failure import parse
from messaging.message import Reject, Retry
from messaging_sqs import browse, copies
from messaging_sqs.entries import unpack
from tests.contract.bench import ack, ids, nothing, outgoing, publish, receive, settle
from tests.contract.sqs.support import Bench, intercept, refuse_entries

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def make_dead(bench: Bench, adapter, group, *names: str, key: str | None = None) -> None:
    """One after the other, so that they are of different ages."""
    consumer = bench.consumer(adapter, group)
    for name in names:
        await publish(adapter, group.topic, name, key=key)
        deliveries = await receive(consumer, 1)
        await settle(consumer, deliveries, Reject("bad"), failure='{"why": "bad"}')
    await consumer.close()


async def browsed(adapter, group) -> list[str]:
    async with adapter.dead_letters(group).scan() as letters:
        return [letter.message.id async for letter in letters]


@pytest.mark.parametrize("topic", [TopicSpec("orders"), ORDERED], ids=["unordered", "ordered"])
async def test_browsing_shows_all_of_one_key_oldest_first_and_changes_nothing(any_bench: Bench, topic):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, topic)
    names = [f"{number:02}" for number in range(13)]
    await make_dead(any_bench, adapter, group, *names, key="k")
    for _ in range(3):
        assert await browsed(adapter, group) == names
    assert await adapter.dead_letters(group).count() == 13


async def test_parts_are_read_ahead_and_a_scan_left_early_hides_nothing(any_bench: Bench, monkeypatch):
    monkeypatch.setattr(browse, "PART", 4)
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    names = [f"{number}" for number in range(9)]
    await make_dead(any_bench, adapter, group, *names)
    async with adapter.dead_letters(group).scan() as letters:
        async for letter in letters:
            assert letter.message.id == "0"
            break
    assert sorted(await browsed(adapter, group)) == names


async def test_what_a_reader_hid_that_was_cut_off_soon_is_there_again_soon(any_bench: Bench, monkeypatch):
    monkeypatch.setattr(browse, "AT_FIRST", 2)
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await make_dead(any_bench, adapter, group, "one")

    async def fail(call, parameters):
        raise ConnectionFailed("cut off")

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "change_message_visibility_batch", fail)
        assert await browsed(adapter, group) == ["one"]
    async with asyncio.timeout(10):
        while await browsed(adapter, group) != ["one"]:
            await asyncio.sleep(0.1)


async def test_what_is_read_is_hidden_for_as_long_as_it_is_being_read(any_bench: Bench, monkeypatch):
    monkeypatch.setattr(browse, "AT_FIRST", 3)
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await make_dead(any_bench, adapter, group, "one")
    async with adapter.dead_letters(group).scan() as letters:
        assert [letter.message.id async for letter in letters] == ["one"]
        await asyncio.sleep(4)
        assert await browsed(adapter, group) == []
    assert await browsed(adapter, group) == ["one"]


async def test_a_letter_that_a_crash_had_stored_twice_is_one(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    consumer = any_bench.consumer(adapter, group)
    await publish(adapter, group.topic, "one")
    (delivery,) = await receive(consumer, 1)
    url = await adapter._topology.dead_url(group)
    for _ in range(2):
        await copies.store(adapter._connection, url, [copies.dead(delivery, url, "{}")])
    dead = adapter.dead_letters(group)
    async with dead.scan() as letters:
        found = [letter async for letter in letters]
        assert [letter.message.id for letter in found] == ["one"]
        assert await dead.purge(found) == 1
    assert await dead.count() == 0


async def test_a_duplicate_that_is_read_after_its_letter_was_redriven_goes_with_it(
    any_bench: Bench, monkeypatch
):
    monkeypatch.setattr(browse, "PART", 1)
    monkeypatch.setattr(browse, "MOST", 1)
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    consumer = any_bench.consumer(adapter, group)
    await publish(adapter, group.topic, "one")
    (delivery,) = await receive(consumer, 1)
    await ack(consumer, [delivery])
    url = await adapter._topology.dead_url(group)
    for _ in range(2):
        await copies.store(adapter._connection, url, [copies.dead(delivery, url, "{}")])
    dead, redriven = adapter.dead_letters(group), 0
    async with dead.scan() as letters:
        async for letter in letters:
            assert await dead.redrive([(letter, letter.message, None)]) == [None]
            redriven += 1
    assert redriven == 1
    assert await dead.count() == 0
    assert ids(await receive(consumer, 1)) == ["one"]


@pytest.mark.parametrize("topic", [TopicSpec("orders"), ORDERED], ids=["unordered", "ordered"])
async def test_a_letter_redriven_twice_within_five_minutes_arrives_twice(any_bench: Bench, topic):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, topic)
    await make_dead(any_bench, adapter, group, "one", key="k")
    consumer, dead = any_bench.consumer(adapter, group), adapter.dead_letters(group)
    for _ in range(2):
        async with dead.scan() as letters:
            found = [letter async for letter in letters]
            corrected = [(letter, replace(letter.message, body=b"good"), letter.failure) for letter in found]
            assert await dead.redrive(corrected) == [None]
        (delivery,) = await receive(consumer, 1)
        assert (delivery.message.body, delivery.message.key, delivery.attempt) == (b"good", "k", 1)
        assert delivery.failure == '{"why": "bad"}'
        await settle(consumer, [delivery], Reject("bad"), failure='{"why": "bad"}')
    assert await dead.count() == 1


async def test_a_letter_that_could_not_be_sent_stays(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await make_dead(any_bench, adapter, group, "one")

    async def fail(call, parameters):
        raise ConnectionFailed("throttled")

    dead = adapter.dead_letters(group)
    with monkeypatch.context() as patched:
        intercept(adapter, patched, "send_message_batch", fail)
        async with dead.scan() as letters:
            (letter,) = [one async for one in letters]
            (error,) = await dead.redrive([(letter, letter.message, None)])
    assert isinstance(error, PublishError)
    assert await browsed(adapter, group) == ["one"]


async def test_a_redriven_letter_is_removed_though_the_service_refuses_that_at_first(
    any_bench: Bench, monkeypatch
):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await make_dead(any_bench, adapter, group, "one")
    dead = adapter.dead_letters(group)
    refuse_entries(adapter, monkeypatch, "delete_message_batch", 1)
    async with dead.scan() as letters:
        (letter,) = [one async for one in letters]
        assert await dead.redrive([(letter, letter.message, None)]) == [None]
    assert await dead.count() == 0


async def test_a_letter_of_a_closed_scan_is_not_taken(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await make_dead(any_bench, adapter, group, "one")
    dead = adapter.dead_letters(group)
    async with dead.scan() as letters:
        found = [letter async for letter in letters]
    assert await dead.purge(found) == 0
    assert await dead.count() == 1


async def test_the_failure_record_is_left_out_where_it_does_not_fit(bench: Bench, caplog):
    adapter = await bench.adapter(max_message_bytes=1024 * 1024)
    group = await bench.group(adapter)
    most = adapter.capabilities.max_message_bytes
    results = await adapter.publish([outgoing(group.topic, "one", body=incompressible(most - 400))])
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 1)
    await settle(consumer, deliveries, Reject("bad"), failure="y" * 5000)
    async with adapter.dead_letters(group).scan() as letters:
        (letter,) = [one async for one in letters]
    assert (letter.message.id, letter.failure) == (results[0].id, None)  # type: ignore[union-attr]
    assert "left out" in caplog.text


def incompressible(size: int, line_end: bytes = b"") -> bytes:
    """Text that is no smaller when it is compressed and written as text again."""
    noise = Random(7).randbytes(size)
    lines = (b64encode(noise[start : start + 57]) + line_end for start in range(0, size, 57))
    return b"".join(lines)[:size]


async def foreign(adapter, group, body: bytes) -> None:
    """Another program writes into the queue of the group."""
    url = await adapter._topology.queue_url(group)
    adapter.native.sqs.send_message(QueueUrl=url, MessageBody=body.decode())


async def test_a_foreign_message_that_grows_by_our_encoding_is_retried_and_dies_whole(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    body = b"a;b;c\r\n" * 130_000
    await foreign(adapter, group, body)
    consumer = bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    assert await settle(consumer, [delivery], Retry(), failure="{}") == [Done()]
    (delivery,) = await receive(consumer, 1)
    assert (delivery.message.body == body, delivery.attempt) == (True, 2)
    assert await settle(consumer, [delivery], Reject("bad"), failure="{}") == [Done()]
    async with adapter.dead_letters(group).scan() as letters:
        (letter,) = [one async for one in letters]
    assert letter.message.body == body


async def test_a_message_too_large_for_any_copy_is_held_for_its_retry_then_cut_and_its_neighbours_are_settled(
    bench: Bench,
):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    body = incompressible(1_040_000, b"\r\n")
    await foreign(adapter, group, body)
    consumer = bench.consumer(adapter, group)
    (large,) = await receive(consumer, 1)
    await publish(adapter, group.topic, "beside")
    (beside,) = await receive(consumer, 1)
    held, done = await settle(consumer, [large, beside], Retry(), after=2.0, failure="{}")
    assert isinstance(held, Hold)
    assert held.until == pytest.approx(time.monotonic() + 2, abs=1)
    assert done == Done()
    assert await settle(consumer, [large], Reject("bad"), failure="{}") == [Done()]
    async with adapter.dead_letters(group).scan() as letters:
        (letter,) = [one async for one in letters]
    failure = parse(letter.failure)
    assert body.startswith(letter.message.body)
    assert failure.cut_from == len(body)
    assert failure.last is not None
    assert failure.last.cause == "oversize"


async def test_a_retry_that_can_neither_be_copied_nor_held_so_long_is_a_cut_letter(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await foreign(adapter, group, incompressible(1_040_000, b"\r\n"))
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 1)
    assert await settle(consumer, deliveries, Retry(), after=13 * 3600.0, failure="{}") == [Done()]
    assert await adapter.dead_letters(group).count() == 1


async def test_a_copy_that_is_refused_for_its_size_is_not_tried_for_ever_and_holds_up_no_other(strict: Bench):
    adapter = await strict.adapter()
    group = await strict.group(adapter)
    for body in (incompressible(240_000, b"\r\n"), incompressible(100_000), incompressible(120_000)):
        await foreign(adapter, group, body)
    consumer = strict.consumer(adapter, group)
    large, *small = sorted(await receive(consumer, 3), key=lambda one: -len(one.message.body))
    first, *others = await settle(consumer, [large, *small], Retry(), failure="{}")
    assert isinstance(first, SettleError)
    assert others == [Done(), Done()]
    (held,) = await settle(consumer, [large], Retry(), failure="{}")
    assert isinstance(held, Hold)
    assert await settle(consumer, [large], Reject("bad"), failure="{}") == [Done()]


async def test_what_another_program_left_behind_its_message_group_is_told_and_follows(bench: Bench, caplog):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    url = await adapter._topology.dead_url(group)
    for start in (0, 10):
        entries = [
            {"Id": id, "MessageBody": id, "MessageGroupId": "ann", "MessageDeduplicationId": id}
            for id in map(str, range(start, start + 10))
        ]
        adapter.native.sqs.send_message_batch(QueueUrl=url, Entries=entries)
    store = adapter.dead_letters(group)
    async with store.scan() as letters:
        shown = [letter async for letter in letters]
        assert f"{20 - len(shown)} dead letters of orders/billing are not shown" in caplog.text
        await store.purge(shown)
    caplog.clear()
    assert len(await browsed(adapter, group)) == 20 - len(shown)
    assert "not shown" not in caplog.text


async def test_a_forged_compressed_body_fills_no_memory():
    forged = b64encode(zlib.compress(b"x" * 50_000_000)).decode()
    attribute = {"DataType": "String", "StringValue": json.dumps({"messaging-encoding": "deflate"})}
    raw = {
        "MessageId": "m",
        "ReceiptHandle": "h",
        "Body": forged,
        "MessageAttributes": {"messaging": attribute},
    }
    group = GroupSpec(TopicSpec("orders"), "billing")
    assert unpack(raw, group, Lease()).message.body == forged.encode()


@pytest.mark.parametrize("topic", [TopicSpec("orders"), ORDERED], ids=["unordered", "ordered"])
async def test_what_the_service_itself_moves_back_has_a_new_life_and_the_place_of_its_key(
    bench: Bench, topic: TopicSpec
):
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, topic, "one", key="ann")
    (delivery,) = await receive(consumer, 1)
    delivery.attempt = 3
    await settle(consumer, [delivery], Reject("bad"), failure='{"attempts": 3}')

    move_back(adapter, await adapter._topology.dead_url(group), await adapter._topology.queue_url(group))

    (delivery,) = await receive(consumer, 1)
    assert (delivery.message.id, delivery.attempt, delivery.deliveries) == ("one", 1, 1)
    assert parse(delivery.failure).redrives == 1
    if topic.ordered:
        assert delivery.token.group_id == "ann"
    await ack(consumer, [delivery])
    await nothing(consumer, 0.2)


def move_back(adapter, source: str, target: str) -> None:
    """What StartMessageMoveTask does, at once."""
    sqs = adapter.native.sqs
    (raw,) = sqs.receive_message(
        QueueUrl=source, WaitTimeSeconds=2, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"]
    )["Messages"]
    group_id = raw["Attributes"].get("MessageGroupId")
    fifo = {"MessageGroupId": group_id, "MessageDeduplicationId": "moved"} if group_id else {}
    attributes = raw["MessageAttributes"]
    sqs.send_message(QueueUrl=target, MessageBody=raw["Body"], MessageAttributes=attributes, **fifo)
    sqs.delete_message(QueueUrl=source, ReceiptHandle=raw["ReceiptHandle"])
