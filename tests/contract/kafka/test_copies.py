"""Messages of other programs that are too large for a copy of ours: retried and rejected all the same."""

import json
import random

import aiokafka
import pytest

from messaging.adapter import DONE, Hold, StoredLetter, TopicSpec
from messaging.errors import ConfigurationError
from messaging.failure import parse
from messaging.message import Ack, Reject, Retry
from messaging.oversize import BODY_BYTES
from messaging_kafka.brokers import NewTopic
from tests.contract.bench import ack, ids, nothing, publish, receive, settle
from tests.contract.kafka.support import Bench, brokers_of

PLAIN = TopicSpec("orders", partitions=1)
COMPRESSIBLE = b'{"order": 1}' * 350_000
FAILURE = json.dumps({"last": {"cause": "exception", "reason": "no such customer"}})


async def foreign(bench: Bench, topic: str, body: bytes, *, compression: str | None = None) -> None:
    host = bench.url.removeprefix("kafka://").partition("?")[0]
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=host, max_request_size=8 << 20, compression_type=compression
    )
    await producer.start()
    try:
        await producer.send_and_wait(topic, body)
    finally:
        await producer.stop()


async def letters_of(store) -> list[StoredLetter]:
    async with store.scan() as letters:
        return [letter async for letter in letters]


async def test_what_came_compressed_is_retried_rejected_and_redriven_whole(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await foreign(bench, adapter._session.names.topic(PLAIN), COMPRESSIBLE, compression="gzip")
    await publish(adapter, PLAIN, "neighbour")
    consumer = bench.consumer(adapter, group)
    store = adapter.dead_letters(group)
    deliveries = await receive(consumer, 2)

    assert await settle(consumer, deliveries, Retry(), after=0.0, failure=FAILURE) == [DONE, DONE]
    deliveries = await receive(consumer, 2)
    assert {one.attempt for one in deliveries} == {2}
    assert await settle(consumer, deliveries, Reject("bad"), failure=FAILURE) == [DONE, DONE]
    letters = await letters_of(store)
    whole = [(one, one.message, None) for one in letters if one.message.body == COMPRESSIBLE]
    assert (len(letters), len(whole)) == (2, 1)
    assert await store.redrive(whole) == [None]
    (again,) = await receive(consumer, 1)

    assert (again.message.body, again.attempt) == (COMPRESSIBLE, 1)
    assert await settle(consumer, [again], Ack()) == [DONE]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_another_program_compressed_is_read(bench: Bench, codec: str) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)

    await foreign(bench, adapter._session.names.topic(PLAIN), COMPRESSIBLE, compression=codec)

    (delivery,) = await receive(bench.consumer(adapter, group), 1)
    assert delivery.message.body == COMPRESSIBLE


async def test_a_codec_that_is_not_installed_ends_the_subscription_and_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await foreign(bench, adapter._session.names.topic(PLAIN), b"small" * 100, compression="lz4")
    monkeypatch.setattr("aiokafka.codec.cramjam", None)

    with pytest.raises(ConfigurationError, match=r"lz4.*pip install 'messaging-ports\[kafka\]'"):
        await receive(bench.consumer(adapter, group), 1)


async def too_large(bench: Bench):
    """A message of two megabytes that nothing makes smaller, on a topic of another program, and a neighbour."""
    adapter = await bench.adapter()
    native = f"messaging.{bench.namespace}.theirs"
    await brokers_of(adapter).create([NewTopic(native, 1, {"max.message.bytes": "4000000"})])
    topic = TopicSpec("orders", partitions=1, native=native)
    group = await bench.group(adapter, topic)
    body = random.Random(1).randbytes(2_000_000)
    await foreign(bench, native, body)
    await publish(adapter, topic, "neighbour")
    return adapter, group, body


async def test_a_dead_letter_that_cannot_hold_its_message_is_cut_and_stops_no_neighbour(bench: Bench) -> None:
    adapter, group, body = await too_large(bench)
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 2)

    assert await settle(consumer, deliveries, Reject("bad"), failure=FAILURE) == [DONE, DONE]

    letters = {letter.message.id: letter for letter in await letters_of(adapter.dead_letters(group))}
    assert set(letters) == set(ids(deliveries))
    cut = letters[deliveries[0].message.id]
    assert cut.message.body == body[:BODY_BYTES]
    failure = parse(cut.failure)
    assert failure.cut_from == len(body)
    assert failure.last is not None
    assert failure.last.cause == "oversize"
    assert "no such customer" in failure.last.reason
    await consumer.close()
    await nothing(bench.consumer(adapter, group))


async def test_a_retry_that_cannot_be_copied_is_held_and_counted_by_the_next_owner_too(bench: Bench) -> None:
    adapter, group, body = await too_large(bench)
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 2)

    held, done = await settle(consumer, deliveries, Retry(), after=0.3, failure=FAILURE)
    assert isinstance(held, Hold)
    assert done is DONE
    await consumer.close()
    deliveries = await receive(bench.consumer(adapter, group), 2)

    (large,) = (one for one in deliveries if one.message.body == body)
    assert large.attempt == 2


async def test_a_member_without_room_keeps_what_cannot_be_sent_on(bench: Bench) -> None:
    adapter, group, body = await too_large(bench)
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 2)
    assert consumer._settler is not None

    for _ in range(2):
        assert await consumer._settler.move(deliveries, [0.0, 0.0]) == deliveries[:1]

    assert deliveries[0].message.body == body
    await ack(consumer, deliveries)
    (neighbour,) = await receive(consumer, 1)
    assert neighbour.message.id == "neighbour"
