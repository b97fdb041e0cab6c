"""Replies: only to inboxes, none for who is gone, and what processes left behind is swept."""

import asyncio
import secrets

import pytest

from messaging.errors import ConnectionFailed, InvalidMessage
from messaging.message import Message
from messaging_sqs import replies
from messaging_sqs.replies import SQSInbox
from tests.contract.sqs.support import Bench, intercept, poll_begun


def answer(id: str = "reply") -> Message:
    return Message(id=id, topic="quotes", body=b"42", correlation_id="question")


async def opened(adapter) -> SQSInbox:
    inbox = await adapter.reply_inbox()
    assert isinstance(inbox, SQSInbox)
    return inbox


async def arrived(inbox, number: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(10):
        while len(found) < number:
            found += [message.id for message in await inbox.receive(100, 1.0)]
    return found


async def test_replies_arrive_each_once(any_bench: Bench):
    adapter = await any_bench.adapter()
    inbox = await opened(adapter)
    names = [f"{number}" for number in range(25)]
    assert await adapter.reply([(inbox.address, answer(name)) for name in names]) == [None] * 25
    assert sorted(await arrived(inbox, 25)) == sorted(names)
    assert await inbox.receive(10, 0.3) == ()
    await inbox.close()


async def test_a_receive_goes_on_polling_after_a_poll_that_brought_nothing(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter(poll_wait=1)
    inbox = await opened(adapter)
    second = poll_begun(adapter, monkeypatch, 2)
    receiving = asyncio.create_task(inbox.receive(1, 30.0))
    async with asyncio.timeout(20):
        await second.wait()
        assert await adapter.reply([(inbox.address, answer("late"))]) == [None]
        assert [message.id for message in await receiving] == ["late"]
    await inbox.close()


@pytest.mark.parametrize("address", ["orders", "", "../..", "🦜", "messaging-reply-x", "x" * 500])
async def test_nothing_is_sent_where_no_inbox_could_be(bench: Bench, address):
    adapter = await bench.adapter()
    (error,) = await adapter.reply([(address, answer())])
    assert isinstance(error, InvalidMessage)


async def test_a_reply_to_an_inbox_that_is_gone_is_no_error(any_bench: Bench):
    adapter = await any_bench.adapter()
    inbox = await opened(adapter)
    await inbox.close()
    await inbox.close()
    assert await adapter.reply([(inbox.address, answer())]) == [None]


async def test_an_inbox_that_was_deleted_is_made_anew(any_bench: Bench):
    adapter = await any_bench.adapter()
    inbox = await opened(adapter)
    former = inbox.address
    await adapter._topology.queues.delete(inbox._url)
    with pytest.raises(ConnectionFailed):
        for _ in range(5):
            await inbox.receive(10, 1.0)
    assert inbox.address != former
    assert await adapter.reply([(inbox.address, answer())]) == [None]
    assert await arrived(inbox, 1) == ["reply"]
    await inbox.close()


async def test_reply_queues_of_dead_processes_are_swept_and_no_others(any_bench: Bench):
    adapter = await any_bench.adapter()
    queues, names = adapter._topology.queues, adapter._topology.names
    living = await opened(adapter)
    orphan = await queues.create(names.reply(secrets.token_hex(16)), {replies.ALIVE: "1000"}, retention=60)
    stranger = await queues.create(names.reply("stranger"), {replies.ALIVE: "1000"}, retention=60)
    untold = await queues.create(names.reply(secrets.token_hex(16)), {}, retention=60)
    await replies.sweep(adapter._connection, adapter._topology, "another")
    left = await queues.named_like(names.replies)
    assert orphan not in left
    assert {stranger, untold, living._url} <= set(left)
    await living.close()
    for url in (stranger, untold):
        await queues.delete(url)


async def test_an_orphan_is_swept_however_many_live_beside_it(bench: Bench, monkeypatch):
    monkeypatch.setattr(replies, "_SWEPT_AT_ONCE", 2)
    adapter = await bench.adapter()
    queues, names = adapter._topology.queues, adapter._topology.names
    now = replies._alive(adapter._connection)
    living = [await queues.create(names.reply(number * 32), now, retention=60) for number in "012"]
    orphan = await queues.create(names.reply("f" * 32), {replies.ALIVE: "1000"}, retention=60)
    async with asyncio.timeout(10):
        while orphan in await queues.named_like(names.replies):
            await replies.sweep(adapter._connection, adapter._topology, "own")
    assert set(living) <= set(await queues.named_like(names.replies))
    for url in living:
        await queues.delete(url)


async def test_a_queue_that_goes_while_it_is_looked_at_keeps_no_other_from_being_swept(
    bench: Bench, monkeypatch
):
    adapter = await bench.adapter()
    queues, names = adapter._topology.queues, adapter._topology.names
    orphans = [
        await queues.create(names.reply(number * 32), {replies.ALIVE: "1000"}, retention=60)
        for number in "012"
    ]
    looked: list[str] = []

    async def gone_at_first(call, parameters):
        looked.append(parameters["QueueUrl"])
        if len(looked) == 1:
            await queues.delete(looked[0])
        return await call(**parameters)

    intercept(adapter, monkeypatch, "list_queue_tags", gone_at_first)
    await replies.sweep(adapter._connection, adapter._topology, "own")
    assert sorted(looked) == sorted(orphans)
    assert await queues.named_like(names.replies) == []


async def test_an_inbox_sweeps_when_it_opens(any_bench: Bench):
    adapter = await any_bench.adapter()
    queues, names = adapter._topology.queues, adapter._topology.names
    orphan = await queues.create(names.reply(secrets.token_hex(16)), {replies.ALIVE: "1000"}, retention=60)
    inbox = await opened(adapter)
    async with asyncio.timeout(15):
        while orphan in await queues.named_like(names.replies):
            await asyncio.sleep(0.05)
    await inbox.close()


async def test_an_inbox_shows_that_it_lives(bench: Bench, monkeypatch):
    monkeypatch.setattr(replies, "BEAT", 0.05)
    adapter = await bench.adapter()
    inbox = await opened(adapter)
    sqs = adapter.native.sqs
    sqs.tag_queue(QueueUrl=inbox._url, Tags={replies.ALIVE: "1000"})
    async with asyncio.timeout(15):
        while sqs.list_queue_tags(QueueUrl=inbox._url)["Tags"][replies.ALIVE] == "1000":
            await asyncio.sleep(0.02)
    await inbox.close()


async def test_a_sign_of_life_that_failed_is_not_the_last(bench: Bench, monkeypatch):
    monkeypatch.setattr(replies, "BEAT", 0.05)
    adapter = await bench.adapter()
    inbox = await opened(adapter)
    sqs, call, failed = adapter.native.sqs, adapter._connection.call, asyncio.Event()

    async def throttled(service, operation, /, **parameters):
        if operation == "tag_queue" and not failed.is_set():
            failed.set()
            raise ConnectionFailed("throttled")
        return await call(service, operation, **parameters)

    monkeypatch.setattr(adapter._connection, "call", throttled)
    async with asyncio.timeout(15):
        await failed.wait()
        sqs.tag_queue(QueueUrl=inbox._url, Tags={replies.ALIVE: "1000"})
        while sqs.list_queue_tags(QueueUrl=inbox._url)["Tags"][replies.ALIVE] == "1000":
            await asyncio.sleep(0.02)
    await inbox.close()
