"""Publishing, sharing a queue, settling."""

import asyncio
import time

import pytest

from messaging.adapter import Done, TopicSpec, Unrouted
from messaging.errors import MessageTooLarge, NoGroup, PublishUncertain, TopicNotFound
from messaging.message import Ack, Receipt, Reject, Release, Retry
from messaging_contracts.standstill import standstill
from messaging_rabbitmq import ports
from tests.contract.bench import ack, ids, nothing, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench


async def test_what_is_published_arrives_whole(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    headers = {
        "plain": "a",
        "unicode/é": "ü🎉\"'",
        "n" * 200: "long name",
        "é" * 100: "long name in UTF-8",
        "CC": "other.queue",
        "x-death": "not the broker's",
        "x-delivery-count": "7",
    }
    body = bytes(range(256))
    await adapter.publish([outgoing(group.topic, "m1", key="k", body=body, headers=headers)])

    (delivery,) = await receive(consumer, 1)

    assert (delivery.message.id, delivery.message.key, delivery.message.body) == ("m1", "k", body)
    assert dict(delivery.message.headers) == headers
    assert (delivery.attempt, delivery.deliveries, delivery.returns, delivery.guard) == (1, 1, 0, "none")


async def test_a_batch_is_confirmed_and_shared_between_members(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    one, two = bench.consumer(adapter, group, prefetch=50), bench.consumer(adapter, group, prefetch=50)
    assert await one.receive(1, 0.01) == () and await two.receive(1, 0.01) == ()
    names = [f"m{number}" for number in range(300)]
    await publish(adapter, group.topic, *names)

    seen: list[str] = []
    async with asyncio.timeout(10):
        while len(seen) < 300:
            for member in (one, two):
                deliveries = await member.receive(50, 0.05)
                seen += ids(deliveries)
                await ack(member, deliveries)

    assert sorted(seen) == sorted(names)
    await nothing(one)


async def test_no_group_is_told(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.delete_group(group)

    results = await adapter.publish(
        [outgoing(group.topic, "m1", key="k"), outgoing(group.topic, "m2", key="k", mandatory=True)]
    )

    assert isinstance(results[0], Unrouted)
    assert isinstance(results[1], NoGroup)


async def test_a_missing_topic_is_told_and_the_connection_lives(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    absent = TopicSpec("absent", partitions=2)

    results = await adapter.publish(
        [
            outgoing(absent, "m1", key="a"),
            outgoing(group.topic, "m2", key="a"),
            outgoing(absent, "m3", key="b"),
        ]
    )

    assert [type(result) for result in results] == [TopicNotFound, Receipt, TopicNotFound]


async def test_too_large_is_told_before_anything_is_sent_and_fails_its_successors(bench: Bench) -> None:
    adapter = await bench.adapter(max_message_bytes=2000)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    consumer = bench.consumer(adapter, group)

    results = await adapter.publish(
        [
            outgoing(group.topic, "m1", key="a", partition=0),
            outgoing(group.topic, "m2", key="a", partition=0, body=b"x" * 2000),
            outgoing(group.topic, "m3", key="a", partition=0),
            outgoing(group.topic, "m4", key="b", partition=0),
            outgoing(group.topic, "m5", key="c", partition=1),
        ]
    )

    assert isinstance(results[1], MessageTooLarge)
    assert "m2" in str(results[2])
    assert sorted(ids(await receive(consumer, 3))) == ["m1", "m4", "m5"]


async def test_settling_twice_is_a_no_op(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "m1", "m2", "m3")
    deliveries = await receive(consumer, 3)

    first = await settle(consumer, [deliveries[1], deliveries[1]], Ack())
    again = await settle(consumer, deliveries, Ack())
    after = await settle(consumer, deliveries, Retry())

    assert all(isinstance(result, Done) for result in (*first, *again, *after))
    await publish(adapter, group.topic, "m4")
    assert ids(await receive(consumer, 1)) == ["m4"]


async def test_released_comes_back_uncounted(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "m1")
    (first,) = await receive(consumer, 1)
    await settle(consumer, [first], Release())
    (second,) = await receive(consumer, 1)
    started = time.monotonic()
    await settle(consumer, [second], Release(after=0.3), after=0.3)
    (third,) = await receive(consumer, 1)

    assert second.attempt == 1 and second.deliveries == 2
    assert third.attempt == 1 and third.returns == 0
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 1.3])
async def test_a_retry_is_counted_and_never_early(bench: Bench, after: float) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await adapter.publish([outgoing(group.topic, "m1", key="k", headers={"h": "1"}, body=b"\xff")])
    (first,) = await receive(consumer, 1)
    async with standstill(adapter.dead_letters(group).count) as lost:
        started = time.monotonic()
        await settle(consumer, [first], Retry(), after=after, failure='{"reason": "no"}')
        (second,) = await receive(consumer, 1)
        took, late = time.monotonic() - started, adapter.capabilities.lateness + 2 * lost.seconds

    assert after <= took <= after + late
    assert (second.attempt, second.failure, second.returns) == (2, '{"reason": "no"}', 0)
    assert (second.message, second.partition) == (first.message, first.partition)


async def test_a_rejected_message_is_a_dead_letter_with_its_failure(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "m1", "m2")
    deliveries = await receive(consumer, 2)

    await settle(consumer, deliveries, Reject("no"), failure='{"reason": "no"}')

    store = adapter.dead_letters(group)
    assert await store.count() == 2
    async with store.scan() as letters:
        found = [letter async for letter in letters]
    assert [letter.message.id for letter in found] == ["m1", "m2"]
    assert found[0].failure == '{"reason": "no"}'
    await nothing(consumer)


async def test_unsettled_messages_go_back_when_a_member_leaves(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    one, two = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await publish(adapter, group.topic, "m1", "m2", "m3")
    deliveries = await receive(one, 3)
    await ack(one, deliveries[1:2])

    await one.close()

    assert ids(await receive(two, 2)) == ["m1", "m3"]


async def test_a_message_that_its_queue_refuses_ends_no_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "RENEWED", 0.0)
    adapter = await bench.adapter()
    session, topic = adapter._session, TopicSpec("orders", partitions=1)
    other = await bench.group(adapter, TopicSpec("clicks", partitions=1))
    await bench.group(adapter, topic)
    assert adapter.native is not None
    channel = await adapter.native.channel()
    full = (
        await channel.queue_declare(
            exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
    ).queue
    assert full is not None
    await channel.queue_bind(full, session.names.exchange(topic), "0")
    await publish(adapter, topic, "a")
    connection = session.publishing.current

    refused = await adapter.publish([outgoing(topic, "b"), outgoing(topic, "c")])
    await publish(adapter, other.topic, "d")

    assert [type(fate) for fate in refused] == [PublishUncertain] * 2
    assert session.publishing.current is connection
    assert session.sender.ports.unconfirmed == 0
