from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from messaging.adapter import RawDelivery, Settlement
from messaging.failure import parse
from messaging.message import Message, Reject
from messaging.oversize import BODY_BYTES, cut

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def letter_of(message: Message, failure: str | None = None):
    settlement = Settlement(RawDelivery(message, attempt=2), Reject("bad"), failure=failure)
    return cut(settlement, group="billing", size=5_000_000, most=1_000_000, now=NOW)


def test_a_cut_letter_keeps_the_attributes_and_the_beginning_of_the_body(caplog):
    message = Message(
        id="m1", topic="orders", body=b"x" * 4_000_000, key="ann", headers={"tenant": "ours"}, type="t"
    )

    with caplog.at_level(logging.WARNING):
        kept, record = letter_of(message)

    assert (kept.id, kept.key, kept.headers, kept.type) == ("m1", "ann", {"tenant": "ours"}, "t")
    assert kept.body == b"x" * BODY_BYTES
    failure = parse(record)
    assert failure.cut_from == 4_000_000
    assert failure.last is not None
    assert failure.last.cause == "oversize"
    assert "5000000 bytes, and 1000000 fit" in failure.last.reason
    assert "m1 of orders/billing" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        Message(id="\u044f" * 300_000, topic="orders", body=b""),
        Message(id="m1", topic="orders", body=b"", key="\u044f" * 300_000),
        Message(id="m1", topic="orders", body=b"", key=b"\xff" * 300_000),
        Message(id="m1", topic="orders", body=b"", headers={"a": "x" * 300_000, "b": "y"}),
        Message(id="m1", topic="orders", body=b"", headers={"x" * 300_000: ""}),
        Message(id="m1", topic="orders", body=b"", source="x" * 300_000, correlation_id="\ud800" * 300_000),
    ],
)
def test_a_cut_letter_is_small_whatever_was_large(message):
    kept, record = letter_of(message)

    texts = [kept.id, kept.source or "", kept.correlation_id or "", *kept.headers, *kept.headers.values()]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts) + len(kept.body) + len(record)
    key = kept.key or b""
    assert size + len(key if isinstance(key, bytes) else key.encode()) < 100 * 1024
    assert parse(record).cut_from > 0
