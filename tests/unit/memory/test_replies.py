import asyncio

import pytest

from messaging.adapter import AdapterContext
from messaging.errors import Closed, ConnectionFailed, InvalidMessage, MessageTooLarge
from messaging.message import Message
from messaging_memory import MemoryAdapter


def reply(id="r", **fields):
    return Message(id=id, topic="quotes", body=b"1", type="quotes", correlation_id="c", **fields)


async def test_a_reply_reaches_its_inbox_alone(world):
    first, second = await world.adapter.reply_inbox(), await world.adapter.reply_inbox()
    waiting = asyncio.create_task(first.receive(10, 60))
    await world.clock.settle()

    assert await world.adapter.reply([(first.address, reply(headers={"a": "b"}))]) == [None]

    (message,) = await waiting
    assert (message.id, message.body, message.correlation_id, message.headers) == ("r", b"1", "c", {"a": "b"})
    waiting = asyncio.create_task(second.receive(10, 5))
    await world.clock.advance(5)
    assert list(await waiting) == []


async def test_a_late_reply_is_dropped_and_counted(world):
    inbox = await world.adapter.reply_inbox()
    await inbox.close()
    await inbox.close()

    assert await world.adapter.reply([(inbox.address, reply())]) == [None]

    assert world.broker.dropped_replies == 1
    with pytest.raises(Closed):
        await inbox.receive(1, 0)


async def test_addresses_of_others_and_oversize_are_refused(world):
    staging = MemoryAdapter(AdapterContext(clock=world.clock, namespace="staging"), broker=world.broker)
    world.adapters.append(staging)
    await staging.open()
    theirs = await staging.reply_inbox()
    ours = await world.adapter.reply_inbox()

    results = await world.adapter.reply(
        [
            ("orders", reply()),
            (theirs.address, reply()),
            (ours.address, Message(id="big", topic="q", body=b"x" * 2_000_000)),
        ]
    )

    assert [type(result) for result in results] == [InvalidMessage, InvalidMessage, MessageTooLarge]


async def test_a_lost_connection_is_told_once_to_whoever_waits(world):
    inbox = await world.adapter.reply_inbox()
    waiting = asyncio.create_task(inbox.receive(1, 60))
    await world.clock.settle()

    world.broker.restart()

    with pytest.raises(ConnectionFailed):
        await waiting
    waiting = asyncio.create_task(inbox.receive(1, 60))
    await world.clock.settle()
    await world.adapter.reply([(inbox.address, reply())])
    assert len(await waiting) == 1
