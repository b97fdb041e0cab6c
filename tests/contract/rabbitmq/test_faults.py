"""Broken connections, a broker that does not answer."""

import asyncio
import contextlib
import socket
import time

import pytest
from pamqp.commands import Channel, Connection
from pamqp.frame import marshal

from messaging.adapter import BrokerHealth, Done, SettleError, TopicSpec
from messaging.errors import (
    Closed,
    ConfigurationError,
    ConnectionFailed,
    LeaseLost,
    PublishError,
    PublishUncertain,
)
from messaging.message import Ack, Receipt, Retry
from messaging_contracts.faults.proxy import Proxy
from messaging_rabbitmq.confirms import Batch
from messaging_rabbitmq.connection import translated
from tests.contract.bench import Recorder, ack, healthy, ids, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

DELIVER = b"\x00\x3c\x00\x3c"
"""`basic.deliver`, class 60, method 60."""
ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def test_nobody_there_is_told_with_address_and_time(bench: Bench) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapter = bench.unopened(f"amqp://127.0.0.1:{port}/")
    with pytest.raises(ConnectionFailed, match=rf"127\.0\.0\.1:{port} could not be reached within \d+\.\d s"):
        await adapter.open()


async def test_a_silent_peer_is_given_up_after_the_connect_timeout(bench: Bench) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        adapter = bench.unopened(f"amqp://127.0.0.1:{silent.getsockname()[1]}/?connect_timeout=0.3")
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match="could not be reached"):
            await adapter.open()
        assert 0.2 < time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://localhost/?hartbeat=3", "hartbeat"),
        ("amqp://localhost/?heartbeat=soon", "heartbeat"),
        ("amqp://localhost/?max_message_bytes=99999999", "max_message_bytes"),
        ("amqp://localhost:99999/", "port"),
        ("redis://localhost", "amqp://"),
    ],
)
async def test_an_illegal_url_is_told_before_anything_is_connected(bench: Bench, url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bench.unopened(url)


async def test_after_close_everything_says_closed(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await consumer.close()
    await consumer.close()
    with pytest.raises(Closed):
        await consumer.receive(1, 0)
    await adapter.close()
    await adapter.close()
    with pytest.raises(Closed):
        await bench.consumer(adapter, group).receive(1, 0)
    with pytest.raises(Closed):
        await adapter.publish([outgoing(group.topic, "m1")])


async def test_a_cut_consumer_tells_once_and_gets_its_messages_again(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy)
    group = await bench.group(adapter)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await publish(adapter, group.topic, "m1", "m2")
    held = await receive(consumer, 2)

    await proxy.close_connections()
    with pytest.raises(ConnectionFailed):
        await consumer.receive(1, 5)

    assert recorder.lost == held
    assert not consumer.status().connected
    (late,) = await settle(consumer, held[:1], Ack())
    assert isinstance(late, SettleError) and isinstance(late.error, LeaseLost)
    again = await receive(consumer, 2)
    assert sorted(ids(again)) == ["m1", "m2"]
    assert [one.attempt for one in again] == [1, 1]
    await publish(adapter, group.topic, "m3")


class ClosingProxy(Proxy):
    """Closes a channel in the broker's words, behind the next message for it."""

    words: str | None = None

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, allowed: asyncio.Event) -> None:
        if self.words is not None and (place := data.find(DELIVER)) > 0:
            number = int.from_bytes(data[place - 6 : place - 4], "big")
            data += marshal(Channel.Close(406, self.words, 0, 0), number)
            self.words = None
        await super()._write(writer, data, allowed)


async def test_a_broker_that_closes_a_channel_is_quoted_with_what_to_do(bench: Bench) -> None:
    proxy, adapter = await bench.behind(ClosingProxy)
    group = await bench.group(adapter)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await publish(adapter, group.topic, "m1")
    held = await receive(consumer, 1)
    proxy.words = (
        "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 10 ms"
    )

    await publish(adapter, group.topic, "m2")
    with pytest.raises(
        ConnectionFailed, match=r"Timeout value used: 10 ms.*raise that timeout at the broker"
    ):
        await receive(consumer, 2)

    assert held[0] in recorder.lost


async def test_a_publish_under_way_is_uncertain_and_the_next_reconnects(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy)
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m0")
    proxy.black_hole()
    under_way = asyncio.create_task(
        adapter.publish([outgoing(group.topic, "m1"), outgoing(group.topic, "m2")])
    )
    await asyncio.sleep(0.1)

    await proxy.close_connections()
    proxy.heal()

    assert [type(result) for result in await under_way] == [PublishUncertain, PublishUncertain]
    assert isinstance((await adapter.publish([outgoing(group.topic, "m3")]))[0], Receipt)


async def test_without_a_broker_a_publish_fails_for_certain(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy)
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m0")
    await proxy.cut()
    async with asyncio.timeout(15):
        while adapter.native is not None:
            await asyncio.sleep(0.01)

    (result,) = await adapter.publish([outgoing(group.topic, "m1")])

    assert type(result) is PublishError
    assert "could not be reached" in str(result)
    health = await adapter.health()
    assert not health.connected and health.error


async def test_a_broker_that_confirms_nothing_is_uncertain_and_then_bounds_what_waits(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy, confirm_timeout=1.5, outstanding=4)
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "m0")
    proxy.black_hole()

    first = await adapter.publish([outgoing(group.topic, f"a{number}") for number in range(2)])
    second = await adapter.publish([outgoing(group.topic, f"b{number}") for number in range(2)])
    third = await adapter.publish([outgoing(group.topic, "c")])

    assert {type(result) for result in (*first, *second)} == {PublishUncertain}
    assert type(third[0]) is PublishError
    health = await adapter.health()
    assert health.error and "did not answer" in health.error
    proxy.heal()
    async with asyncio.timeout(15):
        while not isinstance((await adapter.publish([outgoing(group.topic, "d")]))[0], Receipt):
            pass


async def test_what_finds_no_room_in_time_is_overtaken_by_nothing_of_its_key(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy, confirm_timeout=1.5, outstanding=4)
    group, full = await bench.group(adapter, ORDERED), await bench.group(adapter, TopicSpec("full"))
    await publish(adapter, ORDERED, "m0", key="a")
    await publish(adapter, full.topic, "f0")
    proxy.black_hole()
    for _ in range(2):
        await adapter.publish([outgoing(full.topic, "f") for _ in range(2)])

    batch = [outgoing(ORDERED, f"m{number}", key="a") for number in range(1, 5)]
    waiting = asyncio.create_task(adapter.publish(batch))
    await adapter.publish([outgoing(full.topic, "f")])  # as late as the first half of the batch
    proxy.heal()

    results = await waiting
    assert [type(result) for result in results] == [PublishError] * 4
    assert "message m1, published before it with the same key, failed" in str(results[3])
    async with asyncio.timeout(15):
        while not isinstance((await adapter.publish([outgoing(ORDERED, "m5", key="a")]))[0], Receipt):
            pass
    assert ids(await receive(bench.consumer(adapter, group), 2)) == ["m0", "m5"]


async def test_cancelling_a_publish_leaves_the_connection_whole(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.delete_group(group)
    await publish(adapter, group.topic, "m0")
    native = adapter.native
    for _ in range(20):
        publishing = asyncio.create_task(
            adapter.publish([outgoing(group.topic, f"x{number}") for number in range(20)])
        )
        await asyncio.sleep(0.002)
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing

    await publish(adapter, group.topic, "m1")

    assert adapter.native is native
    assert adapter._session.sender.ports.unconfirmed == 0


async def test_a_real_cancellation_is_never_mistaken_for_a_loss(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.05)
    proxy.black_hole()
    waiting = [
        asyncio.create_task(consumer.receive(1, 30)),
        asyncio.create_task(adapter.groups()),
        asyncio.create_task(
            adapter.declare(__import__("messaging.adapter").adapter.Topology(groups=[group]))
        ),
    ]
    await asyncio.sleep(0.1)
    for task in waiting:
        task.cancel()
    await proxy.close_connections()
    proxy.heal()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert all(task.cancelled() for task in waiting)


async def test_a_copy_that_cannot_be_stored_leaves_the_delivery_ours(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await publish(adapter, group.topic, "m1", "m2")
    one, two = await receive(consumer, 2)
    await settle(consumer, [two], Retry(), after=0.1, failure="{}")
    ports = adapter._session.sender.ports
    real = ports.send

    def broken(batch: Batch) -> None:
        batch.unsent = ConnectionFailed("no way")
        batch.let_go()

    ports.send = broken  # type: ignore[method-assign]
    (failed,) = await settle(consumer, [one], Retry(), after=0.1, failure="{}")
    ports.send = real  # type: ignore[method-assign]

    assert isinstance(failed, SettleError)
    assert not recorder.lost
    assert await settle(consumer, [one], Retry(), after=0.1, failure="{}") == [Done()]
    again = await receive(consumer, 2)
    assert sorted((d.message.id, d.attempt) for d in again) == [("m1", 2), ("m2", 2)]
    await ack(consumer, again)


async def test_closing_is_quick_without_a_broker(bench: Bench) -> None:
    proxy, adapter = await bench.behind(Proxy)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    consumer = bench.consumer(adapter, group)
    await consumer.receive(1, 0.05)
    proxy.black_hole()
    started = time.monotonic()

    await consumer.close()
    await adapter.close()

    assert time.monotonic() - started < 12


async def test_closing_does_not_wait_for_all_that_the_broker_does_not_confirm_and_it_comes_again(
    bench: Bench,
) -> None:
    proxy, adapter = await bench.behind(Proxy, confirm_timeout=1.0)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    names = [f"{number:02}" for number in range(60)]
    await publish(adapter, group.topic, *names)
    held = await receive(consumer, len(names))
    proxy.black_hole()
    settling = [asyncio.create_task(settle(consumer, [one], Retry(), failure="{}")) for one in held]
    await asyncio.sleep(0)

    async with asyncio.timeout(
        20
    ):  # one confirmation and the end of two channels; one after the other they take 60 s
        await consumer.close()
        results = [one for (one,) in await asyncio.gather(*settling)]
    await proxy.close_connections()

    assert {type(one) for one in results} == {SettleError}
    again = await receive(bench.consumer(await bench.adapter(), group), len(names))
    assert (sorted(ids(again)), {one.attempt for one in again}) == (names, {1})


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_sign_of_life_moves_the_lease_and_none_comes_too_late(bench: Bench, ordered: bool) -> None:
    proxy, adapter = await bench.behind(Proxy, heartbeat=2)
    topic = TopicSpec("orders", ordered=ordered, partitions=1)
    group = await bench.group(adapter, topic)
    recorder = Recorder()
    consumer = bench.consumer(adapter, group, recorder)
    await publish(adapter, topic, "m1", key="k")
    (held,) = await receive(consumer, 1)
    first = held.lease.deadline

    await publish(adapter, topic, "m2", key="k")
    (other,) = await receive(consumer, 1)
    assert time.monotonic() < first < held.lease.deadline == other.lease.deadline < time.monotonic() + 3

    proxy.black_hole()
    # The broker gives it to others after four seconds at the earliest.
    await asyncio.sleep(held.lease.deadline - time.monotonic() + 0.05)
    ended = held.lease.deadline
    proxy.heal()
    with pytest.raises(ConnectionFailed):
        while True:
            await consumer.receive(1, 5.0)
    assert held.lease.deadline == ended < time.monotonic()
    assert set(ids(recorder.lost)) == {"m1", "m2"}


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_connection_that_breaks_while_a_member_joins_is_a_passing_fault(
    bench: Bench, ordered: bool
) -> None:
    proxy, adapter = await bench.behind(Proxy, heartbeat=2)
    topic = TopicSpec("orders", ordered=ordered, partitions=2)
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, topic, "m1", key="k")
    proxy.black_hole()
    joining = asyncio.create_task(consumer.receive(1, 5.0))
    await asyncio.sleep(0.05)

    adapter._session.consuming.abort()
    with pytest.raises(ConnectionFailed):
        await joining

    proxy.heal()
    assert ids(await receive(consumer, 1)) == ["m1"]


async def test_a_loss_that_the_client_library_gives_no_reason_for_passes_too() -> None:
    """aiormq rejects who waits with a plain Exception; a program's own error stays what it is."""
    with pytest.raises(ConnectionFailed, match="looking"), translated("looking", "here:1"):
        raise Exception  # noqa: TRY002  as aiormq does
    with pytest.raises(KeyError), translated("looking", "here:1"):
        raise KeyError("ours")


async def test_probes_that_are_given_up_at_any_moment_cost_no_connection(bench: Bench):
    adapter = await bench.adapter()
    await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    connection = await adapter._session.consuming.connection()
    for pause in range(100):
        probes = [asyncio.create_task(adapter.health()) for _ in range(3)]
        await asyncio.sleep(pause * 0.0001)
        for probe in probes:
            probe.cancel()
        await asyncio.wait(probes)
    assert (await healthy(adapter)).groups
    assert adapter._session.consuming.current is connection


async def test_health_tells_that_the_broker_blocks_publishing(bench: Bench) -> None:
    """RabbitMQ tells so a connection that publishes while there is an alarm; here its frames come from the test."""
    adapter = await bench.adapter()
    transport = adapter._session.publishing._transport
    assert transport is not None

    async def told(frame: Connection.Blocked | Connection.Unblocked, *, blocked: bool) -> BrokerHealth:
        transport.get_protocol().data_received(marshal(frame, 0))  # type: ignore[attr-defined]
        async with asyncio.timeout(15):
            while adapter._session.publishing.blocked != blocked:
                await asyncio.sleep(0)
        return await adapter.health()

    before = await adapter.health()
    meanwhile = await told(Connection.Blocked("low on memory"), blocked=True)
    after = await told(Connection.Unblocked(), blocked=False)

    assert before.refusing is after.refusing is None
    assert meanwhile.connected
    assert "connection.blocked" in (meanwhile.refusing or "")
