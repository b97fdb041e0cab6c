"""Reply inboxes: a shared topic, of which each reads a partition and takes only its own."""

import asyncio
import re
import secrets

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import Closed, InvalidMessage, TopicNotFound
from messaging.message import Message
from tests.contract.kafka.support import Bench, topics_of


def reply(id: str) -> Message:
    return Message(id=id, topic="", body=id.encode(), headers={}, correlation_id=id)


async def test_inboxes_of_one_partition_get_only_their_own(bench: Bench) -> None:
    adapter = await bench.adapter(reply_partitions=1)
    one, two = await adapter.reply_inbox(), await adapter.reply_inbox()
    assert one.address.partition("/")[0] == two.address.partition("/")[0]

    await adapter.reply([(one.address, reply("a")), (two.address, reply("b")), (one.address, reply("c"))])

    got = [*await one.receive(10, 5)]
    while len(got) < 2:
        got += await one.receive(10, 5)
    assert [message.correlation_id for message in got] == ["a", "c"]
    assert [message.correlation_id for message in await two.receive(10, 5)] == ["b"]
    await one.close()
    await two.close()


async def test_a_new_inbox_sees_nothing_of_before(bench: Bench) -> None:
    adapter = await bench.adapter(reply_partitions=1)
    old = await adapter.reply_inbox()
    await adapter.reply([(old.address, reply("old"))])
    await old.close()

    inbox = await adapter.reply_inbox()
    await adapter.reply([(inbox.address, reply("new"))])

    assert [message.correlation_id for message in await inbox.receive(10, 5)] == ["new"]
    await inbox.close()
    with pytest.raises(Closed):
        await inbox.receive(1, 0.1)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "orders",
        "0",
        "0/",
        "9999/" + "a" * 32,
        "-1/" + "a" * 32,
        "0/" + "g" * 32,
        "٣/" + "a" * 32,
    ],
)
async def test_no_address_of_another_form_is_written_to(bench: Bench, address: str) -> None:
    adapter = await bench.adapter()
    (refused,) = await adapter.reply([(address, reply("a"))])
    assert isinstance(refused, InvalidMessage)


async def test_waiting_for_a_reply_can_be_cancelled(bench: Bench) -> None:
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    waiting = asyncio.create_task(inbox.receive(1, 30))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))

    await adapter.reply([(inbox.address, reply("a"))])

    assert [message.id for message in await inbox.receive(1, 5)] == ["a"]
    await inbox.close()


async def test_the_reply_topic_is_not_made_where_the_topology_is_only_verified(bench: Bench) -> None:
    topic = TopicSpec("orders", partitions=1)
    maker = await bench.adapter(reply_partitions=2)
    await maker.declare(Topology(topics=[topic]))
    requester = await bench.adapter()
    await requester.declare(Topology(topics=[topic], mode="verify"))
    name = requester._session.names.replies

    with pytest.raises(TopicNotFound, match=rf"{re.escape(name)}.*create it with 16 partitions"):
        await requester.reply_inbox()
    (unsent,) = await requester.reply([(f"0/{secrets.token_hex(16)}", reply("a"))])
    assert isinstance(unsent, TopicNotFound)
    assert await topics_of(requester, name) == []

    await (await maker.reply_inbox()).close()
    inbox = await requester.reply_inbox()
    await maker.reply([(inbox.address, reply("a"))])
    assert [message.id for message in await inbox.receive(1, 5)] == ["a"]
    await inbox.close()
