"""The private marshalling: byte for byte what pamqp writes, and a public path for other versions of aiormq."""

import asyncio
from datetime import UTC, datetime

import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from messaging.adapter import Unrouted
from messaging.errors import MessageTooLarge
from messaging.message import Receipt, Retry
from messaging_rabbitmq import connection, frames, outlet
from tests.contract.bench import ack, ids, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench


@pytest.mark.parametrize(
    "properties",
    [
        Basic.Properties(),
        Basic.Properties(headers={"a": "b", "z": "", "é" * 60: "ü🎉"}, delivery_mode=2, message_id="id"),
        Basic.Properties(headers={}, content_type="", correlation_id="c" * 255, reply_to="r"),
        Basic.Properties(
            content_type="application/json",
            content_encoding="gzip",
            headers={"a": "x" * 70_000},
            delivery_mode=1,
            correlation_id="c",
            reply_to="r",
            message_id="m",
            timestamp=datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC),
            message_type="t",
            app_id="a",
        ),
        Basic.Properties(headers={"number": 7, "nested": {"a": [1, None]}}),
    ],
)
def test_what_is_published_is_what_pamqp_writes(properties: Basic.Properties) -> None:
    parcel = frames.parcel_of("exchange", "key", properties, b"body")
    if properties.headers == {}:  # an empty table may be left out
        properties.headers = None
    theirs = [
        Basic.Publish(exchange="exchange", routing_key="key", mandatory=True),
        ContentHeader(body_size=4, properties=properties),
        ContentBody(b"body"),
    ]
    assert frames.marshalled(3, 1000, [parcel]) == b"".join(marshal(frame, 3) for frame in theirs)


def test_a_message_of_ours_is_what_pamqp_writes() -> None:
    headers = {"a": "b", "cloudEvents_id": "m", "z": "", "é" * 60: "ü🎉"}
    time = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    described = Basic.Properties(
        content_type="a/b",
        headers=dict(headers),
        delivery_mode=1,
        correlation_id="c",
        reply_to="r",
        message_id="i",
    )
    described.timestamp = time

    ours = frames.content(
        frames.table_of(headers),
        content_type="a/b",
        mode=1,
        correlation_id="c",
        reply_to="r",
        message_id="i",
        time=time,
    )

    assert ours == described.marshal()
    parcel = frames.Parcel("", "", ours, "i", b"")
    assert dict(parcel.properties) == dict(described) | {"timestamp": time.replace(microsecond=0)}


@pytest.mark.parametrize("known", [True, False])
async def test_both_paths_publish_confirm_return_and_split_large_bodies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    assert connection.is_known_version()
    monkeypatch.setattr(connection, "is_known_version", lambda: known)
    adapter = await bench.adapter(max_message_bytes=1_000_000)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    sizes = (0, 1, 131_063, 131_064, 131_065, 262_128, 900_000)
    messages = [outgoing(group.topic, f"m{size}", body=b"x" * size) for size in sizes]

    results = await adapter.publish(messages)

    assert all(type(result) is Receipt for result in results)
    deliveries = await receive(consumer, len(sizes))
    assert [len(delivery.message.body) for delivery in deliveries] == list(sizes)
    await ack(consumer, deliveries)
    await consumer.close()
    await adapter.delete_group(group)
    assert isinstance((await adapter.publish([outgoing(group.topic, "m")]))[0], Unrouted)


async def test_publishers_side_by_side_each_get_their_own_results(bench: Bench) -> None:
    adapter = await bench.adapter(outstanding=50)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group, prefetch=1000)

    await asyncio.gather(
        *(publish(adapter, group.topic, *(f"{task}-{n}" for n in range(40))) for task in range(20))
    )

    seen = ids(await receive(consumer, 800))
    assert len(set(seen)) == 800
    for task in range(20):
        assert [one for one in seen if one.startswith(f"{task}-")] == [f"{task}-{n}" for n in range(40)]
    ports = adapter._session.sender.ports
    assert ports._all and not ports.unconfirmed
    for port in ports._all:
        assert isinstance(port.outlet, outlet.TappedOutlet)
        assert not port.outlet.confirms.batches


@pytest.mark.parametrize(
    ("frame_max", "limit"), [(0, 129_024), (4096, 2048), (131_072, 129_024), (2**20, 129_024)]
)
def test_headers_have_room_in_a_frame_of_the_brokers_size(frame_max: int, limit: int) -> None:
    assert frames.table_limit(frame_max) == limit


async def test_what_does_not_fit_into_a_smaller_header_frame_is_not_sent(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    adapter._session.consuming.table_limit = frames.table_limit(8192)

    large = outgoing(group.topic, "large", headers={"a": "x" * 7000})
    results = await adapter.publish([large, outgoing(group.topic, "small")])

    assert isinstance(results[0], MessageTooLarge)
    assert isinstance(results[1], Receipt)
    (small,) = await receive(consumer, 1)
    await settle(consumer, [small], Retry(), after=0.0, failure="x" * 7000)
    (again,) = await receive(consumer, 1)
    assert (again.message.id, again.attempt, again.failure) == ("small", 2, None)
