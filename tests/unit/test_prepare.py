from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from messaging.adapter import Capability, TopicSpec
from messaging.current import current_delivery
from messaging.errors import InvalidMessage, MessageTooLarge, UnsupportedCapability
from messaging.message import Delivery, Message, Topic
from messaging.prepare import Options, Preparation, checked_timeout
from messaging.testing import VirtualClock
from tests.unit.scripted import ScriptedAdapter

jobs = Topic("jobs", str)
orders = Topic("orders", str, key=lambda payload: payload[0] if payload else None, ordered=True)
untyped: object = 5


class Counted(BaseModel):
    number: int


counts = Topic("counts", Counted, key=lambda payload: str(payload.number))


@pytest.fixture
def preparation():
    return Preparation(VirtualClock(), "me")


def prepared(preparation, topic=jobs, payload="x", **options):
    (message,) = preparation.messages(topic, [payload], Options(**options))
    return message


def sent(preparation, spec, message, options, most=10_000, **can):
    capabilities = replace(ScriptedAdapter(preparation.clock).capabilities, max_message_bytes=most, **can)
    (outgoing,) = preparation.outgoing(spec, [message], options, capabilities)
    return outgoing


def test_a_message_carries_what_the_program_and_the_topic_say(preparation):
    message = prepared(preparation, orders, "abc", headers={"a": "b"})

    assert (message.topic, message.type, message.source) == ("orders", "orders", "me")
    assert (message.body, message.content_type) == (b'"abc"', "application/json")
    assert (message.key, message.headers) == ("a", {"a": "b"})
    assert message.time == datetime.fromtimestamp(preparation.clock.time(), UTC)
    assert message.expires_at is None


def test_a_key_given_at_the_call_goes_before_the_topics_even_an_empty_one(preparation):
    assert prepared(preparation, orders, "abc", key="").key == ""
    assert prepared(preparation, orders, "abc", key="z").key == "z"


def test_a_generator_may_change_and_give_again_what_it_gave_before(preparation):
    def counting(counted):
        for counted.number in range(3):
            yield counted

    messages = preparation.messages(counts, counting(Counted(number=0)), Options())

    assert [message.body for message in messages] == [b'{"number":0}', b'{"number":1}', b'{"number":2}']
    assert [message.key for message in messages] == ["0", "1", "2"]


def test_ids_are_the_programs_or_new_and_growing(preparation):
    assert prepared(preparation, id="my id").id == "my id"
    first, second = prepared(preparation).id, prepared(preparation).id
    assert first < second


@pytest.mark.parametrize("id", ["", "x" * 256, "a\nb", "\ud800", untyped])
def test_an_id_that_no_broker_carries_is_refused(preparation, id):
    with pytest.raises(InvalidMessage):
        prepared(preparation, id=id)


@pytest.mark.parametrize(
    ("key", "carried"), [("é", "é"), (b"abc", "abc"), (b"\xff", b"\xff"), ("", ""), (b"", "")]
)
def test_a_key_is_what_every_broker_gives_back(preparation, key, carried):
    assert prepared(preparation, key=key).key == carried


class Region(str, Enum):  # noqa: UP042  as programs have it that are older than StrEnum
    NORTH = "north"


class Raw(bytes):
    pass


@pytest.mark.parametrize(("key", "carried"), [(Region.NORTH, "north"), (Raw(b"\xff"), b"\xff")])
def test_what_is_a_str_or_bytes_only_by_inheritance_is_carried_as_one(preparation, key, carried):
    message = prepared(
        preparation, key=key, id=Region.NORTH, headers={"region": Region.NORTH, Region.NORTH: ""}
    )

    texts = message.key, message.id, message.headers["region"], *message.headers
    assert texts == (carried, "north", "north", "region", "north")
    assert {type(text) for text in texts} <= {str, type(carried)}


@pytest.mark.parametrize("key", ["\ud800", untyped, bytearray(b"x")])
def test_a_key_that_cannot_be_carried_is_refused(preparation, key):
    with pytest.raises(InvalidMessage, match="key"):
        prepared(preparation, key=key)


@pytest.mark.parametrize(
    ("expires", "after"),
    [(5, 5), (0.5, 0.5), (timedelta(minutes=1), 60), (-1, -1)],
)
def test_expiry_is_counted_from_now(preparation, expires, after):
    message = prepared(preparation, expires=expires)

    assert message.expires_at - message.time == timedelta(seconds=after)


def test_an_expiry_needs_a_zone_because_the_local_time_may_be_hours_ago(preparation):
    zoned = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert prepared(preparation, expires=zoned).expires_at == zoned
    with pytest.raises(InvalidMessage, match="has no time zone"):
        prepared(preparation, expires=datetime(2030, 1, 1))


@pytest.mark.parametrize("expires", [float("inf"), float("nan"), 1e300, 1e12, "soon", "5", object()])
def test_an_expiry_that_never_comes_is_refused_before_anything_is_sent(preparation, expires):
    with pytest.raises(InvalidMessage, match="expires"):
        prepared(preparation, expires=expires)


@pytest.mark.parametrize(("delay", "after"), [(5, 5), (0.5, 0.5), (timedelta(minutes=1), 60)])
def test_a_delay_is_counted_from_now(preparation, delay, after):
    message = prepared(preparation, delay=delay)

    assert message.not_before - message.time == timedelta(seconds=after)
    assert sent(preparation, TopicSpec("jobs"), message, Options()).message is message


async def test_a_message_is_as_old_as_its_time_says_and_a_delay_or_expiry_is_exact(preparation):
    for step in (0.0, 0.0004, 0.0004, 0.0004, 1.0, 0.0001):
        await preparation.clock.advance(step)
        now = datetime.fromtimestamp(preparation.clock.time(), UTC)

        assert timedelta(0) <= now - prepared(preparation).time < timedelta(milliseconds=0.6)
        delayed = prepared(preparation, delay=5, expires=9)
        assert (delayed.not_before - now, delayed.expires_at - now) == (
            timedelta(seconds=5),
            timedelta(seconds=9),
        )


@pytest.mark.parametrize("delay", [0, 0.0, timedelta(0), None])
def test_no_delay_leaves_no_mark(preparation, delay):
    assert prepared(preparation, delay=delay).not_before is None


@pytest.mark.parametrize(
    "delay",
    [-1, float("inf"), float("nan"), 1e300, 1e12, "soon", "5", b"5", object(), timedelta(-1), 10**400],
)
def test_what_is_no_delay_is_refused(preparation, delay):
    with pytest.raises(InvalidMessage, match="delay="):
        prepared(preparation, delay=delay)


@pytest.mark.parametrize(
    ("spec", "options", "can", "why"),
    [
        (TopicSpec("jobs", ordered=True), {"delay": 1, "key": "k"}, {}, "the topic is ordered"),
        (TopicSpec("jobs"), {"delay": 61}, {"max_delay": 60}, "the longest delay is 60 s"),
        (TopicSpec("jobs"), {"delay": timedelta(days=366)}, {}, "the longest delay is"),
        (TopicSpec("jobs"), {"delay": 2, "expires": 1}, {}, "it expires before"),
    ],
)
def test_a_delay_that_would_not_be_kept_is_refused_before_anything_is_sent(
    preparation, spec, options, can, why
):
    with pytest.raises(InvalidMessage, match=why):
        sent(preparation, spec, prepared(preparation, **options), Options(), **can)


def test_a_broker_that_cannot_delay_says_so(preparation):
    cannot = Capability("unsupported", "it has no clock")

    with pytest.raises(UnsupportedCapability, match="it has no clock"):
        sent(preparation, TopicSpec("jobs"), prepared(preparation, delay=1), Options(), delayed_retry=cannot)


def test_what_a_handler_publishes_is_caused_by_its_message(preparation):
    parent = Message(id="p", topic="t", body=b"", headers={"traceparent": "00-1", "other": "x"})
    for correlation_id, expected in ((None, "p"), ("c", "c")):
        token = current_delivery.set(
            Delivery(None, Message(**{**fields(parent), "correlation_id": correlation_id}))
        )
        try:
            message = prepared(preparation)
            own = prepared(preparation, headers={"traceparent": "mine"}, correlation_id="own")
        finally:
            current_delivery.reset(token)
        assert (message.causation_id, message.correlation_id) == ("p", expected)
        assert message.headers == {"traceparent": "00-1"}
        assert (own.correlation_id, own.headers) == ("own", {"traceparent": "mine"})


def fields(message):
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def test_an_ordered_topic_needs_a_key(preparation):
    spec = TopicSpec("orders", ordered=True)
    message = prepared(preparation, orders, "")

    with pytest.raises(InvalidMessage, match="has no key, and the topic is ordered"):
        sent(preparation, spec, message, Options(), 10_000)


def test_without_a_key_partitions_take_turns_per_topic(preparation):
    spec, other = TopicSpec("jobs", partitions=3), TopicSpec("other", partitions=3)
    message = prepared(preparation)

    turns = [sent(preparation, spec, message, Options(), 10_000).partition for _ in range(4)]

    assert turns == [0, 1, 2, 0]
    assert sent(preparation, other, message, Options(), 10_000).partition == 0


@given(st.one_of(st.text(st.characters(codec="utf-8")), st.binary()))
def test_a_key_chooses_one_partition_for_ever(key):
    preparation, spec = Preparation(VirtualClock(), "me"), TopicSpec("jobs", partitions=7)

    chosen = {
        sent(preparation, spec, prepared(preparation, key=key), Options(), 10_000).partition for _ in range(2)
    }

    assert len(chosen) == 1
    assert chosen <= set(range(7))


@pytest.mark.parametrize(
    "options", [{}, {"key": "ключ" * 10}, {"key": b"\xff" * 80}, {"headers": {"имя": "значение" * 5}}]
)
def test_what_is_too_large_in_bytes_is_refused_with_its_size(preparation, options):
    message = prepared(preparation, **options)
    size = 512 + len(message.body) + len(bytes_of(message.key or ""))
    size += sum(len(bytes_of(name)) + len(bytes_of(value)) for name, value in message.headers.items())
    spec = TopicSpec("jobs")

    assert sent(preparation, spec, message, Options(mandatory=True, reply_to="r"), size).mandatory
    with pytest.raises(MessageTooLarge, match=f"has {size} bytes"):
        sent(preparation, spec, message, Options(), size - 1)


def bytes_of(text):
    return text if isinstance(text, bytes) else text.encode()


@pytest.mark.parametrize("timeout", ["5", b"5", "soon", 0, -1, float("inf"), None, object()])
def test_what_is_no_timeout_is_refused(timeout):
    with pytest.raises(InvalidMessage, match="timeout="):
        checked_timeout(timeout)
