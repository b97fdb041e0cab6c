"""What publishing promises, item by item."""

import asyncio

import pytest
from redis.exceptions import MovedError

from messaging import Settings, Topic, connect
from messaging.adapter import GroupSpec, TopicSpec, Topology, Unrouted
from messaging.errors import (
    ConnectionFailed,
    MessageTooLarge,
    NoGroup,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging.message import Message, Receipt
from messaging_redis import publisher
from messaging_redis.connection import Interrupted
from messaging_redis.line import Line


async def test_an_oversized_message_is_refused_alone_before_anything_is_sent(bench):
    adapter = await bench.adapter(max_message_bytes=2000)
    group = await bench.group(adapter)
    batch = [bench.outgoing(group.topic, n) for n in range(3)]
    batch[1].message = Message(id="big", topic="orders", body=b"x" * 3000)

    first, big, last = await adapter.publish(batch)

    assert isinstance(first, Receipt)
    assert isinstance(last, Receipt)
    assert isinstance(big, MessageTooLarge)
    assert "big" in str(big)
    assert "2000" in str(big)


async def test_a_topic_without_a_group_says_so_until_there_is_one(bench):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    await adapter.declare(Topology((topic,)))

    (unrouted,) = await adapter.publish([bench.outgoing(topic, 1)])
    (refused,) = await adapter.publish([bench.outgoing(topic, 2, mandatory=True)])
    other = await bench.adapter()
    await other.declare(Topology(groups=(GroupSpec(topic, "billing"),)))
    (routed,) = await adapter.publish([bench.outgoing(topic, 3, mandatory=True)])
    (plain,) = await adapter.publish([bench.outgoing(topic, 4)])

    assert isinstance(unrouted, Unrouted)
    assert isinstance(refused, NoGroup)
    assert type(routed) is type(plain) is Receipt


async def test_a_deleted_group_is_noticed_by_its_own_publisher_at_once(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 1)

    await adapter.delete_group(group)

    (result,) = await adapter.publish([bench.outgoing(group.topic, 1, mandatory=True)])
    assert isinstance(result, NoGroup)


async def test_an_undeclared_topic_is_not_made_where_topology_is_off(bench):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    await adapter.declare(Topology((topic,), mode="off"))

    (result,) = await adapter.publish([bench.outgoing(topic, 1)])

    assert isinstance(result, TopicNotFound)
    assert [key async for key in adapter.native.scan_iter(match=f"*{bench.namespace}*")] == []


async def test_a_large_ordered_batch_with_many_headers_keeps_its_order(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True, partitions=1)
    batch = [bench.outgoing(group.topic, n, "k") for n in range(40)]
    for n, outgoing in enumerate(batch):
        outgoing.message = bench.message(n, "k", headers={f"h{i}": "v" for i in range(300)})

    results = await adapter.publish(batch)
    got = await bench.drain(bench.consumer(adapter, group), 40)

    assert all(type(result) is Receipt for result in results)
    assert [delivery.message.id for delivery in got] == [f"m{n}" for n in range(40)]
    assert len(got[0].message.headers) == 300


async def test_a_message_with_thousands_of_headers_survives_retry_and_dead_letter(bench):
    from messaging.message import Reject, Retry

    adapter = await bench.adapter()
    group = await bench.group(adapter, partitions=1)
    outgoing = bench.outgoing(group.topic, 0)
    outgoing.message = bench.message(0, headers={f"{i:x}": "" for i in range(9000)})
    await adapter.publish([outgoing])
    consumer = bench.consumer(adapter, group)

    await bench.settle(consumer, await bench.receive(consumer, 1), Retry(), after=0.1)
    (again,) = await bench.receive(consumer, 1)
    await bench.settle(consumer, [again], Reject("no"))
    async with adapter.dead_letters(group).scan() as letters:
        (letter,) = [letter async for letter in letters]

    assert letter.message.headers == again.message.headers == outgoing.message.headers


async def test_health_tells_that_redis_takes_no_publish_while_it_is_out_of_memory(own):
    _, bench = await own()
    topic = Topic("orders", int)
    async with connect(Settings(url=bench.url, namespace=bench.namespace)) as bus:
        await bus.declare(topic, groups=["billing"])
        await bus.native.config_set("maxmemory", 1)
        with pytest.raises(PublishError):
            await bus.publish(topic, 1)
        meanwhile = await bus.health()
        await bus.native.config_set("maxmemory", 0)
        await bus.publish(topic, 2)
        after = await bus.health()

    assert (meanwhile.status, meanwhile.connected) == ("yellow", True)
    assert "maxmemory" in (meanwhile.last_error or "")
    assert (after.status, after.last_error) == ("green", None)


async def test_out_of_memory_is_an_error_per_item_and_acks_and_leases_still_work(own):
    broker, bench = await own()
    adapter = await bench.adapter(partition_lease=2.5)
    group = await bench.group(adapter)
    ordered = GroupSpec(TopicSpec("strict", ordered=True, partitions=2), "billing", ordered=True)
    await adapter.declare(Topology((ordered.topic,), (ordered,)))
    await bench.publish(adapter, group.topic, 10)
    await bench.publish(adapter, ordered.topic, 10, keys=3)
    consumer, owner = bench.consumer(adapter, group), bench.consumer(adapter, ordered)
    held, kept = await bench.receive(consumer, 10), await bench.receive(owner, 10)
    await adapter.native.config_set("maxmemory", 1)

    results = await bench.publish(adapter, group.topic, 3) + await bench.publish(
        adapter, ordered.topic, 6, keys=1
    )
    await asyncio.sleep(3)
    settled = await bench.settle(consumer, held) + await bench.settle(owner, kept)
    await adapter.native.config_set("maxmemory", 0)
    recovered = await bench.publish(adapter, group.topic, 3)

    assert all(isinstance(result, PublishError) for result in results)
    assert not any(isinstance(result, PublishUncertain) for result in results)
    assert [type(result).__name__ for result in settled] == ["Done"] * 20
    assert all(type(result) is Receipt for result in recovered)


async def test_a_broken_connection_leaves_the_fate_unknown_and_an_absent_server_does_not(own):
    broker, bench = await own()
    adapter = await bench.adapter(socket_timeout=1.5, connect_timeout=1.5)
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 1)

    broker.pause()
    (hanging,) = await bench.publish(adapter, group.topic, 1)
    broker.resume()
    (fine,) = await bench.publish(adapter, group.topic, 1)
    broker.kill()
    (cut,) = await bench.publish(adapter, group.topic, 1)
    (absent,) = await bench.publish(adapter, group.topic, 1)
    broker.restart()
    (back,) = await bench.publish(adapter, group.topic, 1)

    assert isinstance(hanging, PublishUncertain)
    assert "m0" in str(hanging)
    assert type(fine) is type(back) is Receipt
    assert isinstance(cut, PublishError)
    assert type(absent) is PublishError
    assert str(broker.url.rpartition(":")[2]) in str(absent)


async def test_cancelling_a_publish_leaves_the_connection_whole(bench):
    adapter = await bench.adapter(max_connections=1)
    group = await bench.group(adapter)

    for _ in range(20):
        task = asyncio.create_task(bench.publish(adapter, group.topic, 20))
        await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert all(type(result) is Receipt for result in await bench.publish(adapter, group.topic, 5))


async def test_hundreds_of_calls_at_once_share_few_connections(bench):
    adapter = await bench.adapter(max_connections=4)
    group = await bench.group(adapter)

    results = await asyncio.gather(*(bench.publish(adapter, group.topic, 2) for _ in range(300)))

    assert all(type(result) is Receipt for batch in results for result in batch)


@pytest.mark.parametrize("ordered", [False, True])
async def test_retention_bounds_what_is_kept_for_an_abandoned_group_and_counts_the_loss(bench, ordered):
    adapter = await bench.adapter(trim_interval=0.3)
    group = await bench.group(adapter, ordered=ordered, retention=0.5)
    await bench.publish(adapter, group.topic, 40, keys=4)

    await asyncio.sleep(0.7)
    await bench.publish(adapter, group.topic, 4, keys=4)
    got = await bench.drain(bench.consumer(adapter, group), 4)

    assert len(got) == 4
    assert adapter.lost_to_retention == 40


async def test_trimming_removes_what_all_groups_have_handled_and_nothing_else(bench):
    adapter = await bench.adapter(trim_interval=0.2, history=0, poll=0.1)
    group = await bench.group(adapter, partitions=1)
    slow = GroupSpec(group.topic, "slow")
    await adapter.declare(Topology(groups=(slow,)))
    await bench.publish(adapter, group.topic, 30)
    quick, other = bench.consumer(adapter, group), bench.consumer(adapter, slow)
    await bench.drain(quick, 30)
    (held, *rest) = await bench.receive(other, 10)
    await bench.settle(other, rest)
    stream = adapter._topology.keys(group.topic).streams[0]

    await asyncio.sleep(0.8)
    before = await adapter.native.xlen(stream)
    await bench.settle(other, [held])
    await bench.drain(other, 20)
    await asyncio.sleep(0.8)
    after = await adapter.native.xlen(stream)

    assert before == 30
    assert after <= 1
    assert adapter.lost_to_retention == 0


async def entries_of(adapter, group):
    keys = adapter._topology.group_keys(group).topic.streams
    return sum([await adapter.native.xlen(key) for key in keys])


async def test_a_topic_without_a_group_keeps_no_more_than_its_history(bench):
    adapter = await bench.adapter(trim_interval=0.05, history=0)
    topic = TopicSpec("orders", partitions=4)
    group = GroupSpec(topic, "billing")

    for _ in range(5):
        await bench.publish(adapter, topic, 100)
        await asyncio.sleep(0.06)

    assert await entries_of(adapter, group) <= 200


async def test_deleting_the_last_group_frees_what_was_kept_for_it(bench):
    adapter = await bench.adapter(history=0)
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 100)
    await asyncio.sleep(0.01)

    await adapter.delete_group(group)

    assert await entries_of(adapter, group) == 0


async def test_deleting_one_of_two_groups_keeps_what_the_other_has_not_handled(bench):
    adapter = await bench.adapter(history=0)
    group, other = await bench.group(adapter), await bench.group(adapter, name="search")
    await bench.publish(adapter, group.topic, 100)

    await adapter.delete_group(group)

    assert len(await bench.drain(bench.consumer(adapter, other), 100)) == 100


@pytest.mark.parametrize("lost", [ConnectionFailed("nobody is there"), Interrupted("lost")])
async def test_what_was_stored_is_no_failure_where_the_repeat_of_another_command_fails(
    bench, monkeypatch, lost
):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    inbox = await adapter.reply_inbox()
    converse = Line.converse

    async def last_moves(self, commands, patience):
        if len(commands) == 1:
            return await converse(self, commands, patience)
        return [*await converse(self, commands[:-1], patience), MovedError("1 127.0.0.1:1")]

    async def refresh():
        raise lost

    monkeypatch.setattr(Line, "converse", last_moves)
    monkeypatch.setattr(adapter._connection, "_refresh", refresh)
    first, second = await bench.publish(adapter, group.topic, 2)
    (reply,) = await adapter.reply([(inbox.address, bench.message(1))])

    assert isinstance(first, Receipt)
    assert type(second) is (PublishUncertain if isinstance(lost, Interrupted) else PublishError)
    assert isinstance(reply, PublishUncertain)  # stored, but not for how long


@pytest.mark.parametrize("failing", [1, 2])
async def test_after_a_part_of_an_ordered_batch_failed_no_later_one_is_sent_and_each_is_told_by_name(
    bench, monkeypatch, failing
):
    monkeypatch.setattr(publisher, "_MOST_ARGUMENTS", 20)
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=True, partitions=1)
    send, rounds = adapter._connection.exchange, []

    async def one_fails(key, commands, **options):
        rounds.append(commands)
        if len(rounds) == failing:
            raise ConnectionFailed("nobody is there")
        return await send(key, commands, **options)

    monkeypatch.setattr(adapter._connection, "exchange", one_fails)
    results = await bench.publish(adapter, group.topic, 9, keys=1)

    first = next(at for at, result in enumerate(results) if isinstance(result, PublishError))
    assert (first == 0) is (failing == 1)
    assert all(f"m{at} " in str(results[at]) for at in range(first, 9))
    assert len({id(result) for result in results}) == 9
    assert await entries_of(adapter, group) == first


async def test_nothing_of_an_ordered_key_is_stored_behind_one_that_is_too_large(bench):
    adapter = await bench.adapter(max_message_bytes=2000)
    group = await bench.group(adapter, ordered=True, partitions=1)
    batch = [bench.outgoing(group.topic, n, key) for n, key in enumerate("kkkl")]
    batch[1].message = Message(id="big", topic="orders", body=b"x" * 3000, key="k")

    first, big, behind, beside = await adapter.publish(batch)
    got = await bench.receive(bench.consumer(adapter, group), 2)

    assert type(first) is type(beside) is Receipt
    assert isinstance(big, MessageTooLarge)
    assert "message big, published before it with the same key, failed" in str(behind)
    assert [delivery.message.id for delivery in got] == ["m0", "m3"]


async def test_nothing_of_an_ordered_key_is_stored_behind_one_that_no_group_gets(bench):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=1)
    await adapter.declare(Topology((topic,)))

    insisting, behind, beside = await adapter.publish(
        [bench.outgoing(topic, n, key, mandatory=n == 0) for n, key in enumerate("kkl")]
    )

    assert isinstance(insisting, NoGroup)
    assert type(behind) is PublishError
    assert type(beside) is Unrouted
    assert await entries_of(adapter, GroupSpec(topic, "billing")) == 1


@pytest.mark.parametrize("fault", ["exchange", "shard"])
async def test_nothing_of_an_ordered_key_is_stored_behind_one_of_which_the_topic_was_not_found(
    bench, monkeypatch, fault
):
    group = await bench.group(await bench.adapter(), ordered=True, partitions=1)
    adapter = await bench.adapter()
    await adapter.declare(Topology((group.topic,), mode="off"))

    def failing(*_):
        monkeypatch.undo()  # once only
        raise ConnectionFailed("nobody is there")

    monkeypatch.setattr(adapter._connection, fault, failing)
    results = await bench.publish(adapter, group.topic, 3, keys=1)

    assert [type(result) for result in results] == [PublishError] * 3
    assert all(f"essage m{at} " in str(result) for at, result in enumerate(results))
    assert await entries_of(adapter, group) == 0
