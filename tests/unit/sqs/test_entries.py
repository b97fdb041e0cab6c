"""The attribute of a message: what most messages have alike is written once, and the rest is what it always is."""

import json
from base64 import b64decode
from datetime import timedelta, timezone

import pytest

from messaging.envelope import encode
from messaging.message import Message
from messaging_sqs.entries import pack
from tests.unit.messages import NOON, message


@pytest.mark.parametrize(
    "one",
    [
        message(),
        message(content_type="", source="", type=""),
        message(id='"\\', type='a"b', source="Läden", key="Käse\n", content_type="a/b"),
        message(correlation_id="r", causation_id="m0", key=""),
        message(key=b"\xff"),
        message(headers={"tenant": "\U0001f600"}),
        message(time=None),
        message(time=NOON.astimezone(timezone(timedelta(hours=2)))),
        message(time=NOON.replace(microsecond=1)),
        message(expires_at=NOON, not_before=NOON),
    ],
)
@pytest.mark.parametrize("control", [None, {"messaging-attempt": "2"}])
def test_every_message_has_an_attribute_with_its_headers(
    one: Message, control: dict[str, str] | None
) -> None:
    entry = pack(one, control, reply_to="inbox")

    expected = encode(one, prefix="ce_")
    if one.type is None:
        del expected["ce_type"]
    if one.content_type is not None:
        expected["messaging-content-type"] = one.content_type
    expected |= {"messaging-reply-to": "inbox", **(control or {})}
    assert entry.attribute == json.dumps(expected, separators=(",", ":"))


@pytest.mark.parametrize("body", [b"{}", b"\t\n ~", "Käse".encode(), "Käse\n".encode()])
def test_a_body_that_xml_keeps_travels_as_text(body: bytes) -> None:
    assert pack(message(body=body)).body == body.decode()


@pytest.mark.parametrize("body", [b"a\rb", b"\0", b"\x1b", b"\xff", "\ufffe".encode()])
def test_a_body_that_xml_would_change_travels_as_base64(body: bytes) -> None:
    entry = pack(message(body=body))

    assert b64decode(entry.body) == body
    assert json.loads(entry.attribute)["messaging-encoding"] == "base64"
