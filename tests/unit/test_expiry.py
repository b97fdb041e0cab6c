from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from messaging.message import Ack, Delivery, Message, Reject
from messaging.middleware import expiring
from messaging.middleware.expiry import OnExpired
from messaging.testing import VirtualClock


def delivery(clock, seconds):
    end = None if seconds is None else datetime.fromtimestamp(clock.time(), UTC) + timedelta(seconds=seconds)
    return Delivery({}, message=Message(id="m1", topic="orders", body=b"", expires_at=end))


async def run(clock, delivery, on_expired: OnExpired = "drop"):
    handled, expired = [], []

    async def handler(delivery):
        handled.append(delivery)
        return Ack("handled")

    outcome = await expiring(on_expired, clock=clock, expired=expired.append)(handler)(delivery)
    return outcome, handled, expired


@pytest.mark.parametrize("seconds", [None, 0.001, 3600])
async def test_a_message_whose_time_has_not_come_is_handled(seconds):
    clock = VirtualClock()
    outcome, handled, expired = await run(clock, delivery(clock, seconds))

    assert outcome == Ack("handled")
    assert len(handled) == 1
    assert expired == []


@pytest.mark.parametrize("seconds", [0, -1])
async def test_an_expired_message_is_dropped_and_counted(seconds):
    clock = VirtualClock()
    late = delivery(clock, seconds)
    outcome, handled, expired = await run(clock, late)

    assert outcome == Ack()
    assert handled == []
    assert expired == [late]


async def test_an_expired_message_becomes_a_dead_letter_where_asked_for():
    clock = VirtualClock()
    outcome, handled, expired = await run(clock, delivery(clock, -1), "dead_letter")

    assert isinstance(outcome, Reject)
    assert outcome.cause == "expired"
    assert "expired at 20" in outcome.reason
    assert handled == []
    assert len(expired) == 1


async def test_a_retry_after_the_end_is_not_handled():
    clock = VirtualClock()
    ends_soon = delivery(clock, 10)

    first, _, _ = await run(clock, ends_soon)
    await clock.advance(10)
    second, handled, _ = await run(clock, ends_soon)

    assert (first, second, handled) == (Ack("handled"), Ack(), [])
