"""Messages as entries of a stream."""

import pytest

from messaging.message import Message
from messaging_redis.entries import decode_copy, decode_entry, encode_entry, exceeds, pack, unpack


def raw(fields):
    return [part if isinstance(part, bytes) else part.encode() for part in fields]


@pytest.mark.parametrize(
    "message",
    [
        Message(id="1", topic="t", body=bytes(range(256)), key="k", headers={"a": "b", "ü/\"'": "😀"}),
        Message(id="1", topic="t", body=b"", key=b"\xff", content_type="application/json", type="x"),
        Message(id="1", topic="t", body=b"x", headers={"body": "mine", "content-type": "mine too"}),
    ],
)
def test_a_message_comes_back_as_it_was(message):
    decoded, reply_to = decode_entry(raw(encode_entry(message, "there")), topic="t", position="0/1-0")

    assert (decoded.id, decoded.body, decoded.key, decoded.headers, decoded.content_type) == (
        message.id,
        message.body,
        message.key,
        message.headers,
        message.content_type,
    )
    assert reply_to == "there"


def test_entries_of_other_programs_are_taken_as_they_are():
    one, _ = decode_entry([b"data", b"\xff\x00"], topic="t", position="0/1700000000000-7")
    several, _ = decode_entry([b"customer", b"c1", b"amount", b"3"], topic="t", position="0/1-0")
    plain, _ = decode_entry(
        [b"body", b"x", b"a", b"b", b"messaging-attempt", b"9"], topic="t", position="0/1-0"
    )
    nothing, _ = decode_entry([], topic="t", position="0/1-0")
    odd, _ = decode_entry([b"body"], topic="t", position="0/not-an-id")

    assert (one.body, one.id) == (b"\xff\x00", "0/1700000000000-7")
    assert one.time is not None
    assert (several.body, several.content_type) == (b'{"customer": "c1", "amount": "3"}', "application/json")
    assert (plain.body, plain.headers) == (b"x", {"a": "b"})
    assert nothing.body == odd.body == b""


def test_packed_fields_come_back_and_damaged_ones_do_not_raise():
    fields = ["body", bytes(range(256)), "ü", "", "a", "b" * 5000]

    assert unpack(pack(fields)) == raw(fields)
    assert unpack(b"5:abcde9999:x") == [b"abcde", b"x"]
    assert unpack(b"no") == unpack(b"") == unpack(b":::") == []


@pytest.mark.parametrize("filler", [b"x" * 500, "x" * 500, "ü" * 250, "😀" * 125])
def test_the_bound_of_a_message_counts_bytes_not_characters(filler):
    fields = ["body", filler]

    assert exceeds(fields, 504) == 0
    assert exceeds(fields, 503) == 504


def test_a_forged_copy_counts_as_a_first_delivery_at_worst():
    copy = decode_copy([b"_attempt", b"-5", b"_returns", b"x", b"_origin", b"nine/1", b"_deliveries"], "1-0")

    assert (copy.failures, copy.returns, copy.deliveries, copy.partition, copy.fields) == (0, 0, 0, 0, [])
    assert decode_copy([b"_attempt", b"99999999999"], "1-0").failures == 10_000
