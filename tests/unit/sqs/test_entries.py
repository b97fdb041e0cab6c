"""The attribute of a message: what most messages have alike is written once, and the rest is what it always is."""

import json
import time
from base64 import b64decode
from datetime import timedelta, timezone

import pytest

from messaging.adapter import GroupSpec, Lease, TopicSpec
from messaging.envelope import ATTEMPT, FAILURE, NOT_BEFORE, encode
from messaging.message import Message
from messaging_sqs.entries import DELAY, ORIGIN, RETURNS, pack, unpack
from tests.unit.messages import NOON, message

GROUP = GroupSpec(TopicSpec("orders", partitions=4), "billing")


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


@pytest.mark.parametrize("name", [ATTEMPT, DELAY, FAILURE, NOT_BEFORE, ORIGIN, RETURNS])
@pytest.mark.parametrize("number", ["Infinity", "-1e999", "NaN"])
def test_a_number_without_end_that_another_program_wrote_is_read_as_none(name: str, number: str) -> None:
    raw = {
        "MessageId": "m-1",
        "ReceiptHandle": "h",
        "Body": "x",
        "MessageAttributes": {"messaging": {"StringValue": f'{{"{name}":{number}}}'}},
    }

    delivery = unpack(raw, GROUP, Lease(), time.time())

    assert (delivery.message.body, delivery.attempt, delivery.returns, delivery.token.due) == (b"x", 1, 0, 0)
