"""Topics and groups on the broker."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from messaging.adapter import GroupInfo, GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, TopicNotFound
from tests.contract.bench import healthy


@pytest.mark.parametrize(
    ("other", "both"),
    [
        (TopicSpec("orders", partitions=6), ("partitions 4", "6")),
        (TopicSpec("orders", ordered=True, partitions=4), ("ordered False", "True")),
    ],
)
async def test_a_difference_of_partitions_or_order_names_both_sides(bench, other, both):
    adapter = await bench.adapter()
    await bench.group(adapter)

    with pytest.raises(ConfigurationError) as caught:
        await (await bench.adapter()).declare(Topology((other,)))

    assert all(side in str(caught.value) for side in both)


async def test_a_group_that_changes_its_order_is_refused(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True)

    with pytest.raises(ConfigurationError, match="ordered=True.*ordered=False"):
        await adapter.declare(Topology(groups=(GroupSpec(group.topic, group.name, ordered=False),)))


async def test_declaring_again_changes_nothing(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 5)

    await bench.group(await bench.adapter())

    assert len(await bench.drain(bench.consumer(adapter, group), 5)) == 5


async def test_verify_creates_nothing_and_says_what_is_missing(bench):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    group = GroupSpec(topic, "billing")

    with pytest.raises(TopicNotFound, match="orders"):
        await adapter.declare(Topology((topic,), mode="verify"))
    await adapter.declare(Topology((topic,)))
    with pytest.raises(TopicNotFound, match="billing"):
        await adapter.declare(Topology((topic,), (group,), mode="verify"))
    await adapter.declare(Topology((topic,), (group,)))
    await adapter.declare(Topology((topic,), (group,), mode="verify"))


async def test_a_group_starts_at_its_declaration_at_the_beginning_or_at_a_time(bench):
    adapter = await bench.adapter()
    first = await bench.group(adapter)
    await bench.publish(adapter, first.topic, 5)
    now = int((await adapter.native.time())[0]) + 1
    while int((await adapter.native.time())[0]) < now:
        pass
    middle = datetime.fromtimestamp(now, UTC)
    await bench.publish(adapter, first.topic, 3)

    groups = [
        GroupSpec(first.topic, "late"),
        GroupSpec(first.topic, "all", start="earliest"),
        GroupSpec(first.topic, "since", start=middle),
    ]
    await adapter.declare(Topology(groups=groups))
    await bench.publish(adapter, first.topic, 1)

    for group, count in zip(groups, (1, 9, 4), strict=True):
        consumer = bench.consumer(adapter, group)
        assert len(await bench.drain(consumer, count)) == count
        assert await consumer.receive(10, 0.2) == []


async def test_groups_are_listed_with_their_state_and_deleted_with_all_they_have(bench):
    from messaging.message import Reject

    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.declare(Topology(groups=(GroupSpec(group.topic, "audit"),)))
    await bench.publish(adapter, group.topic, 10)
    consumer = bench.consumer(adapter, group)
    await bench.settle(consumer, await bench.receive(consumer, 4), Reject("no"))

    audit, billing = sorted(await adapter.groups(), key=lambda info: info.group)
    assert (audit.group, audit.lag, audit.members, audit.dead_letters) == ("audit", 10, 0, 0)
    assert (billing.group, billing.lag, billing.members, billing.dead_letters) == ("billing", 6, 1, 4)
    assert 0 <= audit.oldest < 60
    await healthy(adapter)

    await consumer.close()
    await adapter.delete_group(group)
    await adapter.delete_group(group)
    assert [info.group for info in await adapter.groups()] == ["audit"]
    await adapter.declare(Topology(groups=(group,)))
    assert await adapter.dead_letters(group).count() == 0


async def test_the_lag_counts_what_waits_for_a_retry_and_stays_known_after_it(bench):
    from messaging.message import Retry

    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3)
    await bench.settle(consumer, await bench.receive(consumer, 3), Retry(), after=0.3)

    (waiting,) = await adapter.groups()
    await bench.drain(consumer, 3)
    (settled,) = await adapter.groups()

    assert (waiting.lag, settled.lag) == (3, 0)
    assert settled.oldest is None


async def test_the_lag_never_counts_what_was_redriven_and_handled(bench):
    from messaging.message import Reject

    adapter, operator = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    await bench.group(operator)
    consumer, store, many = bench.consumer(adapter, group), adapter.dead_letters(group), 4000
    await bench.publish(adapter, group.topic, many)
    await bench.settle(consumer, await bench.receive(consumer, many, within=60), Reject("no"))
    async with store.scan() as letters:
        await store.redrive([(letter, letter.message, None) async for letter in letters])
    handled = await bench.receive(consumer, many, within=60)

    settling, told = asyncio.create_task(bench.settle(consumer, handled)), []
    while not settling.done():
        told += [info.lag for info in await operator.groups()]

    assert set(told) == {0}


@pytest.mark.parametrize("ordered", [False, True])
async def test_the_lag_does_not_count_what_retention_removed(bench, ordered):
    adapter, trimming = await bench.adapter(trim_interval=1000), await bench.adapter(trim_interval=0.1)
    group = await bench.group(adapter, ordered=ordered, retention=0.5, partitions=1)
    await bench.group(trimming, ordered=ordered, retention=0.5, partitions=1)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2, keys=1)
    await bench.drain(consumer, 2)
    await consumer.close()
    await bench.publish(adapter, group.topic, 5, keys=1)
    while trimming.lost_to_retention < 5:
        await trimming._trimmer.trim(group.topic, now=True)

    await bench.publish(adapter, group.topic, 3, keys=1)
    (waiting,) = await adapter.groups()
    await bench.drain(bench.consumer(adapter, group), 3)
    (handled,) = await adapter.groups()

    assert (waiting.lag, handled.lag) == (3, 0)


async def test_the_lag_of_a_group_that_has_read_to_the_end_is_nothing_whatever_somebody_trimmed(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, partitions=1)
    (stream,) = adapter._topology.keys(group.topic).streams
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 2)
    await bench.drain(consumer, 2)
    await consumer.close()
    await bench.publish(adapter, group.topic, 5)
    await adapter.native.xtrim(stream, maxlen=0)
    await bench.publish(adapter, group.topic, 2)

    (waiting,) = await adapter.groups()
    await bench.drain(bench.consumer(adapter, group), 2)
    (handled,) = await adapter.groups()

    assert (waiting.lag, handled.lag) == (2, 0)


async def test_a_member_of_a_deleted_group_ends_with_an_error_that_says_so(bench):
    adapter = await bench.adapter()
    shared = await bench.group(adapter)
    strict = GroupSpec(TopicSpec("strict", ordered=True, partitions=2), "billing", ordered=True)
    await adapter.declare(Topology((strict.topic,), (strict,)))

    for group in (shared, strict):
        consumer = bench.consumer(adapter, group)
        await consumer.receive(1, 0.1)
        await (await bench.adapter()).delete_group(group)
        with pytest.raises(ConfigurationError, match="deleted"):
            for _ in range(20):
                await consumer.receive(1, 0.2)


@pytest.mark.parametrize("ordered", [False, True])
async def test_members_go_on_after_a_loss_of_all_data_though_a_publisher_comes_first(bench, ordered):
    adapter, publisher = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ordered=ordered)
    await adapter.delete_group(group)
    await bench.group(adapter, ordered=ordered)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.1)
    await lose_all(bench, adapter)

    await publisher.declare(Topology((group.topic,)))
    await bench.publish(publisher, group.topic, 3, keys=3)

    assert sorted(one.message.id for one in await bench.receive(consumer, 3)) == ["m0", "m1", "m2"]
    assert [info.group for info in await publisher.groups()] == ["billing"]


async def test_a_group_comes_back_after_a_loss_though_another_group_was_only_looked_at(bench):
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)
    audit = await bench.group(other, name="audit")
    consumer, looking = bench.consumer(adapter, group), bench.consumer(adapter, audit)
    await adapter.declare(Topology((), (audit,), "verify"))
    await consumer.receive(1, 0.1)
    await looking.receive(1, 0.1)
    await lose_all(bench, adapter)
    await bench.publish(adapter, group.topic, 3)

    assert len(await bench.receive(consumer, 3)) == 3
    with pytest.raises(ConfigurationError, match="audit.*not made anew"):
        for _ in range(20):
            await looking.receive(1, 0.2)


async def test_streams_that_are_deleted_alone_are_read_from_their_first_message(bench):
    adapter = await bench.adapter()
    shared = await bench.group(adapter)
    strict = GroupSpec(TopicSpec("strict", ordered=True, partitions=2), "billing", ordered=True)
    await adapter.declare(Topology((strict.topic,), (strict,)))

    for group in (shared, strict):
        consumer = bench.consumer(adapter, group)
        await bench.publish(adapter, group.topic, 3)
        held = await bench.receive(consumer, 3)
        await adapter.native.delete(*adapter._topology.keys(group.topic).streams)
        await bench.publish(adapter, group.topic, 3)

        again = await bench.receive(consumer, 3)
        await bench.settle(consumer, held)
        await bench.settle(consumer, again)
        await consumer.close()

        assert sorted(one.message.id for one in again) == ["m0", "m1", "m2"]
        assert await bench.consumer(adapter, group).receive(3, 0.1) == []


async def test_an_adopted_stream_and_group_are_used_as_they_are(bench):
    adapter = await bench.adapter()
    client, stream = adapter.native, f"theirs-{bench.namespace}"
    await client.xgroup_create(stream, "workers", id="0", mkstream=True)
    await client.xadd(stream, {"body": b"hello", "content-type": "text/plain"})
    topic = TopicSpec("orders", native=stream)
    group = GroupSpec(topic, "billing", native="workers")
    await adapter.declare(Topology((topic,), (group,)))
    await adapter.publish([bench.outgoing(topic, n) for n in range(5)])

    consumer = bench.consumer(adapter, group)
    got = await bench.drain(consumer, 6)

    assert await client.xlen(stream) == 6
    assert [(d.message.body, d.message.content_type) for d in got if d.message.content_type] == [
        (b"hello", "text/plain")
    ]


async def test_what_is_adopted_must_be_there_and_order_needs_one_partition(bench):
    adapter = await bench.adapter()
    stream = f"theirs-{bench.namespace}"

    with pytest.raises(TopicNotFound, match=stream):
        await adapter.declare(Topology((TopicSpec("orders", native=stream),)))
    await adapter.native.xadd(stream, {"a": "b"})
    with pytest.raises(TopicNotFound, match="workers"):
        await adapter.declare(
            Topology(groups=(GroupSpec(TopicSpec("o", native=stream), "billing", native="workers"),))
        )
    with pytest.raises(ConfigurationError, match="one partition"):
        await adapter.declare(Topology((TopicSpec("orders", ordered=True, native=stream),)))


async def test_namespaces_and_names_never_meet(bench):
    adapter = await bench.adapter()
    other = await bench.adapter(f"{bench.url}?namespace={bench.namespace}x")
    topics = [TopicSpec(name, partitions=2) for name in ("a", "a.0", "a-b", "a_b")]
    groups = [GroupSpec(topic, "g") for topic in topics]
    await adapter.declare(Topology(topics, groups))
    await other.declare(Topology(topics, groups))

    for n, topic in enumerate(topics):
        await adapter.publish([bench.outgoing(topic, n)])

    for n, group in enumerate(groups):
        (delivery,) = await bench.drain(bench.consumer(adapter, group), 1)
        assert delivery.message.id == f"m{n}"
        assert await bench.consumer(other, group).receive(5, 0.1) == []


async def test_a_group_is_deleted_whole_by_a_program_that_knows_fewer_partitions(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, partitions=8)

    await (await bench.adapter()).delete_group(GroupSpec(TopicSpec("orders", partitions=2), group.name))

    streams = adapter._topology.group_keys(group).topic.streams
    assert [await adapter.native.xinfo_groups(stream) for stream in streams] == [[]] * 8


async def test_deleting_a_group_of_an_absent_topic_leaves_nothing_behind(bench):
    adapter = await bench.adapter()

    await adapter.delete_group(GroupSpec(TopicSpec("orders"), "billing"))

    assert [key async for key in adapter.native.scan_iter(match=f"*{bench.namespace}*")] == []


async def test_a_server_that_tells_its_figures_late_is_connected_all_the_same(bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)

    async def late(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(adapter._topology, "infos", late)
    health = await adapter.health()

    assert health.connected
    assert health.groups == [GroupInfo(group.topic.name, group.name)]
    assert "did not tell the figures" in health.error


async def lose_all(bench, adapter):
    keys = [key async for key in adapter.native.scan_iter(match=f"*{bench.namespace}*", count=1000)]
    await adapter.native.delete(*keys)


async def test_what_is_noted_of_deleted_groups_does_not_grow_for_good(bench, monkeypatch):
    monkeypatch.setattr("messaging_redis.topology._MOST_NOTES", 3)
    adapter = await bench.adapter()
    record = adapter._topology.keys((await bench.group(adapter, name="g0")).topic)
    week_ago = int(time.time() - 8 * 24 * 3600) * 1000
    await adapter.native.zadd(record.deleted, {"ancient": week_ago})

    left = []
    for n in range(6):
        await adapter.delete_group(await bench.group(adapter, name=f"g{n}"))
        left.append(await adapter.native.zrange(record.deleted, 0, -1))

    assert left[0] == [b"g0"]
    assert left[-1] == [b"g3", b"g4", b"g5"]
    assert await adapter.native.hlen(record.record) == 4
