"""Replies to a process."""

import asyncio

import pytest

from messaging.errors import Closed, ConnectionFailed, InvalidMessage, MessageTooLarge
from messaging.message import Message


def reply(number):
    return Message(id=f"r{number}", topic="", body=b"%d" % number, correlation_id=f"q{number}")


async def test_replies_come_in_order_each_once_whatever_is_cancelled(bench):
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    got = []

    for number in range(20):
        waiting = asyncio.create_task(inbox.receive(10, 1))
        await asyncio.sleep(0)
        assert await adapter.reply([(inbox.address, reply(number))]) == [None]
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        got += [] if isinstance(outcome, BaseException) else outcome
    while len(got) < 20:
        batch = await inbox.receive(10, 10)
        assert batch
        got += batch

    assert [(message.id, message.correlation_id) for message in got] == [
        (f"r{n}", f"q{n}") for n in range(20)
    ]


async def test_two_inboxes_never_get_each_others_replies(bench):
    adapter = await bench.adapter()
    one, two = await adapter.reply_inbox(), await adapter.reply_inbox()

    await adapter.reply([((one, two)[n % 2].address, reply(n)) for n in range(10)])

    assert [message.id for message in await one.receive(10, 10)] == ["r0", "r2", "r4", "r6", "r8"]
    assert [message.id for message in await two.receive(10, 10)] == ["r1", "r3", "r5", "r7", "r9"]
    assert await one.receive(10, 0.05) == []


@pytest.mark.parametrize("address", ["", "orders", "messaging:reply::", "messaging:{x}:0", "x\r\nFLUSHALL"])
async def test_an_address_that_is_no_inbox_of_ours_is_refused_and_nothing_is_written(bench, address):
    adapter = await bench.adapter()

    (result,) = await adapter.reply([(address, reply(1))])

    assert isinstance(result, InvalidMessage)
    assert not address or await adapter.native.exists(address) == 0


async def test_a_reply_whose_inbox_is_gone_is_no_error_and_goes_away_by_itself(bench):
    adapter = await bench.adapter(reply_ttl=30)
    inbox = await adapter.reply_inbox()
    await inbox.receive(1, 0.05)
    await inbox.close()
    await inbox.close()

    assert await adapter.reply([(inbox.address, reply(1))]) == [None]

    assert 0 < await adapter.native.pttl(inbox.address) <= 30_000
    with pytest.raises(Closed):
        await inbox.receive(1, 0.1)


async def test_a_reply_that_is_too_large_is_refused_and_its_neighbours_are_sent(bench):
    adapter = await bench.adapter(max_message_bytes=1024)
    inbox = await adapter.reply_inbox()
    large = Message(id="large", topic="", body=bytes(1025), correlation_id="q")

    before, refused, after = await adapter.reply(
        [(inbox.address, reply(1)), (inbox.address, large), (inbox.address, reply(2))]
    )
    (alone,) = await adapter.reply([(inbox.address, large)])

    assert (before, type(refused), type(alone), after) == (None, MessageTooLarge, MessageTooLarge, None)
    assert [message.id for message in await inbox.receive(10, 10)] == ["r1", "r2"]


async def test_what_was_read_is_removed_and_close_leaves_nothing(bench):
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    await adapter.reply([(inbox.address, reply(n)) for n in range(10)])

    await inbox.receive(10, 10)
    await inbox.receive(10, 0.05)
    assert await adapter.native.xlen(inbox.address) == 0
    await inbox.close()
    assert await adapter.native.exists(inbox.address) == 0


async def test_a_server_that_went_back_in_time_is_noticed(bench):
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    await adapter.reply([(inbox.address, reply(1))])
    await inbox.receive(10, 10)
    await adapter.native.delete(inbox.address)
    await adapter.native.xadd(inbox.address, {"body": "x", "ce_id": "r2"}, id="1-1")

    with pytest.raises(ConnectionFailed, match="lost the replies"):
        await inbox.receive(10, 0.05)
    assert [message.id for message in await inbox.receive(10, 10)] == ["r2"]


async def test_an_inbox_whose_connection_breaks_says_so_and_goes_on(own):
    _, bench = await own()  # all that read there are killed
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    waiting = asyncio.create_task(inbox.receive(10, 5))
    killed = 0
    while not killed:
        for client in await adapter.native.client_list(_type="normal"):
            if client["cmd"] == "xread":
                killed += await adapter.native.client_kill_filter(_id=client["id"])

    with pytest.raises(ConnectionFailed):
        await waiting
    await adapter.reply([(inbox.address, reply(1))])
    assert [message.id for message in await inbox.receive(10, 10)] == ["r1"]
