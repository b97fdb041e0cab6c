"""Every attribute of a message is on the wire, on each broker whose adapter writes most messages without `encode`."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from messaging.message import Message
from messaging_kafka import records
from messaging_rabbitmq import properties
from messaging_redis.packing import pack_addition

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
USUAL = Message(id="m1", topic="orders", body=b"{}", time=NOON)
OTHER = {
    "id": "m2",
    "topic": "bills",  # the type of what has no other
    "body": b"[]",
    "key": "c1",
    "headers": {"tenant": "acme"},
    "content_type": "application/json",
    "type": "placed",
    "source": "shop",
    "time": NOON.replace(hour=13),
    "expires_at": NOON,
    "correlation_id": "r1",
    "causation_id": "m0",
    "not_before": NOON,
}
"""For each attribute another value than that of `USUAL`."""


def to_redis(message: Message) -> object:
    return pack_addition("{orders}:0", message)


def to_rabbitmq(message: Message) -> object:
    parcel = properties.packed("x", "0", message, limit=10**6, table_limit=10**5)
    return parcel.content, parcel.body


def to_kafka(message: Message) -> object:
    return records.parcel(message, "orders", 0)


@pytest.mark.parametrize("write", [to_redis, to_rabbitmq, to_kafka])
@pytest.mark.parametrize("attribute", [field.name for field in fields(Message)])
def test_no_attribute_is_lost_on_the_way(write: Any, attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "unique_id", lambda: "u-1")
    changed = replace(USUAL, **{attribute: OTHER[attribute]})

    assert write(changed) != write(USUAL)
