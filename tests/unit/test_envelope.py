from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.envelope import (
    ATTEMPT,
    MAX_ATTEMPT,
    RESERVED,
    check_headers,
    decode,
    encode,
    recorded_attempt,
    recorded_seconds,
    text,
    utc_text,
)
from messaging.errors import InvalidMessage
from messaging.message import Message

PREFIXES = pytest.mark.parametrize("prefix", ["ce_", "cloudEvents_"])

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
plain_names = words.filter(lambda name: not name.lower().startswith(tuple(p.lower() for p in RESERVED)))
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))


messages = st.builds(
    Message,
    id=words,
    topic=st.just("orders"),
    body=st.binary(max_size=20),
    key=st.one_of(st.none(), st.just(""), words, st.binary(max_size=10)).map(
        lambda key: key.decode() if isinstance(key, bytes) and _is_utf8(key) else key
    ),
    headers=st.dictionaries(plain_names, words, max_size=4),
    content_type=st.none() | st.just("application/json"),
    type=words,
    source=st.none() | words,
    time=st.none() | times,
    expires_at=st.none() | times,
    correlation_id=st.none() | words,
    causation_id=st.none() | words,
    not_before=st.none() | times,
)


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


@PREFIXES
@given(message=messages)
def test_a_message_survives_the_wire_unchanged(prefix: str, message: Message) -> None:
    headers = encode(message, prefix=prefix)

    assert all(type(name) is str and type(value) is str for name, value in headers.items())
    assert (
        decode(
            headers,
            prefix=prefix,
            topic="orders",
            body=message.body,
            position="7",
            content_type=message.content_type,
        )
        == message
    )


@PREFIXES
@given(message=messages)
def test_headers_as_bytes_read_the_same(prefix: str, message: Message) -> None:
    headers = {name.encode(): value.encode() for name, value in encode(message, prefix=prefix).items()}

    read = decode(headers, prefix=prefix, topic="orders", body=message.body, position="7")

    assert (read.id, read.key, read.headers) == (message.id, message.key, message.headers)


def test_attributes_are_those_of_cloudevents() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = Message(
        id="m1",
        topic="orders",
        body=b"",
        key="c1",
        source="billing",
        time=time,
        expires_at=time,
        correlation_id="r1",
        causation_id="m0",
        headers={"tenant": "acme"},
    )

    assert encode(message, prefix="ce_") == {
        "ce_specversion": "1.0",
        "ce_messagingformat": "1",
        "ce_id": "m1",
        "ce_source": "billing",
        "ce_type": "orders",
        "ce_time": "2026-01-02T03:04:05+00:00",
        "ce_partitionkey": "c1",
        "ce_expirytime": "2026-01-02T03:04:05+00:00",
        "ce_correlationid": "r1",
        "ce_causationid": "m0",
        "tenant": "acme",
    }


def test_times_are_written_in_utc() -> None:
    local = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2, seconds=7)))
    edge = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert encode(Message(id="1", topic="t", body=b"", time=local), prefix="")["time"].endswith(":53+00:00")
    assert encode(Message(id="1", topic="t", body=b"", time=edge), prefix="")["time"].endswith("+02:00")
    naive = encode(Message(id="1", topic="t", body=b"", time=datetime(2026, 1, 2)), prefix="")
    assert naive["time"] == "2026-01-02T00:00:00+00:00"


@given(st.lists(st.datetimes(timezones=st.just(UTC)), min_size=2), st.timedeltas(timedelta(-3), timedelta(3)))
def test_a_time_in_utc_is_written_as_the_standard_library_does(
    times: list[datetime], step: timedelta
) -> None:
    near = [datetime(2026, 11, 22, 12, tzinfo=UTC) + step * count for count in range(3)]
    for time in [*times, *near]:
        assert utc_text(time) == utc_text(time) == time.isoformat()


def test_a_message_of_another_program_is_taken_as_it_is() -> None:
    read = decode({}, prefix="ce_", topic="orders", body=b"x", position="0-17")

    assert read == Message(id="0-17", topic="orders", body=b"x")


def test_native_properties_count_where_attributes_are_missing() -> None:
    now = datetime.now(UTC)
    native = {"message_id": "n1", "correlation_id": "c1", "key": b"k", "time": now, "content_type": "a/b"}

    read = decode({}, prefix="ce_", topic="t", body=b"", position="1", **native)
    ours = decode(
        {"ce_id": "m1", "ce_correlationid": "r1", "ce_partitionkey": "", "ce_time": "2026-01-02T00:00:00Z"},
        prefix="ce_",
        topic="t",
        body=b"",
        position="1",
        **native,
    )

    assert (read.id, read.correlation_id, read.key, read.time) == ("n1", "c1", "k", now)
    assert read.content_type == "a/b"
    assert (ours.id, ours.correlation_id, ours.key) == ("m1", "r1", "")
    assert ours.time == datetime(2026, 1, 2, tzinfo=UTC)


def test_unreadable_attributes_are_as_if_absent() -> None:
    now = datetime.now(UTC)
    headers = {"ce_time": "yesterday", "ce_expirytime": "soon", "ce_partitionkeybase64": "%%%", "ce_id": ""}

    read = decode(headers, prefix="ce_", topic="t", body=b"", position="9", key="k", time=now)

    assert (read.id, read.time, read.expires_at, read.key) == ("9", now, None, "k")


def test_a_time_without_zone_is_utc() -> None:
    read = decode({"ce_time": "2026-01-02T00:00:00"}, prefix="ce_", topic="t", body=b"", position="9")

    assert read.time == datetime(2026, 1, 2, tzinfo=UTC)


def test_control_headers_do_not_reach_the_handler_and_unknown_attributes_do() -> None:
    headers = {ATTEMPT: "3", "messaging-x": "y", "ce_id": "1", "ce_subject": "s", "a": "b"}

    read = decode(headers, prefix="ce_", topic="t", body=b"", position="9")

    assert read.headers == {"ce_subject": "s", "a": "b"}


def test_both_spellings_of_the_amqp_binding_are_read() -> None:
    read = decode({"cloudEvents:id": "m1"}, prefix="cloudEvents_", topic="t", body=b"", position="9")

    assert read.id == "m1"


attributes = st.sampled_from(
    ["id", "time", "expirytime", "partitionkey", "partitionkeybase64", "specversion", "type", "correlationid"]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(),
    st.datetimes(),
    st.just("9999-12-31T23:59:59-23:59"),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
forged_names = st.one_of(
    attributes.map("ce_".__add__),
    st.sampled_from(RESERVED),
    st.just(ATTEMPT),
    st.text(st.characters()),
    scalars,
)


@given(st.dictionaries(forged_names, values), st.none() | st.text(st.characters()), st.none() | st.binary())
def test_no_header_of_another_program_can_raise(headers, message_id, key) -> None:
    read = decode(headers, prefix="ce_", topic="t", body=b"", position="9", message_id=message_id, key=key)

    assert read.id
    assert all(isinstance(value, str) for value in read.headers.values())
    for moment in (read.time, read.expires_at):
        assert moment is None or moment.timestamp() is not None
    for written in (*encode(read, prefix="ce_").values(), read.id):
        written.encode()
    assert 1 <= recorded_attempt(headers) <= MAX_ATTEMPT


def test_a_value_that_cannot_be_shown_becomes_empty() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert text(Broken()) == ""


@pytest.mark.parametrize(
    ("recorded", "attempt"),
    [("3", 3), (b"4", 4), (5, 5), ("0", 1), ("-7", 1), ("99999", MAX_ATTEMPT), ("x", 1), (None, 1)]
    + [("9" * 5000, 1), (float("inf"), 1), (float("nan"), 1), ([], 1)],
)
def test_a_forged_attempt_is_bounded(recorded: object, attempt: int) -> None:
    assert recorded_attempt({ATTEMPT: recorded}) == attempt


def test_an_absent_attempt_is_the_first() -> None:
    assert recorded_attempt({}) == 1


@pytest.mark.parametrize(
    ("recorded", "seconds"),
    [("1.5", 1.5), (b"2", 2.0), ("-1", -1.0), ("soon", 0.0), ("nan", 0.0), ("inf", 0.0)]
    + [(None, 0.0), ([], 0.0), (10**400, 0.0)],
)
def test_forged_seconds_are_a_number_all_the_same(recorded: object, seconds: float) -> None:
    assert recorded_seconds(recorded) == seconds


def test_headers_that_every_broker_carries_are_copied() -> None:
    headers = {"tenant": "acme", "größe": "…", "traceparent": "00-1-2-01", "n" * 200: ""}

    checked = check_headers(headers)

    assert checked == headers
    assert checked is not headers


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"a": 1}, "value of header 'a' is no str but int"),
        ({1: "a"}, "header name 1 is no str but int"),
        ({"": "a"}, "empty name"),
        ({"é" * 101: "a"}, "has 202 bytes"),
        ({"a": "x\0"}, "value of header 'a' holds a NUL"),
        ({"a\0": "x"}, "holds a NUL"),
        ({"a": "\ud800"}, "value of header 'a' holds a lone surrogate"),
        ({"messaging-attempt": "1"}, "'messaging-attempt' has a reserved prefix"),
        ({"CE_id": "1"}, "'CE_id' has a reserved prefix"),
        ({"cloudEvents:id": "1"}, "reserved prefix"),
        ({"a": "x" * 40_000, "b": "x" * 40_000}, "exceed 65536 bytes at 'b'"),
    ],
)
def test_a_header_that_cannot_be_carried_is_named(headers: dict, named: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        check_headers(headers)

    assert named in str(raised.value)
