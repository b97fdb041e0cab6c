import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from messaging.adapter import AdapterContext, GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_memory import MemoryAdapter
from messaging_memory.settings import MemorySettings


def names(deliveries):
    return [delivery.message.id for delivery in deliveries]


@pytest.mark.parametrize("mode", ["declare", "verify"])
@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"partitions": 3}, ["partitions=2", "partitions=3"]),
        ({"ordered": True}, ["ordered=False", "ordered=True"]),
    ],
)
async def test_a_difference_to_the_record_names_both_sides(world, mode, change, texts):
    await world.declare()
    with pytest.raises(ConfigurationError) as raised:
        await world.adapter.declare(Topology([replace(world.topic, **change)], mode=mode))

    assert all(text in str(raised.value) for text in texts)


async def test_a_group_declared_with_another_order_is_a_difference(world):
    await world.declare(ordered=True)
    with pytest.raises(ConfigurationError, match="ordered=True"):
        await world.adapter.declare(Topology(groups=[replace(world.group, ordered=False)]))


async def test_declaring_again_changes_nothing(world):
    await world.declare()
    await world.publish(world.outgoing(id="a"))
    await world.declare()

    assert names(await world.consumer().receive(10, 0)) == ["a"]


async def test_verify_creates_nothing(world):
    with pytest.raises(TopicNotFound, match="orders"):
        await world.adapter.declare(Topology([world.topic], mode="verify"))
    await world.adapter.declare(Topology([world.topic]))
    with pytest.raises(TopicNotFound, match="billing"):
        await world.adapter.declare(Topology(groups=[world.group], mode="verify"))

    assert await world.adapter.groups() == []


@pytest.mark.parametrize("namespace", [None, "staging"])
async def test_errors_call_a_topic_by_the_name_that_its_program_gave(world, namespace):
    adapter = MemoryAdapter(AdapterContext(clock=world.clock, namespace=namespace), broker=world.broker)
    world.adapters.append(adapter)
    await adapter.open()
    with pytest.raises(TopicNotFound) as absent:
        await adapter.declare(Topology([world.topic], mode="verify"))
    await adapter.declare(Topology([world.topic]))
    with pytest.raises(TopicNotFound) as without_group:
        await adapter.declare(Topology(groups=[world.group], mode="verify"))
    await adapter.declare(Topology(groups=[world.group]))
    consumer = world.consumer(adapter=adapter)
    await consumer.receive(1, 0)
    await adapter.delete_group(world.group)
    with pytest.raises(TopicNotFound) as deleted:
        await consumer.receive(1, 0)

    told = [str(raised.value) for raised in (absent, without_group, deleted)]
    assert all("topic 'orders'" in text for text in told), told


async def test_off_only_remembers_and_use_tells_what_is_missing(world):
    await world.adapter.declare(Topology([world.topic], [world.group], mode="off"))

    assert world.broker.topics == {}
    (result,) = await world.publish(world.outgoing())
    assert isinstance(result, TopicNotFound)
    with pytest.raises(TopicNotFound):
        await world.consumer().receive(1, 0)


async def test_an_adopted_topic_and_group_are_used_as_they_are(world):
    topic = TopicSpec("orders", partitions=3, native="legacy:orders")
    group = GroupSpec(topic, "billing", native="old-group")
    with pytest.raises(TopicNotFound):
        await world.adapter.declare(Topology([topic]))
    log = world.broker.create_topic("legacy:orders", partitions=3)
    with pytest.raises(TopicNotFound, match="old-group"):
        await world.adapter.declare(Topology([topic], [group]))
    world.broker.create_group(log, "old-group")

    await world.adapter.declare(Topology([topic], [group]))
    world.topic = topic
    await world.publish(world.outgoing(id="a"))

    (delivery,) = await world.consumer(group=group).receive(10, 0)
    assert (delivery.message.id, delivery.message.topic) == ("a", "orders")
    assert list(world.broker.topics) == ["legacy:orders"]


async def test_namespaces_do_not_meet(world):
    await world.declare()
    staging = MemoryAdapter(AdapterContext(clock=world.clock, namespace="staging"), broker=world.broker)
    world.adapters.append(staging)
    await staging.open()
    await staging.declare(Topology([world.topic], [world.group]))
    await world.publish(world.outgoing())

    assert not await world.consumer(adapter=staging).receive(10, 0)
    assert len(await staging.groups()) == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (lambda _: "latest", []),
        (lambda _: "earliest", ["m0", "m1", "m2"]),
        (lambda began: datetime.fromtimestamp(began + 15, UTC), ["m2"]),
        (lambda began: datetime.fromtimestamp(began + 10, UTC), ["m1", "m2"]),
    ],
)
async def test_a_new_group_starts_where_it_says(world, start, expected):
    await world.declare(partitions=1)
    began = world.clock.time()
    for number in range(3):
        await world.publish(world.outgoing(id=f"m{number}"))
        await world.clock.advance(10)
    await world.drained(world.consumer())
    late = GroupSpec(world.topic, "late", start=start(began))

    await world.adapter.declare(Topology(groups=[late]))

    assert names(await world.consumer(group=late).receive(10, 0)) == expected


async def test_history_is_bounded_and_unread_messages_are_not(world):
    adapter = await world.another(history=5)
    topic = TopicSpec("events", partitions=1)
    reader = GroupSpec(topic, "reader")
    await adapter.declare(Topology([topic], [reader]))
    world.topic = topic
    consumer = world.consumer(group=reader, adapter=adapter)
    for _ in range(30):
        await adapter.publish([world.outgoing() for _ in range(100)])
        await world.drained(consumer)
    (log,) = world.broker.topics.values()
    assert len(log.partitions[0].rows) <= 2048
    late = GroupSpec(topic, "late", start="earliest")
    await adapter.declare(Topology(groups=[late]))
    assert len(await world.consumer(group=late, adapter=adapter).receive(100, 0)) == 5

    await adapter.publish([world.outgoing() for _ in range(5000)])

    assert len(await world.drained(consumer)) == 5000


async def test_retention_bounds_what_an_absent_group_keeps_and_tells_the_loss(world, caplog):
    await world.declare(partitions=1, retention=60)
    await world.publish(world.outgoing(id="old"), world.outgoing(id="old2"))
    consumer = world.consumer()
    (held,) = await consumer.receive(1, 0)
    await world.clock.advance(20)
    await consumer.close()
    await world.clock.advance(30)
    await world.publish(world.outgoing(id="new"))
    await world.clock.advance(10)

    with caplog.at_level(logging.WARNING, "messaging"):
        got = await world.consumer().receive(10, 0)

    assert names(got) == ["old", "new"]
    assert held.message.id == "old"
    (log,) = world.broker.topics.values()
    assert log.groups["billing"].lost == 1
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (warning.lost, warning.group, warning.topic) == (1, "billing", "orders")
    assert "topic orders removed" in warning.getMessage()


async def test_deleting_a_group_ends_its_members_and_all_it_kept(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing())
    await consumer.receive(1, 0)

    await world.adapter.delete_group(world.group)
    await world.adapter.delete_group(world.group)
    await world.adapter.delete_group(GroupSpec(TopicSpec("unknown"), "billing"))

    for _ in range(2):
        with pytest.raises(TopicNotFound):
            await consumer.receive(1, 0)
    assert await world.adapter.groups() == []
    with pytest.raises(ConfigurationError):
        await world.adapter.dead_letters(world.group).count()


def test_settings_come_from_the_url_then_from_options():
    settings = MemorySettings.from_url(
        "memory://x?lease=5&history=none", {"lease": 9, "max_message_bytes": 10}
    )

    assert settings == MemorySettings(name="x", lease=5.0, history=None, max_message_bytes=10)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://?leas=5", "leas"),
        ("memory://?name=x", "name"),
        ("memory://?lease=0", "lease"),
        ("memory://?lease=nan", "lease"),
        ("memory://?lease=soon", "lease"),
        ("memory://?history=-1", "history"),
        ("memory://?history=some", "history"),
        ("memory://?max_message_bytes=0", "max_message_bytes"),
        ("memory://?lease=1&lease=2", "twice"),
        ("memory://user:secret@name", "memory://name"),
        ("memory://name/path", "memory://name"),
        ("redis://name", "memory://name"),
    ],
)
def test_an_illegal_option_is_named_and_no_secret_is(url, text):
    with pytest.raises(ConfigurationError) as raised:
        MemorySettings.from_url(url, {})

    assert text in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_capabilities_are_honest(world):
    capabilities = world.adapter.capabilities

    assert (capabilities.durability, capabilities.fenced, capabilities.lateness) == ("none", True, 0.0)
    assert capabilities.max_delay == capabilities.max_hold == float("inf")
