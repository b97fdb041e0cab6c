"""The packed form of an entry is the one that is packed field by field."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hiredis
import pytest

from messaging.message import Message
from messaging_redis.entries import encode_entry
from messaging_redis.packing import pack_addition

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def message(**more):
    fields = {
        "id": "m1",
        "topic": "orders",
        "body": b'{"a":1}',
        "content_type": "application/json",
        "time": NOON,
    }
    return Message(**fields | more)


@pytest.mark.parametrize(
    "one",
    [
        message(),
        message(source="shop", type="placed", key="c1", correlation_id="r1", causation_id="m0"),
        message(source="Läden", key="Käse", id="m\r\n$1"),
        message(content_type=None, body=b""),
        message(key=b"\xff"),
        message(headers={"tenant": "ü", "traceparent": "00-1"}),
        message(time=None),
        message(time=NOON.astimezone(timezone(timedelta(hours=2)))),
        message(expires_at=NOON, key="c1", correlation_id="r1"),
        message(expires_at=NOON.replace(microsecond=50)),
        message(expires_at=NOON.replace(tzinfo=None)),
        message(expires_at=NOON, not_before=NOON),
    ],
)
@pytest.mark.parametrize("stream", ["{orders}:0", "{bücher}:0"])
@pytest.mark.parametrize("reply_to", [None, "reply:1"])
def test_every_message_is_packed_as_its_fields_are(one, stream, reply_to):
    packed = pack_addition(stream, one, reply_to)

    command: tuple[Any, ...] = ("XADD", stream, "*", *encode_entry(one, reply_to))
    assert packed == hiredis.pack_command(command)
