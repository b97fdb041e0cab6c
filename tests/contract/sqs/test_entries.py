"""What travels: every body and header arrives, every key has a legal message group, strangers control nothing."""

import json
import os
import time
from string import ascii_letters, digits, punctuation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.adapter import GroupSpec, Lease, TopicSpec
from messaging.envelope import NOT_BEFORE
from messaging.message import Message
from messaging_sqs.entries import ATTRIBUTE, DELAY, ENCODING, message_group, pack, unique, unpack

GROUP = GroupSpec(TopicSpec("orders", partitions=4), "billing")
XML = "\t\n" + "".join(map(chr, (0x20, 0x7E, 0xD7FF, 0xE000, 0xFFFD, 0x10FFFF)))


def as_received(body: str, attribute: str | None = None, **more):
    raw = {
        "MessageId": "m-1",
        "ReceiptHandle": "h",
        "Body": body,
        "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(time.time() * 1000))},
    }
    if attribute is not None:
        raw["MessageAttributes"] = {ATTRIBUTE: {"DataType": "String", "StringValue": attribute}}
    return raw | more


def arrived(raw, group=GROUP):
    return unpack(raw, group, Lease(), time.time())


@given(
    body=st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")),
    headers=st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=4),
    key=st.none() | st.text(max_size=10) | st.just(b"\xff\x00"),
)
def test_every_message_arrives_as_it_was(body, headers, key):
    headers = {
        name: value
        for name, value in headers.items()
        if (name + value).isprintable()
        and not name.lower().startswith(("messaging-", "ce_", "ce-", "cloudevents"))
    }
    message = Message(
        id="an id", topic="orders", body=body, key=key, headers=headers, content_type="text/plain"
    )

    entry = pack(message)

    assert entry.attribute.isascii()
    assert entry.body
    assert set(entry.body) <= set(XML) or all(
        "\ud7ff" >= letter >= " "
        or letter in "\t\n"
        or "\ufffd" >= letter >= "\ue000"
        or letter >= "\U00010000"
        for letter in entry.body
    )
    assert "\r" not in entry.body
    assert entry.size == len(entry.body.encode()) + len(ATTRIBUTE) + len("String") + len(entry.attribute)
    assert arrived(as_received(entry.body, entry.attribute)).message == message


@given(st.lists(st.text(max_size=200) | st.binary(max_size=20), unique=True, max_size=20))
def test_different_keys_have_different_legal_message_groups(keys):
    keys = [key for key in keys if isinstance(key, str) or not _is_text(key)]
    groups = [message_group(key) for key in keys if not isinstance(key, str) or key.isascii()]
    assert len(set(groups)) == len(groups)
    for group in groups:
        assert 1 <= len(group) <= 128
        assert set(group) <= set(ascii_letters + digits + punctuation)


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_plain_key_is_its_own_message_group_and_one_that_looks_hashed_is_not():
    assert message_group("customer-1") == "customer-1"
    assert message_group(message_group("a b")) != message_group("a b")


def test_messages_without_a_key_share_no_message_group():
    assert message_group(None) != message_group(None)


@pytest.mark.parametrize(
    "written", ["", "null", "[1]", "{", "[" * 50_000, '{"a": {"b": 1}}', '{"messaging-attempt": []}']
)
def test_an_attribute_that_somebody_else_wrote_stops_nothing(written):
    delivery = arrived(as_received("body", written))
    assert delivery.message.body == b"body"
    assert delivery.message.id == "m-1"
    assert delivery.attempt == 1


IN_TEN_YEARS = str(time.time() + 10 * 365 * 86_400)


@pytest.mark.parametrize(
    "due", ["1e300", "NaN", "inf", "9" * 30, "x", "[]", pytest.param(IN_TEN_YEARS, id="in ten years")]
)
def test_a_forged_due_time_delays_nothing(due):
    for header in (NOT_BEFORE, DELAY):
        assert arrived(as_received("body", json.dumps({header: due}))).token.due == 0


@pytest.mark.parametrize("body", ["not base64!", "a"])
def test_a_body_that_only_claims_to_be_base64_is_the_body(body):
    assert arrived(as_received(body, json.dumps({ENCODING: "base64"}))).message.body == body.encode()


def test_control_headers_count_only_in_the_attribute_that_is_ours():
    native = {"messaging-attempt": {"DataType": "String", "StringValue": "9"}}
    delivery = arrived(as_received("body", None, MessageAttributes=native))
    assert delivery.attempt == 1
    assert delivery.message.headers == {}


def test_native_attributes_of_a_stranger_are_headers():
    native = {
        "tenant": {"DataType": "String", "StringValue": "theirs"},
        "number": {"DataType": "Number", "StringValue": "7"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"raw"},
        "Content-Type": {"DataType": "String", "StringValue": "application/json"},
    }
    message = arrived(as_received("{}", None, MessageAttributes=native)).message
    assert message.headers == {"tenant": "theirs", "number": "7", "bytes": "raw"}
    assert message.content_type == "application/json"


def test_the_message_group_of_a_stranger_is_its_key_where_order_counts():
    raw = as_received("body", None, Attributes={"MessageGroupId": "customer-1"})
    assert (
        arrived(raw, GroupSpec(TopicSpec("orders", ordered=True), "billing", True)).message.key
        == "customer-1"
    )
    assert arrived(raw).message.key is None


def test_a_later_hand_over_has_a_larger_fence():
    def fence(**system):
        return arrived(as_received("body", None, Attributes=system)).fence

    first = fence(SequenceNumber="18849496460467696128", ApproximateReceiveCount="1")
    again = fence(SequenceNumber="18849496460467696128", ApproximateReceiveCount="2")
    later = fence(SequenceNumber="18849496460467696384", ApproximateReceiveCount="1")
    assert first < again < later


def test_a_forked_process_uses_no_id_that_its_parent_uses():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, unique().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() != unique()
