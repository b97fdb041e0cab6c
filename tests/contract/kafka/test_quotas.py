"""Quotas: a broker that holds back what a client reads is slow, and not silent."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from messaging.adapter import TopicSpec
from messaging.message import Reject
from messaging_kafka import KafkaAdapter
from messaging_kafka.library import Api, Types
from tests.contract.bench import ids, publish, receive, settle
from tests.contract.kafka.support import Bench

ONE = TopicSpec("orders", partitions=1)
pytestmark = pytest.mark.slow  # quotas are counted over ten seconds

LARGE = b"x" * 20_000
_ENTITY: Any = Types.Array(("type", Types.String("utf-8")), ("name", Types.String("utf-8")))


class QuotaAltered(Api.Response):  # type: ignore[misc]  # aiokafka has no types, and not this request
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Types.Schema(
        ("throttle_time_ms", Types.Int32),
        (
            "entries",
            Types.Array(("code", Types.Int16), ("message", Types.String("utf-8")), ("entity", _ENTITY)),
        ),
    )


class _Request(Api.RequestStruct):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = QuotaAltered
    SCHEMA = Types.Schema(
        (
            "entries",
            Types.Array(
                ("entity", _ENTITY),
                (
                    "changes",
                    Types.Array(
                        ("quota", Types.String("utf-8")), ("value", Types.Float64), ("remove", Types.Boolean)
                    ),
                ),
            ),
        ),
        ("validate_only", Types.Boolean),
    )


class AlterQuota(Api.Request[_Request]):  # type: ignore[misc]
    """Bytes that one client id may read in a second; without them, as many as it likes."""

    API_KEY = 49

    def __init__(self, client: str, rate: float | None) -> None:
        self._change = [("client-id", client)], [("consumer_byte_rate", rate or 0.0, rate is None)]

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._change], False)


@pytest.fixture
async def reader(bench: Bench) -> AsyncIterator[KafkaAdapter]:
    """An adapter that may read 25 kB a second, and waits for a second until it takes a broker for silent."""
    adapter = await bench.adapter()
    await adapter._session.link.send(AlterQuota(bench.namespace, 25_000))
    yield await bench.adapter(client_id=bench.namespace, operation_timeout=1, fetch_wait=0.1)
    await adapter._session.link.send(AlterQuota(bench.namespace, None))


async def test_who_is_held_back_by_a_quota_reads_all_and_is_not_taken_for_silent(
    bench: Bench, reader: KafkaAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = await bench.adapter()
    group = await bench.group(publisher, ONE)
    names = [str(number) for number in range(15)]
    for name in names:
        await publish(publisher, ONE, name, body=LARGE)

    deliveries = await receive(bench.consumer(reader, group), len(names), within=30)

    assert ids(deliveries) == names
    assert "A quota on Kafka holds back what orders/billing" in caplog.text
    assert "stood still" not in caplog.text


async def test_dead_letters_are_read_by_who_is_held_back_by_a_quota(
    bench: Bench, reader: KafkaAdapter
) -> None:
    publisher = await bench.adapter()
    group = await bench.group(publisher, ONE)
    names = [str(number) for number in range(15)]
    consumer = bench.consumer(publisher, group)
    for name in names:  # a letter is a batch: a quota never gives one that is larger than itself
        await publish(publisher, ONE, name, body=LARGE)
        await settle(consumer, await receive(consumer, 1), Reject("bad"))

    async with reader.dead_letters(group).scan() as letters:
        assert [letter.message.id async for letter in letters] == names
