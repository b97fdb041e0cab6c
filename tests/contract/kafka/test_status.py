"""Health: what waits for a group, who is a member, how many dead letters there are."""

import asyncio

import aiokafka
import pytest

from messaging.adapter import GroupInfo, TopicSpec
from messaging.message import Reject, Retry
from messaging_kafka.brokers import NewTopic
from messaging_kafka.library import Place
from tests.contract.bench import ack, healthy, nothing, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, brokers_of

PLAIN = TopicSpec("orders", partitions=2)


async def info(adapter) -> GroupInfo:
    health = await healthy(adapter)
    (only,) = health.groups
    return only


async def test_the_lag_is_what_was_not_handled(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, *map(str, range(7)), partition=0)
    await publish(adapter, PLAIN, *map(str, range(3)), partition=1)
    assert await info(adapter) == GroupInfo(
        "orders", "billing", lag=10, members=0, dead_letters=0, ordered=False
    )

    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 10)
    assert (await info(adapter)).members == 1
    await ack(consumer, deliveries[:8])
    await settle(consumer, deliveries[8:9], Reject("unwanted"), failure="{}")
    await settle(consumer, deliveries[9:], Retry(), after=60.0, failure="{}")

    found = await info(adapter)
    assert (found.lag, found.dead_letters) == (1, 1)


async def test_messages_that_are_done_beyond_the_watermark_are_no_lag(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, *map(str, range(50)), partition=0)
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 50)
    await ack(consumer, deliveries[1:40])

    assert (await info(adapter)).lag == 11


@pytest.mark.parametrize("committed", [True, False])
async def test_marks_of_transactions_are_no_lag(bench: Bench, committed: bool) -> None:
    adapter = await bench.adapter()
    native = f"messaging.{bench.namespace}.theirs"
    await brokers_of(adapter).create([NewTopic(native, 1)])
    topic = TopicSpec("theirs", partitions=1, native=native)
    consumer = bench.consumer(adapter, await bench.group(adapter, topic))
    await consumer.receive(1, 0.1)

    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=bench.url.removeprefix("kafka://").partition("?")[0], transactional_id=native
    )
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(native, b"1")
        await (producer.commit_transaction() if committed else producer.abort_transaction())
    if committed:
        await ack(consumer, await receive(consumer, 1))
    await consumer.receive(1, 0.3)

    assert (await info(adapter)).lag == 0


async def test_a_group_gets_what_a_transaction_publishes_that_was_open_when_it_was_declared(
    bench: Bench,
) -> None:
    adapter = await bench.adapter()
    native = f"messaging.{bench.namespace}.theirs"
    await brokers_of(adapter).create([NewTopic(native, 1)])
    host = bench.url.removeprefix("kafka://").partition("?")[0]
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=host, transactional_id=native) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(native, b"1")
        group = await bench.group(adapter, TopicSpec("theirs", partitions=1, native=native))
        await producer.commit_transaction()

    (delivery,) = await receive(bench.consumer(adapter, group), 1)
    assert delivery.message.body == b"1"


async def test_what_was_deleted_before_it_was_handled_is_told_once_and_is_no_lag(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention, or kafka-delete-records.sh, and nothing was published since."""
    adapter = await bench.adapter(**QUICK)
    topic = TopicSpec("orders", partitions=1)
    group = await bench.group(adapter, topic)
    await publish(adapter, topic, *map(str, range(20)))
    former = bench.consumer(adapter, group)
    deliveries = await receive(former, 15)
    await ack(former, deliveries[3:])
    await former.close()
    assert (await info(adapter)).lag == 8

    await brokers_of(adapter).delete_records({Place(adapter._session.names.topic(topic), 0): 20})
    heir = bench.consumer(adapter, group)
    async with asyncio.timeout(10):
        while (await info(adapter)).lag:
            assert not await heir.receive(10, 0.05)
    await heir.close()
    await nothing(bench.consumer(adapter, group))

    told = [record.getMessage() for record in caplog.records if "were deleted" in record.message]
    assert [line.split()[0] for line in told] == ["8"]


async def test_a_group_is_listed_by_a_program_that_only_knows_its_topic(bench: Bench) -> None:
    adapter, other = await bench.adapter(), await bench.adapter()
    await bench.group(adapter, PLAIN)
    from messaging.adapter import Topology

    await other.declare(Topology(topics=[PLAIN]))

    assert [(one.topic, one.group) for one in await other.groups()] == [("orders", "billing")]


async def test_health_reads_the_record_of_groups_once_for_all(bench: Bench) -> None:
    adapter = await bench.adapter()
    for name in ("billing", "search", "audit", "stock", "mail", "crm"):
        await bench.group(adapter, PLAIN, name)
    topology, brokers = adapter._session.topology, adapter._session.brokers
    looks, look = list[list[str]](), brokers.partitions

    async def looked(names):
        looks.append(list(names))
        return await look(names)

    brokers.partitions = looked  # type: ignore[method-assign]
    assert len((await adapter.health()).groups) == 6

    assert looks.count([topology.registry.topic.name]) == 1


async def test_a_broker_that_tells_its_figures_late_is_connected_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, PLAIN)

    async def late(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(adapter._session.brokers, "committed", late)
    health = await adapter.health()

    assert health.connected
    assert health.groups == [GroupInfo("orders", "billing")]
    assert "did not tell the figures" in (health.error or "")


async def test_the_broker_tells_its_version(bench: Bench) -> None:
    adapter = await bench.adapter()
    assert adapter.capabilities.broker == "Kafka"
    assert adapter.capabilities.version
