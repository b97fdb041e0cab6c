from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.failure import LIMIT, Failure, oversize, parse, record, redriven
from messaging.message import Message
from messaging.stack import clip, describe
from messaging.texts import leaves_of, summary

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def recorded(previous: str | None = None, **changes) -> str:
    fields = {
        "message": Message(id="m1", topic="orders", body=b"{}"),
        "group": "billing",
        "attempt": 1,
        "deliveries": 1,
        "partition": 3,
        "position": "17-0",
        "handler": "shop.charge",
        "reason": "no customer",
        "cause": "rejected",
        "error": None,
        "now": NOW,
        "service": "shop",
    }
    return record(previous, **{**fields, **changes})


def last_of(text) -> Any:
    return parse(text).last


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_record_tells_where_when_who_and_why():
    failure = parse(recorded())

    assert (failure.topic, failure.group, failure.partition, failure.position) == (
        "orders",
        "billing",
        3,
        "17-0",
    )
    assert failure.service == "shop"
    assert failure.host
    assert failure.pid > 0
    assert failure.last is not None
    assert (failure.last.reason, failure.last.cause, failure.last.handler, failure.last.at) == (
        "no customer",
        "rejected",
        "shop.charge",
        NOW,
    )
    assert failure.last.error is None
    assert failure.first == failure.last


def test_the_first_failure_is_kept_and_the_last_replaced():
    first = recorded(reason="one", error=raised(ValueError("a")), cause="exception")
    second = recorded(first, reason="two", attempt=2, deliveries=2, now=NOW + timedelta(seconds=1))
    third = parse(
        recorded(second, reason="three", cause="max_attempts", attempt=3, now=NOW + timedelta(seconds=5))
    )

    assert third.first is not None
    assert third.last is not None
    assert (third.first.reason, third.first.at) == ("one", NOW)
    assert third.first.error is not None
    assert third.first.error.message == "a"
    assert (third.last.reason, third.last.cause, third.last.attempt) == ("three", "max_attempts", 3)
    assert third.attempts == 3


def test_a_copy_whose_count_began_anew_never_lowers_deliveries():
    text = recorded(deliveries=7)
    failure = parse(recorded(text, attempt=2, deliveries=1))

    assert failure.deliveries == 7
    assert parse(recorded(attempt=4, deliveries=1)).deliveries == 4


def test_a_redrive_clears_the_failures_and_keeps_the_counters():
    dead = recorded(recorded(), attempt=2, deliveries=5, error=raised(ValueError("x")))
    fresh = parse(redriven(dead, NOW + timedelta(hours=1)))

    assert (fresh.first, fresh.last) == (None, None)
    assert (fresh.attempts, fresh.deliveries, fresh.redrives) == (2, 5, 1)
    assert fresh.redrive_of == "17-0"
    assert fresh.redriven_at == NOW + timedelta(hours=1)


def test_counters_add_up_over_redrives():
    life = redriven(recorded(attempt=3, deliveries=4), NOW)
    life = redriven(recorded(recorded(life, attempt=1), attempt=2, deliveries=2), NOW)
    failure = parse(recorded(life, attempt=1, deliveries=1))

    assert (failure.attempts, failure.deliveries, failure.redrives) == (6, 7, 2)
    assert failure.last is not None


def test_a_letter_without_a_record_can_be_redriven():
    assert parse(redriven(None, NOW)).redrives == 1


def test_an_exception_is_recorded_with_type_message_and_stack():
    error = raised(LookupError("no such order"))
    last = last_of(recorded(error=error))

    assert last is not None
    assert last.error is not None
    assert last.error.type == "LookupError"
    assert last.error.message == "no such order"
    assert "in raised" in last.error.stack
    assert last.error.stack.endswith("LookupError: no such order")


def test_local_variables_and_arguments_are_not_recorded():
    number, secret = "4111" * 2, "hidden" * 2

    def charge(card, token):
        raise ValueError("card refused")

    try:
        charge(number, secret)
    except ValueError as error:
        text = recorded(error=error)

    assert number not in text
    assert secret not in text


def test_what_caused_an_exception_is_in_its_stack():
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as outer:
        stack = describe(outer).stack

    assert stack.index("RuntimeError: outer") < stack.index("caused by") < stack.index("KeyError: 'inner'")


def test_a_suppressed_context_is_left_out():
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise RuntimeError("outer") from None
    except RuntimeError as outer:
        assert "inner" not in describe(outer).stack.replace('raise KeyError("inner")', "")


def test_causes_that_form_a_circle_end():
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first

    assert describe(first).stack.count("caused by") == 1


def test_an_exception_group_lists_its_leaves():
    group = ExceptionGroup("many", [ValueError("a"), ExceptionGroup("more", [KeyError("b"), OSError("c")])])
    error = last_of(recorded(error=raised(group))).error

    assert error.type == "ExceptionGroup"
    assert error.leaves == ("ValueError: a", "KeyError: 'b'", "OSError: c")
    assert error.stack.count("in the group") == 3


def test_a_deep_recursion_gives_a_short_stack():
    def recurse(depth):
        if depth:
            recurse(depth - 1)
        raise ValueError("deep")

    try:
        recurse(500)
    except ValueError as error:
        info = describe(error)

    assert "frames left out" in info.stack
    assert len(info.stack.splitlines()) < 50


def test_the_same_defect_has_the_same_fingerprint_whatever_its_message_and_depth():
    def fail(depth, text):
        if depth:
            fail(depth - 1, text)
        raise ValueError(text)

    def fingerprint(depth, text):
        try:
            fail(depth, text)
        except ValueError as error:
            return describe(error).fingerprint

    assert fingerprint(1, "a") == fingerprint(9, "b")
    assert fingerprint(1, "a") != describe(ValueError("a")).fingerprint
    assert describe(ValueError()).fingerprint != describe(KeyError()).fingerprint


def test_an_exception_that_cannot_be_printed_is_recorded_all_the_same():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    error = last_of(recorded(error=raised(Mute()))).error

    assert error.type.endswith("Mute")
    assert error.message == "(its text cannot be read)"


def test_an_unknown_cause_counts_as_rejected():
    assert last_of(recorded(cause="fraud")).cause == "rejected"


def test_times_are_kept_in_utc():
    local = datetime(2026, 3, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))

    assert last_of(recorded(now=local)).at == NOW
    assert '"2026-03-01T12:00:00+00:00"' in recorded(now=local)


wild = st.text(st.characters(), max_size=3000) | st.text('\U0001f600\n"\\\x00é', min_size=500, max_size=5000)


@given(st.lists(wild, min_size=6, max_size=6), st.lists(wild, max_size=20), st.booleans())
def test_a_record_never_exceeds_its_limit_and_is_one_line_of_ascii(texts, leaves, twice):
    reason, handler, group, position, service, message = texts
    error = ExceptionGroup(message, [ValueError(leaf) for leaf in leaves]) if leaves else ValueError(message)
    names = {"group": group, "position": position, "service": service}
    text = recorded(reason=reason, handler=handler, error=raised(error), **names)
    text = redriven(text, NOW) if twice else text
    text = recorded(text, reason=message, handler=reason, error=raised(error), **names)
    text = recorded(text, reason=reason, handler=message, error=raised(error), attempt=3, **names)

    assert len(text) <= LIMIT
    assert text.isascii()
    assert text.isprintable()
    assert last_of(text) is not None


# A name has 200 bytes of JSON, and a character up to 12.
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=200 // 12)


@given(
    reason=short,
    handler=short,
    group=short,
    position=short,
    service=short,
    partition=st.integers(0, 1000),
    attempt=st.integers(1, 10_000),
    deliveries=st.integers(0, 10_000),
    cause=st.sampled_from(["rejected", "expired", "lease_lost", "native_delivery_limit"]),
)
def test_what_was_recorded_is_read_back(**fields):
    failure = parse(recorded(**fields))
    last = failure.last

    assert last is not None
    assert (last.reason, last.handler, last.cause, last.attempt) == (
        fields["reason"],
        fields["handler"],
        fields["cause"],
        fields["attempt"],
    )
    assert (failure.group, failure.position, failure.service, failure.partition) == (
        fields["group"],
        fields["position"],
        fields["service"],
        fields["partition"],
    )
    assert failure.attempts == fields["attempt"]
    assert failure.deliveries == max(fields["deliveries"], fields["attempt"])


@pytest.mark.parametrize(
    "garbage",
    [None, "", "x", "[]", "1", "null", '"text"', "{", "NaN", "[" * 100_000, "9" * 10_000, b"{}", 7, {"a": 1}],
)
def test_garbage_is_an_empty_failure(garbage):
    assert parse(garbage) == Failure()


def test_a_record_longer_than_any_of_ours_is_not_read():
    assert parse(json.dumps({"topic": "x" * 100_000})) == Failure()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
fault_names = [
    "at",
    "cause",
    "reason",
    "handler",
    "attempt",
    "type",
    "message",
    "stack",
    "fingerprint",
    "leaves",
]
forged = st.dictionaries(st.sampled_from(["at", *fault_names]), values)
names = ["version", "topic", "group", "partition", "position", "attempts", "deliveries", "redrives", "pid"]
names += ["earlier_attempts", "earlier_deliveries", "service", "host", "redrive_of", "redriven_at"]


@given(
    st.dictionaries(st.sampled_from(names), values),
    values | forged,
    values | forged,
)
def test_a_forged_record_neither_raises_nor_breaks_the_next_one(fields, first, last):
    text = json.dumps({**fields, "first": first, "last": last})

    failure = parse(text)
    again = recorded(text, error=ValueError("x"))

    assert failure.attempts >= 0
    assert len(again) <= LIMIT
    assert last_of(again).reason == "no customer"
    assert len(redriven(text, NOW)) <= LIMIT


@given(st.text(max_size=200))
def test_any_text_can_be_parsed(text):
    parse(text)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "2026-13-01", "now", 5])
def test_an_impossible_time_is_left_out(at):
    assert last_of(json.dumps({"last": {"at": at}})).at is None


def test_a_time_without_a_zone_is_utc():
    assert last_of(json.dumps({"last": {"at": "2026-03-01T12:00:00"}})).at == NOW


@given(st.text(st.characters(), max_size=400), st.integers(32, 300), st.booleans())
def test_clipped_text_fits_and_short_text_stays(text, limit, middle):
    clipped = clip(text, limit, middle=middle)

    assert len(json.dumps(clipped)) - 2 <= limit
    if text.isascii() and len(json.dumps(text)) - 2 <= limit:
        assert clipped == text


def test_clipping_in_the_middle_keeps_both_ends():
    assert clip("a" * 100 + "b" * 100, 60, middle=True).startswith("aaa")
    assert clip("a" * 100 + "b" * 100, 60, middle=True).endswith("bbb")


def test_leaves_are_found_however_deep_and_at_most_as_many_as_asked():
    group: Any = ValueError("leaf")
    for _ in range(2000):
        group = ExceptionGroup("g", [group, KeyError("k")])

    assert len(list(leaves_of(group))) == 2001
    assert len(list(leaves_of(group, 3))) == 3
    assert list(leaves_of(leaf := ValueError())) == [leaf]


def test_a_summary_without_a_message_is_the_type():
    assert summary(ValueError()) == "ValueError"


def test_a_letter_that_was_cut_says_so_and_still_says_what_failed_before():
    first = recorded(error=raised(ValueError("no such customer")), cause="exception", reason="ValueError")

    failure = parse(oversize(first, reason="Too large.", attempt=3, body_bytes=4_000_000, now=NOW))

    assert failure.cut_from == 4_000_000
    assert failure.last is not None
    assert (failure.last.cause, failure.last.handler) == ("oversize", "shop.charge")
    assert failure.last.reason == "Too large. It had failed with exception: ValueError"
    assert failure.last.error is not None
    assert failure.first is not None
    assert failure.first.cause == "exception"
    assert parse(redriven(oversize(first, reason="", attempt=1, body_bytes=7, now=NOW), NOW)).cut_from == 0


def test_a_letter_that_was_cut_without_a_record_has_one():
    failure = parse(oversize(None, reason="Too large.", attempt=3, body_bytes=7, now=NOW))
    assert failure.last is not None
    assert (failure.last.cause, failure.last.attempt, failure.cut_from) == ("oversize", 3, 7)
