"""The properties that are packed in one step are those that are packed field by field."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from messaging.errors import MessageTooLarge
from messaging.message import Message
from messaging_rabbitmq import properties
from messaging_rabbitmq.frames import Parcel
from messaging_rabbitmq.packing import usual_content

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def message(**more: Any) -> Message:
    fields: dict[str, Any] = {
        "id": "m1",
        "topic": "orders",
        "body": b'{"a":1}',
        "content_type": "application/json",
        "time": NOON,
    }
    return Message(**fields | more)


USUAL = [
    message(),
    message(time=NOON.replace(microsecond=7)),
    message(source="shop", type="placed", key="c1", correlation_id="r1", causation_id="m0"),
    message(content_type=None, body=b""),
    message(key="", correlation_id="", source=""),
    message(key="c1", expires_at=NOON.replace(microsecond=7), correlation_id="r1"),
    message(id="i" * 127, key="k" * 127, correlation_id="r" * 127),
]
OTHERS = [
    message(id="i" * 128),
    message(key="k" * 70_000),
    message(source="s" * 200),
    message(correlation_id="r" * 300),
    message(content_type="a/" + "b" * 200),
    message(source="Läden", key="Käse", type="Käufe"),
    message(key=b"\xff"),
    message(headers={"tenant": "ü", "x-death": "mine"}),
    message(time=None),
    message(time=datetime(1969, 1, 1, tzinfo=UTC)),
    message(time=NOON.astimezone(timezone(timedelta(hours=2)))),
    message(expires_at=NOON, not_before=NOON),
]


@pytest.mark.parametrize("one", [*USUAL, *OTHERS])
@pytest.mark.parametrize("reply_to", [None, "", "inbox.1", "i" * 200])
@pytest.mark.parametrize("persistent", [True, False])
def test_every_message_is_packed_as_its_fields_are(
    one: Message, reply_to: str | None, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "unique_id", lambda: "u-1")

    def packed() -> Parcel:
        return properties.packed(
            "x", "0", one, limit=10**6, table_limit=10**5, reply_to=reply_to, persistent=persistent
        )

    at_once = packed()
    monkeypatch.setattr(properties, "usual_content", lambda *_: None)
    assert at_once.content == packed().content


def test_a_key_that_is_far_too_long_is_refused() -> None:
    with pytest.raises(MessageTooLarge):
        properties.packed("x", "0", message(key="k" * 2_000_000), limit=10**7, table_limit=10**5)


def test_usual_messages_are_packed_in_one_step() -> None:
    assert all(usual_content(one, "u-1", "inbox.1", 2) for one in USUAL)
    assert not any(usual_content(one, "u-1", "inbox.1", 2) for one in OTHERS)
