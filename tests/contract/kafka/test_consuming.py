"""Members: what they read, settle, pass over and hold; and that no one of them blocks another."""

import asyncio
import gc
import time

import pytest

from messaging.adapter import DONE, Hold, RawDelivery, TopicSpec
from messaging.errors import ConnectionFailed
from messaging.message import Ack, Reject, Retry
from messaging_kafka.consumer import KafkaConsumer
from messaging_kafka.library import Errors
from tests.contract.bench import ack, ids, nothing, outgoing, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, brokers_of, owned

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
ONE = TopicSpec("orders", ordered=True, partitions=1)


async def test_what_is_done_already_holds_up_nothing_behind_it_where_there_is_little_room(
    bench: Bench,
) -> None:
    adapter = await bench.adapter(**QUICK)
    group = await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *map(str, range(20)), partition=0, key="ann")
    former = bench.consumer(adapter, group)
    await ack(former, (await receive(former, 20))[1:])
    await former.close()
    await publish(adapter, ORDERED, "new", partition=0, key="ann")

    heir = bench.consumer(adapter, group)
    assert ids(await heir.receive(1, 10.0)) == ["0"]
    assert ids(await heir.receive(1, 10.0)) == ["new"]


async def test_what_is_settled_is_freed_without_the_garbage_collector(bench: Bench) -> None:
    """In cycles, every message waited for a collection of all that the process has."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, *(f"freed {number}" for number in range(10)))
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 10)
    gc.disable()
    try:
        await ack(consumer, deliveries)
        del deliveries

        every = [one for one in gc.get_objects() if isinstance(one, RawDelivery)]
        kept = [one for one in every if one.message.id.startswith("freed")]
    finally:
        gc.enable()
    assert kept == []


async def test_many_settlements_are_one_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    for partition in (0, 1):
        await publish(adapter, ORDERED, *map(str, range(50)), partition=partition)
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 100)
    commits: list[int] = []
    commit = brokers_of(adapter).commit

    async def counted(name, positions, **more) -> None:
        commits.append(len(positions))
        await commit(name, positions, **more)

    monkeypatch.setattr(brokers_of(adapter), "commit", counted)

    await ack(consumer, deliveries[::-1])

    assert commits == [2]


async def test_settling_twice_is_a_no_op_and_copies_nothing_twice(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, "one", "two")
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 2)

    for _ in range(3):
        assert await settle(consumer, deliveries, Reject("unwanted"), failure="{}") == [DONE, DONE]

    assert await adapter.dead_letters(group).count() == 2


async def test_a_settlement_that_is_cancelled_copies_nothing_twice(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    await publish(adapter, ONE, *map(str, range(30)))
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 30)

    for delivery in deliveries:
        task = asyncio.create_task(settle(consumer, [delivery], Reject("unwanted"), failure="{}"))
        for _ in range(int(delivery.message.id) % 10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
    await settle(consumer, deliveries, Reject("unwanted"), failure="{}")

    assert await adapter.dead_letters(group).count() == 30
    await consumer.close()
    await nothing(bench.consumer(adapter, group))


async def test_a_cancelled_receive_loses_nothing(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    consumer = bench.consumer(adapter, group)
    await owned(consumer)
    got: list[RawDelivery] = []
    for number in range(20):
        task = asyncio.create_task(consumer.receive(5, 5))
        await asyncio.sleep(0)
        await publish(adapter, ONE, str(number))
        await asyncio.sleep(0.002 * (number % 4))
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            got += task.result()
    got += await receive(consumer, 20 - len(got))

    assert ids(got) == [str(number) for number in range(20)]


async def test_a_paused_partition_yields_nothing_and_the_other_goes_on(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await owned(consumer, 2)
    for partition in (0, 1):
        await publish(
            adapter, ORDERED, *[f"{partition}-{number}" for number in range(5)], partition=partition
        )
    got: list[RawDelivery] = []
    async with asyncio.timeout(10):
        while len(got) < 5:
            got += await consumer.receive(10, 0.2, paused={0})
    assert {one.partition for one in got} == {1}

    assert {one.partition for one in await receive(consumer, 5)} == {0}


async def test_a_new_message_arrives_soon_beside_a_partition_that_waits(bench: Bench) -> None:
    """What lies unread of one partition must not delay another's (aiokafka: 350 ms)."""
    adapter = await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=4)
    group = await bench.group(adapter, topic)
    consumer = bench.consumer(adapter, group)
    await owned(consumer, 4)
    body = b"x" * 50_000
    for _ in range(10):
        await publish(adapter, topic, *map(str, range(10)), partition=0, body=body)
    await nothing_of(consumer, paused={0})
    late: list[float] = []
    for number in range(5):
        await publish(adapter, topic, f"new {number}", partition=1)
        started = time.monotonic()
        assert ids(await consumer.receive(10, 5, paused={0})) == [f"new {number}"]
        late.append(time.monotonic() - started)
        await asyncio.sleep(0.03)

    assert sorted(late)[2] < 0.2


async def nothing_of(consumer, paused) -> None:
    assert list(await consumer.receive(10, 0.5, paused=paused)) == []


async def without_room(bench: Bench, count: int) -> tuple[KafkaConsumer, RawDelivery, KafkaConsumer]:
    """A member that holds one of so many messages and asks for no more, that message, and another member."""
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, TopicSpec("jobs", partitions=1))
    stuck = bench.consumer(adapter, group)
    await owned(stuck)
    await publish(adapter, group.topic, *map(str, range(count)))
    (held,) = await receive(stuck, 1)
    return stuck, held, bench.consumer(other, group)


async def test_a_member_without_room_lets_others_have_what_waits(bench: Bench) -> None:
    stuck, held, free = await without_room(bench, 10)

    deliveries = await receive(free, 9)

    assert set(ids(deliveries)) == set(map(str, range(10))) - {held.message.id}
    assert {one.attempt for one in deliveries} == {1}
    await ack(free, deliveries)
    assert await settle(stuck, [held], Ack()) == [DONE]


async def test_what_cannot_be_read_while_a_member_has_no_room_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, held, free = await without_room(bench, 5)
    refused = asyncio.Event()

    def corrupt(*_: object) -> float:
        monkeypatch.undo()
        refused.set()
        raise ConnectionFailed("invalid checksum")

    monkeypatch.setattr(stuck, "_read", corrupt)
    others: list[RawDelivery] = []
    async with asyncio.timeout(20):
        while not refused.is_set():
            await free.receive(1, 0.1)
        while len(others) < 4:
            others += [*await stuck.receive(4, 0.1), *await free.receive(4, 0.1)]

    assert {*ids(others), held.message.id} == set(map(str, range(5)))


async def test_records_of_aborted_transactions_and_markers_are_skipped(bench: Bench) -> None:
    import aiokafka

    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    name = adapter._session.names.topic(ONE)
    host = bench.url.removeprefix("kafka://").partition("?")[0]
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=host, transactional_id=bench.namespace)
    await producer.start()
    try:
        for value in (b"kept", b"aborted", b"kept too"):
            await producer.begin_transaction()
            await producer.send_and_wait(name, value, partition=0)
            await (producer.abort_transaction() if value == b"aborted" else producer.commit_transaction())
    finally:
        await producer.stop()
    await publish(adapter, ONE, "ours")
    consumer = bench.consumer(adapter, group)

    deliveries = await receive(consumer, 3)
    await ack(consumer, deliveries)
    await consumer.close()

    assert [one.message.body for one in deliveries] == [b"kept", b"kept too", b"ours"]
    await nothing(bench.consumer(adapter, group))


async def test_keys_go_where_other_programs_put_them(bench: Bench) -> None:
    import aiokafka

    adapter = await bench.adapter()
    topic = TopicSpec("orders", ordered=True, partitions=8)
    group = await bench.group(adapter, topic)
    keys = ["21", "foobar", "a-little-bit-long-string", "", "ключ", "customer-7"]
    for key in keys:
        await adapter.publish([outgoing(topic, f"ours {key}", key=key)])
    host = bench.url.removeprefix("kafka://").partition("?")[0]
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=host)
    await producer.start()
    try:
        for key in keys:
            await producer.send_and_wait(adapter._session.names.topic(topic), b"theirs", key=key.encode())
    finally:
        await producer.stop()

    deliveries = await receive(bench.consumer(adapter, group), 2 * len(keys))

    places: dict[object, set[int]] = {}
    for one in deliveries:
        places.setdefault(one.message.key, set()).add(one.partition)
    assert {key: len(partitions) for key, partitions in places.items()} == dict.fromkeys(keys, 1)


async def test_large_messages_of_one_partition_come_while_another_is_busy(bench: Bench) -> None:
    """A broker cuts what does not fit into a partition's share of an answer, unless the partition is named first."""
    adapter = await bench.adapter(max_message_bytes=3_000_000)
    topic = TopicSpec("orders", ordered=True, partitions=2)
    group = await bench.group(adapter, topic)
    for number in range(3):
        await publish(adapter, topic, f"large {number}", partition=1, body=b"x" * 2_500_000)
        for _ in range(4):
            await publish(adapter, topic, f"busy {number}", partition=0, body=b"x" * 400_000)

    deliveries = await receive(bench.consumer(adapter, group), 15)

    assert ids([one for one in deliveries if one.partition == 1]) == [
        f"large {number}" for number in range(3)
    ]


async def test_a_partition_whose_room_is_full_waits_says_so_and_goes_on(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    consumer = bench.consumer(adapter, group)
    await owned(consumer)
    assert consumer._partitions is not None
    consumer._partitions.room = 120
    await publish(adapter, ONE, *map(str, range(60)))
    deliveries = await receive(consumer, 50)

    held = await settle(consumer, deliveries, Retry(), after=60.0, failure="{}")

    assert all(isinstance(one, Hold) for one in held)
    assert consumer.status().full == {0}
    await nothing(consumer)
    await ack(consumer, deliveries[:45])
    assert consumer.status().full == frozenset()
    assert ids(await receive(consumer, 10)) == [str(number) for number in range(50, 60)]


async def test_a_broker_that_keeps_less_beside_a_position_is_given_less(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`offset.metadata.max.bytes` may be smaller than usual: no commit is tried for ever."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    commit = brokers_of(adapter).commit

    async def strict(name, positions, **more) -> None:
        if any(len(position.metadata) > 300 for position in positions.values()):
            raise Errors.OffsetMetadataTooLargeError
        await commit(name, positions, **more)

    monkeypatch.setattr(brokers_of(adapter), "commit", strict)
    await publish(adapter, ONE, *map(str, range(1000)))
    consumer = bench.consumer(adapter, group, prefetch=1000)
    deliveries = await receive(consumer, 1000)

    assert await settle(consumer, deliveries[1::2], Ack()) == [DONE] * 500
    assert await settle(consumer, deliveries[::2], Ack()) == [DONE] * 500
    await consumer.close()
    await nothing(bench.consumer(adapter, group))
