"""Opening, refusing, losing and finding the connection."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from messaging.adapter import Done, GroupSpec, Settlement, TopicSpec, Topology
from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    PublishError,
    is_fatal,
)
from messaging.message import Ack, Receipt, Reject, Release, Retry
from messaging_contracts.brokers.process import free_port
from messaging_contracts.brokers.resp import Connection
from messaging_contracts.faults.servers import exhaust
from messaging_redis import line
from messaging_redis.connection import translate
from tests.contract.bench import healthy
from tests.contract.redis.stores import keeps_keys

CATEGORIES = "+@stream +@hash +@sortedset +@scripting +@connection"
LEAST = f"-@all {CATEGORIES} +del +exists +info +pexpire +pttl +sadd +set +smembers +time"


async def test_wrong_credentials_fail_at_once_and_are_not_shown(own):
    _, bench = await own(password="geheim", user="shop")
    wrong = bench.url.replace("geheim", "guessed")

    started = time.monotonic()
    for url in (wrong, bench.url.replace("shop:geheim@", "")):
        with pytest.raises(AuthenticationFailed) as caught:
            await bench.made(url).open()
        assert "guessed" not in str(caught.value)
    assert time.monotonic() - started < 4
    await bench.adapter()


async def test_an_unreachable_server_is_named_with_the_time_spent():
    from messaging.adapter import AdapterContext
    from messaging.clock import SystemClock
    from messaging_redis import RedisAdapter

    port = free_port()
    adapter = RedisAdapter.from_url(f"redis://127.0.0.1:{port}", AdapterContext(clock=SystemClock()))

    with pytest.raises(ConnectionFailed, match=rf"127\.0\.0\.1:{port}.* s\)") as caught:
        await adapter.open()
    assert not isinstance(caught.value, AuthenticationFailed)
    assert not (await adapter.health()).connected
    await adapter.close()


async def test_a_server_that_hangs_is_given_up_in_time(own):
    broker, bench = await own()
    broker.pause()

    started = time.monotonic()
    with pytest.raises(ConnectionFailed):
        await bench.made(connect_timeout=0.3).open()

    assert time.monotonic() - started < 4
    broker.resume()


async def test_a_server_that_would_evict_messages_is_refused_and_one_that_evicts_marks_stores_none_once(own):
    _, bench = await own(config={"maxmemory-policy": "allkeys-lru"})

    with pytest.raises(ConfigurationError, match="allkeys-lru"):
        await bench.made().open()

    _, bench = await own(config={"maxmemory-policy": "volatile-lru"})
    adapter = await bench.adapter()
    assert adapter.capabilities.idempotent_publish.level == "unsupported"


async def test_a_server_that_is_told_to_evict_while_programs_run_is_told_by_health(own):
    _, bench = await own()
    adapter = await bench.adapter()
    await bench.group(adapter)
    before = await healthy(adapter)

    await adapter.native.config_set("maxmemory-policy", "allkeys-lru")
    async with asyncio.timeout(10):
        while not (after := await adapter.health()).unsafe:
            pass

    assert not before.unsafe
    assert after.connected
    assert "allkeys-lru" in after.error


@pytest.mark.parametrize(
    ("config", "durability"),
    [
        ({"appendonly": "no"}, "none"),
        ({"appendfsync": "everysec"}, "process crash"),
        ({"appendfsync": "always"}, "power loss"),
    ],
)
async def test_durability_is_what_the_server_says(own, config, durability):
    _, bench = await own(config=config)
    adapter = await bench.adapter()

    assert adapter.capabilities.durability == durability
    assert adapter.capabilities.version.split(".")[0].isdecimal()


async def everything(bench, adapter):
    """A walk through what a service does."""
    shared = await bench.group(adapter)
    strict = GroupSpec(
        TopicSpec("strict", ordered=True, partitions=2, retention=3600), "billing", ordered=True
    )
    await adapter.declare(Topology((strict.topic,), (strict,)))
    for group in (shared, strict):
        results = await bench.publish(adapter, group.topic, 12, keys=3)
        assert all(type(result) is Receipt for result in results), results
        consumer = bench.consumer(adapter, group)
        deliveries = await bench.receive(consumer, 12)
        await bench.settle(consumer, deliveries[:4], Retry("no"), after=0.1, failure="{}")
        await bench.settle(consumer, deliveries[4:5], Reject("no"), failure="{}")
        await bench.settle(consumer, deliveries[5:6], Release())
        await consumer.isolate(deliveries[6])
        await bench.settle(consumer, deliveries[6:], Ack())
        store = adapter.dead_letters(group)
        async with store.scan() as letters:
            for letter in [letter async for letter in letters]:
                assert await store.redrive([(letter, letter.message, None)]) == [None]
        await bench.receive(consumer, 1)
        await consumer.close()
    later = replace(strict.topic, generation=2, partitions=3)
    await adapter.declare(Topology((later,)))
    await adapter.begin_generation(later)
    await adapter.end_generation(strict.topic)
    assert await adapter.ended(strict.topic)
    assert await adapter.finish(strict, 1)
    assert await adapter.finished(strict) == {1}
    inbox = await adapter.reply_inbox()
    assert await adapter.reply([(inbox.address, bench.message(1))]) == [None]
    (reply,) = await inbox.receive(5, 2)
    assert reply.id == "m1"
    await inbox.close()
    await healthy(adapter)
    await adapter.delete_group(shared)


async def test_a_user_with_the_least_privilege_can_do_everything(own):
    _, bench = await own()
    admin = await bench.adapter()
    await admin.native.execute_command("ACL", "SETUSER", "shop", "on", ">pw", "~shop:*", *LEAST.split())
    url = bench.url.replace("redis://", "redis://shop:pw@") + "?prefix=shop:"

    adapter = await bench.adapter(url)
    await everything(bench, adapter)

    assert adapter.capabilities.durability == "process crash"


async def test_who_may_not_ask_for_durability_is_told_unknown_and_who_may_not_write_is_told_so(own):
    _, bench = await own()
    admin = await bench.adapter()
    call = admin.native.execute_command
    await call("ACL", "SETUSER", "blind", "on", ">pw", "~messaging:*", "-@all", *CATEGORIES.split(), "+time")
    await call("ACL", "SETUSER", "reader", "on", ">pw", "~messaging:*", "-@all", "+@connection", "+xread")
    most = [category for category in CATEGORIES.split() if category != "+@hash"]
    await call("ACL", "SETUSER", "scripter", "on", ">pw", "~messaging:*", "-@all", *most, "+time")

    blind = await bench.adapter(bench.url.replace("redis://", "redis://blind:pw@"))
    await bench.group(blind)
    others = [
        await bench.adapter(bench.url.replace("redis://", f"redis://{user}:pw@"))
        for user in ("reader", "scripter")
    ]

    assert blind.capabilities.durability == "unknown"
    assert blind.capabilities.version
    for other in others:
        with pytest.raises(ConfigurationError, match="ACL"):
            await bench.group(other)


async def test_consumers_go_on_after_a_restart_and_nothing_is_lost(own):
    broker, bench = await own()
    adapter = await bench.adapter(lease=1.0, partition_lease=1.0)
    shared = await bench.group(adapter)
    strict = GroupSpec(TopicSpec("strict", ordered=True, partitions=2), "billing", ordered=True)
    await adapter.declare(Topology((strict.topic,), (strict,)))
    members = [bench.consumer(adapter, shared), bench.consumer(adapter, strict)]
    for group in (shared, strict):
        await bench.publish(adapter, group.topic, 20, keys=4)
    held = [await bench.receive(member, 8) for member in members]

    broker.kill()
    for member, deliveries in zip(members, held, strict=True):
        with pytest.raises(ConnectionFailed):
            for _ in range(3):
                await member.receive(1, 0.2)
        results = await bench.settle(member, deliveries)
        assert all(isinstance(result.error, ConnectionFailed) for result in results)
    broker.restart()

    for member, deliveries in zip(members, held, strict=True):
        seen = set()
        until = time.monotonic() + 10
        for delivery in deliveries:
            # As the dispatcher does: settled again while it is ours.
            (result,) = await bench.settle(member, [delivery])
            seen |= {delivery.message.id} if isinstance(result, Done) else set()
        while len(seen) < 20 and time.monotonic() < until:
            try:
                batch = await member.receive(20, 0.5)
            except ConnectionFailed:
                continue
            await bench.settle(member, batch)
            seen |= {delivery.message.id for delivery in batch}
        assert seen == {f"m{n}" for n in range(20)}


async def test_an_outage_longer_than_the_lease_gives_no_member_everything(own, new_owner):
    broker, bench = await own()
    adapters = [await bench.adapter(partition_lease=1.0, socket_timeout=0.5) for _ in range(2)]
    group = await bench.group(adapters[0], ordered=True)
    await adapters[1].declare(Topology(groups=(group,)))
    members = [bench.consumer(adapter, group) for adapter in adapters]

    async def shares(within):
        until = time.monotonic() + within
        while time.monotonic() < until:
            for member in members:
                try:
                    await member.receive(0, 0.05)
                except ConnectionFailed:
                    continue
            if sorted(len(member.status().partitions) for member in members) == [2, 2]:
                return [member.status().partitions for member in members]
        raise AssertionError([member.status() for member in members])

    before = await shares(20)
    broker.pause()
    await asyncio.sleep(2.0)
    lost = [len(member.status().partitions) for member in members]
    broker.resume()
    after = await shares(20)

    assert lost == [0, 0]
    assert before == after


async def test_a_lost_read_is_read_again_uncounted(own):
    broker, bench = await own()
    adapter = await bench.adapter(socket_timeout=0.5)
    group = await bench.group(adapter, partitions=1)
    consumer = bench.consumer(adapter, group)
    waiting = asyncio.create_task(consumer.receive(5, 5))
    blocked = []
    while not blocked:
        await asyncio.sleep(0.01)
        blocked = [
            client["id"] for client in await adapter.native.client_list() if client["cmd"] == "xreadgroup"
        ]

    # As a read whose answer never arrives: the server says that it is ours.
    taken = """for n = 0, 4 do redis.call('XADD', KEYS[1], '*', 'body', n, 'ce_id', 'm' .. n) end
    return redis.call('XREADGROUP', 'GROUP', 'billing', ARGV[1], 'STREAMS', KEYS[1], '>')"""
    await adapter.native.eval(taken, 1, adapter._topology.keys(group.topic).streams[0], consumer._name)
    await adapter.native.client_kill_filter(_id=blocked[0])
    with pytest.raises(ConnectionFailed):
        await waiting
    got = await bench.drain(consumer, 5)

    assert all((delivery.returns, delivery.guard) == (0, "none") for delivery in got)


@pytest.mark.parametrize("ordered", [False, True])
async def test_after_a_flush_the_group_begins_anew_and_the_loss_is_reported(own, caplog, ordered):
    _, bench = await own()
    adapter = await bench.adapter(partition_lease=1.0)
    group = await bench.group(adapter, ordered=ordered)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 5, keys=2)
    await bench.receive(consumer, 5)

    with caplog.at_level(logging.ERROR, "messaging"):
        await adapter.native.flushall()
        await bench.publish(adapter, group.topic, 10, keys=2)
        got = await bench.drain(consumer, 10)

    assert len({delivery.message.id for delivery in got}) == 10
    assert any("lost group billing" in record.getMessage() for record in caplog.records)


async def test_a_server_that_goes_away_does_not_hold_up_close(own):
    broker, bench = await own()
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    strict = GroupSpec(TopicSpec("strict", ordered=True, partitions=2), "billing", ordered=True)
    await adapter.declare(Topology((strict.topic,), (strict,)))
    consumers = [bench.consumer(adapter, group), bench.consumer(adapter, strict)]
    for consumer in consumers:
        await consumer.receive(1, 0.1)
    broker.kill()

    started = time.monotonic()
    for consumer in consumers:
        await consumer.close()
    await adapter.close()
    await adapter.close()

    assert time.monotonic() - started < 3
    with pytest.raises(Closed):
        await adapter.publish([bench.outgoing(group.topic, 1)])


async def test_a_version_of_redis_py_that_looks_different_serves_as_well(own, monkeypatch):
    monkeypatch.setattr(line, "_known", lambda connection: None)
    _, bench = await own()

    await everything(bench, await bench.adapter())


async def test_an_idle_connection_that_the_server_closed_is_not_used_again(own):
    broker, bench = await own()
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await bench.publish(adapter, group.topic, 1)

    broker.kill()
    await asyncio.to_thread(broker.restart)  # the loop sees the end of the connection meanwhile
    (result,) = await bench.publish(adapter, group.topic, 1)

    assert type(result) is Receipt


async def test_a_unix_socket_serves_as_well(own, tmp_path):
    path = tmp_path / "redis.sock"
    _, bench = await own(native=True, config={"unixsocket": str(path)})

    await everything(bench, await bench.adapter(f"unix://{path}"))
    await keeps_keys(f"unix://{path}")


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_member_of_a_closed_adapter_ends_with_closed(bench, ordered):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=ordered)
    fresh, joined = bench.consumer(adapter, group), bench.consumer(adapter, group)
    await joined.receive(1, 0.01)

    await adapter.close()

    with contextlib.suppress(ConnectionFailed, Closed):  # a read that was under way
        await joined.receive(1, 1.0)
    for consumer in (joined, fresh):
        with pytest.raises(Closed):
            await consumer.receive(1, 1.0)


async def test_every_call_after_the_close_says_so(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    inbox, letters = await adapter.reply_inbox(), adapter.dead_letters(group)
    await adapter.close()

    for call in (
        lambda: adapter.declare(Topology()),
        lambda: adapter.publish([bench.outgoing(group.topic, 1)]),
        lambda: adapter.reply([("nowhere", bench.message(1))]),
        adapter.reply_inbox,
        adapter.groups,
        lambda: adapter.delete_group(group),
        lambda: inbox.receive(1, 0.1),
        letters.count,
    ):
        with pytest.raises(Closed):
            await call()
    with pytest.raises(Closed):
        bench.consumer(adapter, group)
    assert not (await adapter.health()).connected


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_full_disk_interrupts_and_all_goes_on_when_there_is_room(own, ordered):
    broker, bench = await own()
    adapter = await bench.adapter()
    group = await bench.group(adapter, ordered=ordered, partitions=1)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 1)
    held = await bench.receive(consumer, 1)

    exhaust(broker, "disk", True)
    with pytest.raises(ConnectionFailed, match="MISCONF") as interrupted:
        await consumer.receive(1, 0.2)
    assert not is_fatal(interrupted.value)
    (unsettled,) = await consumer.settle([Settlement(held[0], Ack())])
    assert "MISCONF" in str(unsettled.error)
    (refused,) = await bench.publish(adapter, group.topic, 1)
    assert type(refused) is PublishError
    assert not (await adapter.health()).connected

    exhaust(broker, "disk", False)
    await bench.settle(consumer, held, Ack())
    await bench.publish(adapter, group.topic, 1)
    assert len(await bench.receive(consumer, 1)) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NOPERM this user has no permissions to run the 'xadd' command", ConfigurationError),
        ("ACL failure in script: no key", ConfigurationError),
        ("The user executing the script can't run this command or subcommand", ConfigurationError),
        ("WRONGTYPE Operation against a key", ConfigurationError),
        ("unknown command 'XADD', with args beginning with: 'a'", ConfigurationError),
        ("MISCONF Errors writing to the AOF file: No space left on device", ConnectionFailed),
        ("UNBLOCKED force unblock from blocking operation", ConnectionFailed),
        ("max daily request limit exceeded", ConnectionFailed),
        ("SOMETHINGNEW that nobody knows", ConnectionFailed),
    ],
)
def test_what_is_not_known_to_last_passes_by_itself(text, kind):
    assert type(translate(ResponseError(text), "XADD")) is kind


async def test_a_server_that_becomes_a_replica_ends_no_requests(own):
    broker, bench = await own()
    adapter = await bench.adapter()
    inbox = await adapter.reply_inbox()
    waiting = asyncio.create_task(inbox.receive(1, 5))
    with Connection(broker.url, 5) as admin:
        while "flags=b" not in str(admin.call("CLIENT", "LIST")):
            await asyncio.sleep(0.01)
        admin.call("REPLICAOF", "127.0.0.1", "1")
        assert await waiting == []
        admin.call("REPLICAOF", "NO", "ONE")

    message = bench.message(1)
    assert await adapter.reply([(inbox.address, message)]) == [None]
    assert [reply.id for reply in await inbox.receive(1, 5)] == [message.id]


async def test_who_may_not_ask_for_the_number_of_a_connection_reads_and_closes_all_the_same(own):
    _, bench = await own()
    admin = await bench.adapter()
    await admin.native.execute_command("ACL", "SETUSER", "shop", "on", ">pw", "~*", "+@all", "-client|id")
    adapter = await bench.adapter(bench.url.replace("redis://", "redis://shop:pw@"))
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, 3)

    await bench.drain(consumer, 3)
    await consumer.receive(1, 0.05)
    await consumer.close()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("refusal", ["LOADING the dataset in memory", "READONLY You can't write"])
async def test_a_server_that_cannot_take_writes_refuses_for_sure_and_is_connected_to_anew(
    bench, monkeypatch, refusal, known
):
    if not known:
        monkeypatch.setattr(line, "_known", lambda connection: None)
    connection = (await bench.adapter())._connection

    before, refused, after = await connection.exchange(
        "", (("CLIENT", "ID"), ("EVAL", f'return redis.error_reply("{refusal}")', 0), ("CLIENT", "ID"))
    )

    assert type(translate(refused, "XADD")) is ConnectionFailed
    assert before == after
    assert await connection.call("", "CLIENT", "ID") != before
