"""A topic that an admin deletes: told, and read from its first message when it is there again."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from messaging.adapter import DONE, GroupSpec, ReplyInbox, SettleError, TopicSpec, Topology
from messaging.clock import SystemClock
from messaging.errors import ConfigurationError, ConnectionFailed, TopicNotFound, TopologyLost
from messaging.message import Message, Reject
from messaging.requests import Requester
from messaging_kafka import KafkaAdapter
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.fetching import Fetcher
from messaging_kafka.library import Place
from tests.contract.bench import ack, ids, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, brokers_of, membership, owned

ORDERED = TopicSpec("orders", ordered=True, partitions=1)
UNORDERED = TopicSpec("orders", partitions=1)


async def deleted(adapter: KafkaAdapter, topic: TopicSpec) -> None:
    await deleted_by_name(adapter, adapter._session.names.topic(topic))


async def deleted_by_name(adapter: KafkaAdapter, name: str) -> None:
    await brokers_of(adapter).delete([name])
    async with asyncio.timeout(10):
        while await brokers_of(adapter).partitions([name]):
            await asyncio.sleep(0.02)


async def lost(consumer) -> TopicNotFound:
    with pytest.raises(TopicNotFound) as told:
        for _ in range(20):
            await consumer.receive(1, 0.5)
    return told.value


async def letters_of(adapter: KafkaAdapter, group: GroupSpec) -> list[str]:
    async with adapter.dead_letters(group).scan() as letters:
        return [letter.message.id async for letter in letters]


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_group_reads_a_topic_that_was_made_anew_from_its_first_message(
    bench: Bench, topic: TopicSpec
) -> None:
    """Neither where it was in the old one counts, nor where it began."""
    adapter, publisher = await bench.adapter(**QUICK), await bench.adapter()
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, "before it began")
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(publisher, topic, "old")
    deliveries = await receive(consumer, 1)
    await ack(consumer, deliveries)
    await deleted(publisher, topic)

    assert isinstance(await lost(consumer), TopologyLost)
    await consumer.close()
    await publisher.declare(Topology([topic]))
    await publish(publisher, topic, *(f"new {number}" for number in range(4)))
    await adapter.declare(Topology(groups=[group]))

    deliveries = await receive(bench.consumer(adapter, group), 4)
    assert ids(deliveries) == [f"new {number}" for number in range(4)]


async def has_read(bench: Bench, topic: TopicSpec) -> tuple[KafkaAdapter, KafkaConsumer]:
    """A member that has handled the three messages of a topic, and its adapter."""
    adapter = await bench.adapter(**QUICK)
    consumer = bench.consumer(adapter, await bench.group(adapter, topic))
    await publish(await bench.adapter(), topic, *(f"old {number}" for number in range(3)))
    await ack(consumer, await receive(consumer, 3))
    return adapter, consumer


async def filled_anew(bench: Bench, topic: TopicSpec) -> None:
    """Another program deletes the topic, and fills one of its name with five messages."""
    await deleted(await bench.adapter(), topic)
    another = await bench.adapter()
    await another.declare(Topology([topic]))
    await publish(another, topic, *(f"new {number}" for number in range(5)))


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
async def test_a_topic_that_is_full_again_before_a_member_looks_is_read_from_its_first_message(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, topic: TopicSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name is the same, and the new log is longer than what was read of the old one."""
    adapter, consumer = await has_read(bench, topic)
    full, find_leaders = asyncio.Event(), brokers_of(adapter).find_leaders

    async def late(places: Iterable[Place]) -> None:
        await full.wait()
        await find_leaders(places)

    monkeypatch.setattr(brokers_of(adapter), "find_leaders", late)
    await filled_anew(bench, topic)
    full.set()

    assert ids(await receive(consumer, 5)) == [f"new {number}" for number in range(5)]
    assert "was deleted and made anew" in caplog.text


async def test_a_topic_that_was_made_anew_between_two_fetches_is_read_from_its_first_message_once_anybody_looks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No broker refuses anything: the next request finds a log of that name."""
    adapter, consumer = await has_read(bench, UNORDERED)
    between, full, ask = asyncio.Event(), asyncio.Event(), Fetcher._ask

    async def late(self: Fetcher, *wanted: Any, **how: Any) -> bool:
        between.set()
        await full.wait()
        return await ask(self, *wanted, **how)

    monkeypatch.setattr(Fetcher, "_ask", late)
    await between.wait()
    await filled_anew(bench, UNORDERED)
    full.set()
    assert ids(await receive(consumer, 2)) == ["new 3", "new 4"]

    await brokers_of(adapter).partitions([adapter._session.names.topic(UNORDERED)])

    assert ids(await receive(consumer, 5)) == [f"new {number}" for number in range(5)]


async def forgotten(adapter: KafkaAdapter, group: GroupSpec) -> None:
    """Its topic is deleted, and with it its positions, which Kafka deletes a little later."""
    await deleted(adapter, group.topic)
    names = adapter._session.names
    places = [Place(names.topic(group.topic), number) for number in range(group.topic.partitions)]
    async with asyncio.timeout(10):
        while await brokers_of(adapter).committed(names.group(group), places):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("topic", [ORDERED, UNORDERED], ids=["ordered", "unordered"])
@pytest.mark.parametrize("told", ["at once", "late"])
async def test_who_joins_when_the_topic_was_just_deleted_does_not_end_for_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, topic: TopicSpec, told: str
) -> None:
    """There are no positions then: that somebody deleted the topic is told, not that they are forgotten (18, 25)."""
    monkeypatch.setattr("messaging_kafka.topology.LEFT_ALONE", 0.1)
    adapter = await bench.adapter(**QUICK)
    group = await bench.group(adapter, topic)
    await forgotten(await bench.adapter(), group)
    if told == "late":  # by a broker that does not know it yet
        name, answers = adapter._session.names.topic(topic), brokers_of(adapter).partitions
        first = iter([{name: 1}])

        async def partitions(names: Iterable[str]) -> dict[str, int]:
            return await answers(names) | (next(first, {}) if list(names) == [name] else {})

        monkeypatch.setattr(brokers_of(adapter), "partitions", partitions)
    consumer = bench.consumer(adapter, group)

    assert isinstance(await lost(consumer), TopologyLost)

    name = adapter._session.names.group(group)
    assert (await brokers_of(adapter).members([name])).get(
        name, []
    ) == []  # nobody waits until its session is over


async def test_who_is_given_partitions_of_a_topic_that_was_just_deleted_does_not_end_for_good(
    bench: Bench,
) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    leaving, staying = bench.consumer(adapter, group), bench.consumer(other, group)
    await asyncio.gather(owned(leaving, 1), owned(staying, 1))
    await forgotten(await bench.adapter(), group)

    await leaving.close()
    async with asyncio.timeout(10):
        while membership(staying).fatal is None:
            await asyncio.sleep(0.02)

    assert isinstance(await lost(staying), TopologyLost)


async def test_a_member_that_still_held_something_commits_nothing_of_it_to_the_new_topic(
    bench: Bench,
) -> None:
    adapter = await bench.adapter(**QUICK)
    group = await bench.group(adapter, UNORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, UNORDERED, "old 0", "old 1", "old 2")
    held = await receive(consumer, 3)
    await deleted(adapter, UNORDERED)
    assert isinstance(await lost(consumer), TopologyLost)

    await (await bench.adapter()).declare(Topology(groups=[group]))
    await ack(consumer, held)
    await consumer.close()

    names = adapter._session.names
    place = Place(names.topic(UNORDERED), 0)
    committed = await brokers_of(adapter).committed(names.group(group), [place])
    assert place not in committed or committed[place].offset == 0


async def test_a_member_of_a_deleted_group_does_not_make_its_topic_anew(bench: Bench) -> None:
    adapter = await bench.adapter(**QUICK)
    group: GroupSpec = await bench.group(adapter, UNORDERED)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    await adapter._session.topology.registry.remove(("group", "orders", "billing"))
    await deleted(adapter, UNORDERED)

    assert not isinstance(await lost(consumer), TopologyLost)


async def test_dead_letters_that_were_deleted_alone_are_made_anew_and_hold_up_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its own restart would do, a member does without it (25); what was deleted is lost, and it says so (18)."""
    monkeypatch.setattr("messaging_kafka.topology.LEFT_ALONE", 0.1)
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "old", "new", key="ann")
    old, new = await receive(consumer, 2)
    await settle(consumer, [old], Reject("unwanted"), failure="{}")
    assert await letters_of(adapter, group) == ["old"]
    await brokers_of(adapter).delete([adapter._session.names.dead(group)])

    (left,) = await settle(consumer, [new], Reject("unwanted"), failure="{}")
    assert isinstance(left, SettleError)  # left alone at first: others notice meanwhile
    async with asyncio.timeout(10):
        while await settle(consumer, [new], Reject("unwanted"), failure="{}") != [DONE]:
            await asyncio.sleep(0.05)

    assert await letters_of(adapter, group) == ["new"]
    assert "what was in it is lost" in caplog.text


async def test_whoever_looks_for_deleted_dead_letters_finds_none_once_they_are_made_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging_kafka.topology.LEFT_ALONE", 0.1)
    adapter = await bench.adapter()
    group = await bench.group(adapter, UNORDERED)
    await brokers_of(adapter).delete([adapter._session.names.dead(group)])

    async with asyncio.timeout(10):
        while True:
            try:
                assert await letters_of(adapter, group) == []
            except ConfigurationError:
                await asyncio.sleep(0.05)
            else:
                break


@pytest.mark.parametrize("why", ["its group was deleted", "it may not be declared"])
async def test_dead_letters_are_not_made_anew_where_nobody_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("messaging_kafka.topology.LEFT_ALONE", 0.0)
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, UNORDERED)
    member = other if why == "it may not be declared" else adapter
    await member.declare(Topology(groups=[group], mode="verify"))
    consumer = bench.consumer(member, group)
    await publish(member, UNORDERED, "one")
    (delivery,) = await receive(consumer, 1)
    dead = adapter._session.names.dead(group)
    await brokers_of(adapter).delete([dead])
    if member is adapter:
        await adapter._session.topology.registry.remove(("group", "orders", "billing"))

    (left,) = await settle(consumer, [delivery], Reject("unwanted"), failure="{}")

    assert isinstance(left, SettleError)
    assert await brokers_of(adapter).partitions([dead]) == {}


def answering(adapter: KafkaAdapter):
    async def send(address: str, correlation_id: str) -> None:
        reply = Message(id="r", topic="", body=b"yes", headers={}, correlation_id=correlation_id)
        assert await adapter.reply([(address, reply)]) == [None]

    return send


async def unanswered(address: str, correlation_id: str) -> None:
    """Nobody is there."""


async def receiving(requester: Requester) -> None:
    async with asyncio.timeout(10):
        while requester.failing is not None:
            await asyncio.sleep(0.02)


async def made_anew(adapter: KafkaAdapter) -> ReplyInbox:
    """By one who did not notice that it was gone, and may make it."""
    while True:
        try:
            return await adapter.reply_inbox()
        except TopicNotFound:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ["declare", "verify"])
async def test_requests_go_on_when_the_reply_topic_was_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mode
) -> None:
    monkeypatch.setattr("messaging_kafka.replies.LEFT_ALONE", 0.3)
    adapter, responder = await bench.adapter(), await bench.adapter(reply_partitions=1)
    await responder.declare(Topology([UNORDERED]))
    await (await responder.reply_inbox()).close()
    await adapter.declare(Topology([UNORDERED], mode=mode))
    requester = Requester(adapter, SystemClock())
    bench.stack.push_async_callback(requester.close)
    assert (await requester.request("first", answering(responder), 5)).body == b"yes"
    waiting = asyncio.create_task(requester.request("second", unanswered, 10))

    await deleted_by_name(responder, adapter._session.names.replies)
    with pytest.raises(ConnectionFailed, match="deleted"):
        await waiting
    assert requester.failing is not None
    if mode == "verify":
        with pytest.raises(ConnectionFailed, match="create it with 16 partitions"):
            await requester.request("third", unanswered, 10)
        await (await made_anew(responder)).close()
    await receiving(requester)

    assert (await requester.request("fourth", answering(responder), 5)).body == b"yes"


async def test_who_replied_before_the_reply_topic_was_deleted_asks_by_the_new_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging_kafka.replies.LEFT_ALONE", 0.1)
    adapter = await bench.adapter(reply_partitions=1)
    inbox = await adapter.reply_inbox()
    await answering(adapter)(inbox.address, "1")
    await inbox.close()
    await deleted_by_name(adapter, adapter._session.names.replies)

    with pytest.raises(TopicNotFound):
        await adapter.reply_inbox()
    await asyncio.sleep(0.1)
    inbox = await adapter.reply_inbox()

    await answering(adapter)(inbox.address, "2")
    assert [one.correlation_id for one in await inbox.receive(1, 5)] == ["2"]
    await inbox.close()
