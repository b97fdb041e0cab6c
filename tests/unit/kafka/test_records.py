"""The headers of a record: what most messages have alike is encoded once, and the rest is what it always is."""

from datetime import timedelta, timezone

import pytest

from messaging.envelope import encode
from messaging.message import Message
from messaging_kafka.records import encode_headers
from tests.unit.messages import NOON, message


@pytest.mark.parametrize(
    "one",
    [
        message(),
        message(content_type="", source=""),
        message(
            content_type="a/b",
            source="Läden",
            type="placed",
            key="Käse",
            correlation_id="r",
            causation_id="m0",
        ),
        message(key=b"\xff"),
        message(headers={"tenant": "ü"}),
        message(headers={"content-type": "mine"}),
        message(time=None),
        message(time=NOON.astimezone(timezone(timedelta(hours=2)))),
        message(expires_at=NOON, key="c1", correlation_id="r1"),
        message(expires_at=NOON, not_before=NOON),
    ],
)
@pytest.mark.parametrize("control", [None, {"messaging-attempt": "2"}])
def test_every_message_has_the_headers_of_its_attributes(
    one: Message, control: dict[str, str] | None
) -> None:
    headers = encode_headers(one, control)

    kind = one.content_type if "content-type" not in one.headers else one.content_type or ""
    expected = [] if kind is None else [("content-type", kind)]
    expected += [*encode(one, prefix="ce_").items(), *(control or {}).items()]
    assert headers == [(name, value.encode()) for name, value in expected]


def test_what_is_alike_is_not_shared() -> None:
    """Who changes the headers of one message changes no other's."""
    encode_headers(message(key="a")).append(("more", b""))

    assert encode_headers(message(key="a"))[-1] == ("ce_partitionkey", b"a")
