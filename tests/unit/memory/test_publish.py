from datetime import UTC, datetime, timedelta, timezone
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.adapter import GroupSpec, TopicSpec, Topology, Unrouted
from messaging.envelope import decode, encode
from messaging.errors import InvalidMessage, MessageTooLarge, NoGroup, PublishError, TopicNotFound
from messaging.message import Message, Receipt
from messaging_memory.record import PREFIX, Record, message_of, row_of


async def test_every_group_gets_every_message(world):
    groups = [GroupSpec(world.topic, name) for name in ("billing", "search")]
    await world.declare(*groups)
    receipts = await world.publish(*(world.outgoing(partition=number % 2) for number in range(10)))

    for group in groups:
        got = await world.drained(world.consumer(group=group))
        assert {delivery.message.id for delivery in got} == {receipt.id for receipt in receipts}
        assert {delivery.position for delivery in got} == {receipt.position for receipt in receipts}


async def test_results_come_per_item_in_order(world):
    await world.declare()
    first, large, missing, wrong, last = (
        world.outgoing(id="first"),
        world.outgoing(b"x" * 2_000_000, id="large"),
        world.outgoing(id="missing"),
        world.outgoing(id="wrong", partition=2),
        world.outgoing(id="last"),
    )
    missing.topic = TopicSpec("unknown")

    results = await world.publish(first, large, missing, wrong, last)

    assert [type(result) for result in results] == [
        Receipt,
        MessageTooLarge,
        TopicNotFound,
        InvalidMessage,
        Receipt,
    ]
    for result, name in zip(results[1:4], ["large", "missing", "wrong"], strict=True):
        assert name in str(result)
    got = await world.drained(world.consumer())
    assert [delivery.message.id for delivery in got] == ["first", "last"]


async def test_nothing_of_an_ordered_key_follows_what_failed_and_others_go_on(world):
    await world.declare(ordered=True)
    first, large, behind, other, elsewhere = await world.publish(
        world.outgoing(key="a"),
        world.outgoing(b"x" * 2_000_000, id="large", key="a"),
        world.outgoing(key="a"),
        world.outgoing(key="b"),
        world.outgoing(key="c", partition=1),
    )

    assert [type(result) for result in (first, other, elsewhere)] == [Receipt] * 3
    assert [type(result) for result in (large, behind)] == [MessageTooLarge, PublishError]
    assert "message large, published before it with the same key, failed" in str(behind)


async def test_without_a_group_a_publish_is_unrouted_or_refused(world):
    await world.adapter.declare(Topology([world.topic]))

    unrouted, refused = await world.publish(world.outgoing(), world.outgoing(mandatory=True))

    assert isinstance(unrouted, Unrouted)
    assert isinstance(refused, NoGroup)


@pytest.mark.parametrize("over", [0, 1])
async def test_the_size_limit_is_exact_and_counts_attributes_and_headers(world, over):
    await world.declare()
    outgoing = world.outgoing(key="ключ", headers={"note": "ü" * 100})
    row, _ = row_of(outgoing.message, 0.0, None, inf)
    size = len(outgoing.message.body) + sum(
        len(name.encode()) + len(value.encode()) for name, value in Record(row, 0).headers.items()
    )
    adapter = await world.another(max_message_bytes=size - over)

    (result,) = await adapter.publish([outgoing])

    assert isinstance(result, MessageTooLarge if over else Receipt)


@pytest.mark.parametrize("type", ["orders", None])
async def test_what_a_handler_does_to_headers_no_other_delivery_sees(world, type):
    groups = [GroupSpec(world.topic, name) for name in ("billing", "search")]
    await world.declare(*groups)
    headers = {"tenant": "a"}
    await world.publish(world.outgoing(headers=headers, type=type), world.outgoing(type=type))
    headers["tenant"] = "changed by the publisher"
    consumers = [world.consumer(group=group) for group in groups]

    for delivery in await consumers[0].receive(10, 0):
        delivery.message.headers["added"] = "by a handler"
    again = await consumers[1].receive(10, 0)

    assert [dict(delivery.message.headers) for delivery in again] == [{"tenant": "a"}, {}]


async def test_foreign_messages_are_taken(world):
    await world.declare()
    name = next(iter(world.broker.topics))
    position = world.broker.inject(name, b"\xff", headers={"n": 5, "messaging-attempt": "99"})

    (delivery,) = await world.drained(world.consumer())

    assert delivery.message.id == position == delivery.position
    assert delivery.message.headers == {"n": "5"}
    assert delivery.attempt == 1


texts = st.none() | st.text(max_size=5) | st.text("ab", min_size=1, max_size=3)
times = st.none() | st.datetimes(
    min_value=datetime(2000, 1, 1),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, UTC, timezone(timedelta(hours=2))]),
)
messages = st.builds(
    Message,
    id=st.text(max_size=4),
    topic=st.just("orders"),
    body=st.binary(max_size=5),
    key=texts | st.binary(max_size=3),
    headers=st.dictionaries(
        st.sampled_from(["a", "b", "ce_c", "ce_id", "messaging-d", "é"]), texts.filter(bool), max_size=2
    ),
    content_type=texts,
    type=texts,
    source=texts,
    time=times,
    expires_at=times,
    correlation_id=texts,
    causation_id=texts,
)


@given(messages)
def test_a_message_is_kept_as_it_is_only_where_a_wire_would_not_change_it(message):
    row, size = row_of(message, 0.0, None, inf)
    if len(row) == 5:
        return
    headers = encode(message, prefix=PREFIX)
    carried = decode(
        headers,
        prefix=PREFIX,
        topic="orders",
        body=message.body,
        position="0-0",
        content_type=message.content_type,
    )
    assert carried == message == message_of(row, "orders", "0-0")
    attributes = sum(len(f"{name}{value}".encode()) for name, value in headers.items())
    assert len(message.body) + attributes <= size


async def test_use_before_open_and_after_close_is_said(world):
    from messaging.errors import Closed

    await world.declare()
    consumer = world.consumer()
    await world.adapter.close()
    await world.adapter.close()

    with pytest.raises(Closed):
        await world.publish(world.outgoing())
    with pytest.raises(Closed):
        world.consumer()
    with pytest.raises(Closed):
        await consumer.receive(1, 0)
    assert not (await world.adapter.health()).connected
