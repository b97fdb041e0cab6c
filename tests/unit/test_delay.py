from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from messaging import App, Delivery, RetryPolicy, Topic, fixed
from messaging.delay import CLOCKS, LONGEST, FirstSeen, judge_early
from messaging.message import Message, Reject, Release

NOW = 1_000_000.0


def message(**values):
    return Message(id="m", topic="jobs", body=b"", **values)


def at(seconds):
    return datetime.fromtimestamp(NOW + seconds, UTC)


@pytest.mark.parametrize("due", [at(0), at(-1), datetime.min.replace(tzinfo=timezone(timedelta(hours=23)))])
def test_a_message_whose_time_has_come_is_handled(due):
    assert judge_early(message(not_before=due), NOW, 60.0) is None


def test_a_message_that_comes_too_early_goes_back_for_what_is_left():
    assert judge_early(message(not_before=at(2.5)), NOW, 60.0) == Release(after=2.5)


def test_a_clock_that_is_behind_buries_no_message():
    assert judge_early(message(not_before=at(60 + CLOCKS)), NOW, 60.0) == Release(after=60.0)


def test_a_clock_that_is_years_behind_waits_for_the_delay_and_buries_no_message():
    early = message(not_before=at(12 * LONGEST), time=at(12 * LONGEST - 5))

    assert judge_early(early, NOW, 60.0) == Release(after=5.0)


@pytest.mark.parametrize("longest", [60.0, float("inf")])
def test_no_message_is_kept_for_ever(longest):
    asked = datetime.max.replace(tzinfo=timezone(timedelta(hours=-23)))

    early = judge_early(message(not_before=asked), NOW, longest)

    assert isinstance(early, Reject)
    assert early.cause == "delay_unsupported"
    assert f"the longest delay is {min(longest, LONGEST):g} s" in early.reason


async def test_a_delay_follows_the_clock_of_a_test():
    jobs, app = Topic("jobs", str), App("billing")

    @app.subscribe(jobs)
    async def handle(_: str) -> None: ...

    async with app.test() as t:
        await t.publish(jobs, "later", delay=3600)
        await t.publish_many(jobs, ["b", "c"], delay=timedelta(hours=2))
        await t.publish(jobs, "now")
        await t.advance(3599.9)
        assert [one.payload for one in t.handled] == ["now"]
        await t.advance(0.2)
        assert [one.payload for one in t.handled] == ["now", "later"]
        await t.advance(3600)

    assert [one.payload for one in t.handled] == ["now", "later", "b", "c"]
    assert {one.attempt for one in t.handled} == {1}


@pytest.mark.parametrize("behind", [3600.0, 0.0, -3600.0])
async def test_a_member_whose_clock_is_behind_waits_no_longer_than_the_publisher_asked_for(
    bus, clock, behind
):
    jobs, app = Topic("jobs", str), App("billing", retry=RetryPolicy(2, fixed(1)))
    handled, tell = [], clock.time

    @app.subscribe(jobs)
    async def handle(_: str, delivery: Delivery[str]) -> None:
        handled.append(clock.monotonic() - began)
        if delivery.attempt == 1:
            raise OSError("busy")

    await bus.declare(app)
    began = clock.monotonic()
    await bus.publish(jobs, "later", delay=5)
    clock.time = lambda: tell() - behind
    async with app.running(bus):
        await clock.advance(20)

    first, second = handled
    assert first == pytest.approx(0 if behind < 0 else 5, abs=0.2)
    assert second - first == pytest.approx(1, abs=0.2)


def test_what_another_program_delays_without_telling_when_it_was_published_waits_by_the_clock():
    early = FirstSeen()
    silent = Message(id="m", topic="jobs", body=b"", not_before=at(60))
    odd = Message(id="m", topic="jobs", body=b"", not_before=at(60), time=at(60))

    assert early.left(silent, 60.0, 0.0) == early.left(odd, 60.0, 0.0) == 60.0


def test_what_is_remembered_of_early_messages_is_bounded(monkeypatch):
    monkeypatch.setattr("messaging.delay.REMEMBERED", 2)
    early = FirstSeen()
    for number in range(5):
        early.left(Message(id=str(number), topic="jobs", body=b"", not_before=at(5), time=at(0)), 60.0, 0.0)

    assert len(early._over) == 2
