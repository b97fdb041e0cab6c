"""Reading, redriving and purging dead letters; reply inboxes."""

import asyncio
import dataclasses

import pytest

from messaging.adapter import TopicSpec
from messaging.errors import ConnectionFailed, InvalidMessage, NoGroup
from messaging.message import Message, Reject
from tests.contract.bench import outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench


async def with_letters(bench: Bench, topic: TopicSpec, number: int):
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, topic, *(f"m{count}" for count in range(number)), key="k")
    await settle(consumer, await receive(consumer, number), Reject("no"), failure='{"reason": "no"}')
    return adapter, group, consumer


async def browsed(store) -> list[str]:
    async with store.scan() as letters:
        return [letter.message.id async for letter in letters]


async def test_browsing_consumes_and_reorders_nothing(bench: Bench) -> None:
    adapter, group, _ = await with_letters(bench, TopicSpec("orders", partitions=2), 30)
    store = adapter.dead_letters(group)
    expected = [f"m{number}" for number in range(30)]

    assert await browsed(store) == expected
    async with store.scan() as letters:
        async for letter in letters:
            if letter.message.id == "m7":
                break
    assert await store.count() == 30
    assert await browsed(store) == expected


@pytest.mark.parametrize("ordered", [False, True])
async def test_redrive_reaches_this_group_only_and_starts_anew(bench: Bench, ordered: bool) -> None:
    topic = TopicSpec("orders", ordered=ordered, partitions=2)
    adapter, group, consumer = await with_letters(bench, topic, 5)
    other = await bench.group(adapter, topic, "search")
    store = adapter.dead_letters(group)

    async with store.scan() as letters:
        found = [letter async for letter in letters]
        edited = dataclasses.replace(found[1].message, body=b"edited")
        results = await store.redrive(
            [(found[1], edited, '{"lives": 1}'), (found[3], found[3].message, None)]
        )
        purged = await store.purge([found[0], found[1]])

    assert results == [None, None] and purged == 1
    assert await browsed(store) == ["m2", "m4"]
    one, two = await receive(consumer, 2)
    assert (one.message, one.attempt, one.failure) == (edited, 1, '{"lives": 1}')
    assert (two.message.id, two.attempt, two.failure) == ("m3", 1, None)
    assert await bench.consumer(adapter, other).receive(1, 0.2) == ()


async def test_replies_reach_their_inbox_across_connections(bench: Bench) -> None:
    adapter, responder = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(responder, group)
    inbox = await adapter.reply_inbox()
    bench.stack.push_async_callback(inbox.close)
    request = outgoing(group.topic, "q1", mandatory=True)
    request.reply_to = inbox.address
    await adapter.publish([request])
    (delivery,) = await receive(consumer, 1)
    assert delivery.reply_to == inbox.address

    answer = Message(
        id="r1", topic=group.topic.name, body=b"42", correlation_id="q1", content_type="text/plain"
    )
    assert await responder.reply([(inbox.address, answer)]) == [None]

    (reply,) = await inbox.receive(10, 2)
    assert (reply.body, reply.correlation_id, reply.content_type) == (b"42", "q1", "text/plain")
    assert await inbox.receive(10, 0.05) == ()
    await inbox.close()
    await inbox.close()
    assert await responder.reply([(inbox.address, answer)]) == [None]


async def test_an_inbox_that_is_closed_is_deleted_without_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    await inbox.close()
    assert caplog.records == []
    with pytest.raises(ConnectionFailed, match="NOT_FOUND"):
        async with adapter._session.consuming.throwaway("looking for the inbox") as channel:
            await channel.queue_declare(inbox.address, passive=True)


async def test_a_reply_goes_to_reply_inboxes_only(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    names = adapter._session.names
    answer = Message(id="r1", topic="", body=b"")
    direct = "amq.rabbitmq.reply-to.g2dkABBnb25l.bm9uZQ=="
    addresses = [names.queue(group), names.dead(group), names.reply("g" * 32), "", direct, "x" * 300]

    results = await adapter.reply([(address, answer) for address in addresses])

    assert [type(result) for result in results] == [InvalidMessage] * len(addresses)
    assert adapter.native is not None


async def test_a_request_that_nobody_can_answer_is_told_at_once(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.delete_group(group)
    (result,) = await adapter.publish([outgoing(group.topic, "q1", mandatory=True)])
    assert isinstance(result, NoGroup)


async def test_a_lost_inbox_is_told_and_opens_again_under_a_new_address(bench: Bench) -> None:
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    bench.stack.push_async_callback(inbox.close)
    before = inbox.address
    waiting = asyncio.create_task(inbox.receive(1, 10))
    await asyncio.sleep(0.05)

    adapter._session.consuming.abort()
    with pytest.raises(ConnectionFailed):
        await waiting

    assert await inbox.receive(1, 0.05) == ()
    assert inbox.address != before
    assert await adapter.reply([(inbox.address, Message(id="r", topic="", body=b"x"))]) == [None]
    assert len(await inbox.receive(1, 10)) == 1


async def test_a_long_queue_of_letters_keeps_its_order_when_a_scan_ends_early(
    bench: Bench, monkeypatch
) -> None:
    monkeypatch.setattr("messaging_rabbitmq.browse.PART", 40)
    adapter, group, _ = await with_letters(bench, TopicSpec("orders", partitions=2), 100)
    store = adapter.dead_letters(group)
    expected = [f"m{number}" for number in range(100)]
    for stop in (100, 3, 50, 100):
        async with store.scan() as letters:
            seen = 0
            async for _ in letters:
                seen += 1
                if seen == stop:
                    break
        assert await store.count() == 100
    assert await browsed(store) == expected
