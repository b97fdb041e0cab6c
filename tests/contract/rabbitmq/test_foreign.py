"""What other programs publish: everything is handled, nothing is believed."""

import asyncio
import json
import time

import pytest
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from messaging.adapter import TopicSpec, Topology
from messaging.message import Reject, Retry
from messaging.partition import partition_of
from messaging_rabbitmq import connection
from tests.contract.bench import Recorder, ack, ids, nothing, publish, receive, settle
from tests.contract.rabbitmq import by_hand
from tests.contract.rabbitmq.by_hand import MICROSECONDS, long, nested
from tests.contract.rabbitmq.support import Bench


async def foreign(
    adapter, group, routing_key: str, *bodies: bytes, exchange: str | None = None, **properties
):
    channel = await adapter.native.channel()
    for body in bodies:
        await channel.basic_publish(
            body,
            exchange=adapter._session.names.exchange(group.topic) if exchange is None else exchange,
            routing_key=routing_key,
            properties=Basic.Properties(**properties),
            mandatory=True,
        )
    await channel.close()


async def test_a_foreign_routing_key_reaches_the_partition_of_its_key_in_order(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=4))
    search = await bench.group(adapter, group.topic, "search", ordered=False)
    one, two = bench.consumer(adapter, group), bench.consumer(adapter, search)
    await foreign(adapter, group, "customer-1", *(f"{number}".encode() for number in range(20)))
    await foreign(adapter, group, "9", b"too high", headers={"cloudEvents:partitionkey": "customer-2"})

    deliveries = await receive(one, 21)

    first = [d for d in deliveries if d.message.key == "customer-1"]
    assert [d.message.body for d in first] == [f"{number}".encode() for number in range(20)]
    assert {d.partition for d in first} == {partition_of("customer-1", 4)}
    (other,) = [d for d in deliveries if d.message.key == "customer-2"]
    assert other.partition == partition_of("customer-2", 4)
    assert len(await receive(two, 21)) == 21


async def test_a_message_without_anything_is_handled_and_keeps_its_new_id(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    channel = await adapter.native.channel()
    nothing_but_a_body = [
        Basic.Publish(exchange=adapter._session.names.exchange(group.topic), routing_key="1"),
        ContentHeader(properties=Basic.Properties(), body_size=4),
        ContentBody(b"\x00raw"),
    ]
    await channel.write_queue.put(ChannelFrame.marshall(channel.number, nothing_but_a_body))
    (first,) = await receive(consumer, 1)

    await settle(consumer, [first], Retry(), after=0.0, failure="{}")
    (second,) = await receive(consumer, 1)

    assert first.message.id and first.message.id == first.position
    assert (second.message.id, second.message.body, second.attempt) == (first.message.id, b"\x00raw", 2)
    assert second.partition == first.partition == 1


@pytest.mark.parametrize("known", [True, False])
async def test_properties_that_nobody_can_read_cost_no_more_than_themselves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """With a version of aiormq that is not known, too."""
    monkeypatch.setattr(connection, "is_known_version", lambda: known)
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await consumer.receive(1, 0.1)
    exchange = adapter._session.names.exchange(group.topic)
    channel = await adapter.native.channel()
    unreadable = [
        (b"0", 1 << 6, MICROSECONDS),
        (b"0", 1 << 6, b"\x7f" + b"\xff" * 7),
        (b"0", 1 << 10 | 1 << 7, b"\x05gr\xfcn." + b"\x01\xe4"),
        (b"0", 1 << 10, b"\xff" * 256),
        (b"gr\xfcn", 1 << 15, b"\x03a/b"),
        (b"0", 1 << 13, nested(1500)),
        (b"0", 1 << 13, long(b"\x01aS" + long(b"A") + b"\x01bT" + MICROSECONDS)),
    ]
    for number, (key, flags, fields) in enumerate(unreadable):
        await by_hand.publish(channel, exchange, key, flags, fields, b"%d" % number)

    deliveries = await receive(consumer, len(unreadable))
    assert {one.message.body for one in deliveries} == {b"%d" % number for number in range(len(unreadable))}
    for one in deliveries:
        await settle(consumer, [one], Retry(), after=0.0, failure="{}")
    again = await receive(consumer, len(unreadable))
    await settle(consumer, again[:1], Reject("no"), failure="{}")
    await ack(consumer, again[1:])
    await publish(adapter, group.topic, "next")

    assert ids(await receive(consumer, 1)) == ["next"]
    assert await adapter.dead_letters(group).count() == 1
    assert not recorder.lost


async def test_dead_letters_are_read_whoever_put_them_there(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    channel = await adapter.native.channel()
    queue = adapter._session.names.dead(group).encode()
    await by_hand.publish(channel, "", queue, 1 << 6, MICROSECONDS, b"x")
    async with asyncio.timeout(15):
        while not await adapter.dead_letters(group).count():
            await asyncio.sleep(0.01)

    async with adapter.dead_letters(group).scan() as letters:
        read = [letter.message.body async for letter in letters]

    assert read == [b"x"]


async def test_forged_headers_steer_nothing(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    forged = {
        "messaging-attempt": "99999999999999999999",
        "messaging-not-before": str(time.time() + 3600),
        "messaging-guard": "alone",
        "messaging-partition": "77",
        "messaging-headers": json.dumps({"a": "b", "c": 1}),
        "messaging-failure": {"not": "text"},
        "x-delivery-count": 99,
        "x-death": [{"queue": "q", "count": 5}],
        "x-first-death-queue": "q",
        "number": 7,
        "nested": {"a": [1, None, True]},
        "bytes": bytearray(b"\xff"),
    }
    for exchange, key in ((None, "0"), ("", adapter._session.names.queue(group))):
        if exchange == "":
            del forged["messaging-not-before"]
        await foreign(
            adapter, group, key, b"x", exchange=exchange, headers=dict(forged), message_id="f", priority=7,
            user_id="guest", expiration="60000", reply_to="some.queue",
        )  # fmt: skip
        (first,) = await receive(consumer, 1)
        assert first.message.id == "f"
        assert 1 <= first.attempt <= 10_000
        assert (first.returns, first.failure, first.partition) == (0, None, 0)
        assert first.message.headers["number"] == "7" and first.message.headers["a"] == "b"
        assert not any(name.startswith(("messaging-", "x-")) for name in first.message.headers)
        await settle(consumer, [first], Retry(), after=0.125, failure="{}")
        (second,) = await receive(consumer, 1)
        assert (second.attempt, second.returns) == (min(first.attempt + 1, 10_000), 0)
        assert second.message.headers == first.message.headers
        await settle(consumer, [second], Reject("no"), failure="{}")
    assert await adapter.dead_letters(group).count() == 2
    await nothing(consumer)


async def test_copies_are_never_sent_where_a_header_says(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    assert adapter.native is not None
    channel = await adapter.native.channel()
    spy = f"{bench.namespace}.spy"
    await channel.queue_declare(spy, exclusive=True)
    await foreign(adapter, group, "0", b"x", headers={"CC": [spy]})
    assert (await channel.queue_declare(spy, passive=True)).message_count == 0
    await foreign(adapter, group, "elsewhere", b"x", headers={"BCC": ["0"]})
    for one in await receive(consumer, 2):
        await settle(consumer, [one], Retry(), after=0.0, failure="{}")
    again = await receive(consumer, 2)
    assert len(again) == 2
    await ack(consumer, again)
    assert (await channel.queue_declare(spy, passive=True)).message_count == 0


async def test_the_relay_waits_for_the_publishing_connection_and_loses_nothing(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await consumer.receive(1, 0.1)
    await publish(adapter, group.topic, "ours")
    await receive(consumer, 1)
    other = await bench.adapter()
    adapter._session.publishing.abort()
    await foreign(other, group, "key", *(f"{number}".encode() for number in range(50)))

    bodies = set()
    async with asyncio.timeout(10):
        while len(bodies) < 50:
            bodies |= {one.message.body for one in await consumer.receive(50, 0.2)}

    assert not recorder.lost


@pytest.mark.parametrize("queue", ["registry", "guard", "members"])
async def test_what_a_stranger_puts_into_our_own_queues_ends_nothing(bench: Bench, queue: str) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=1))
    recorder = Recorder()
    first = bench.consumer(adapter, group, recorder)
    await publish(adapter, group.topic, "m1")
    (delivery,) = await receive(first, 1)
    await first.isolate(delivery)
    names = adapter._session.names
    name = {"registry": names.registry(group.topic), "members": names.members(group)[0]}.get(
        queue, names.guard(group, 0)
    )
    stranger = await (await bench.adapter()).native.channel(publisher_confirms=False)
    exchange = f"{bench.namespace}.stranger"
    await stranger.exchange_declare(exchange, exchange_type="fanout", auto_delete=True)
    await stranger.queue_bind(name, exchange)
    await by_hand.publish(stranger, exchange, b"gr\xfcn", 1 << 6, MICROSECONDS, b"[" * 5000)
    await by_hand.publish(stranger, "", name.encode(), 1 << 13 | 1 << 7, nested(1500) + b"\x01\xe4", b"x")
    await stranger.queue_declare(name, passive=True)  # they are there

    other = await bench.adapter()
    links = [one._session.consuming for one in (adapter, other)]
    before = [await link.connection() for link in links]
    await other.declare(Topology(groups=[group]))
    assert [info.group for info in await other.groups()] == [group.name]
    assert not recorder.lost
    await first.close()
    second = bench.consumer(other, group)

    assert ids(await receive(second, 1)) == ["m1"]
    assert [link.current for link in links] == before
