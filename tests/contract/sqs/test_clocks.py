"""Clocks that are wrong: what waits is due by the service's clock, whatever time members have."""

import asyncio
import time

import pytest

from messaging.adapter import Done
from messaging.message import Retry
from messaging_contracts.standstill import standstill
from messaging_sqs import copies
from messaging_sqs.broker_time import BrokerTime
from messaging_sqs.replies import sweep
from tests.contract.bench import publish, receive, settle
from tests.contract.clocks import clock_wrong_by
from tests.contract.sqs.support import Bench

HOUR = 3600.0


async def waited(bench: Bench, after: float, ahead: float) -> tuple[float, float]:
    """How long a retry waits that one member writes whose clock is ahead, and one gets whose clock is as far back.

    And how late a machine that stood still may have made it.
    """
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    writer = bench.consumer(adapter, group)
    deliveries = await receive(writer, 1)
    if polls := writer._polls._running:  # the copy is for the other
        await asyncio.wait(polls)
    asked = time.monotonic()
    async with standstill(adapter.dead_letters(group).count) as lost:
        with clock_wrong_by(ahead):
            assert await settle(writer, deliveries, Retry(), after=after) == [Done()]
        with clock_wrong_by(-ahead):
            (again,) = await receive(bench.consumer(await bench.adapter(), group), 1)
        assert again.attempt == 2
        return time.monotonic() + again.hold - asked, 2 * lost.seconds


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["written ahead", "read ahead"])
async def test_a_retry_waits_as_long_as_it_should_whatever_time_the_members_have(
    any_bench: Bench, ahead: float
):
    time_waited, late = await waited(any_bench, 0.6, ahead)
    assert 0.6 <= time_waited < 2.6 + late


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["written ahead", "read ahead"])
async def test_a_retry_in_steps_waits_as_long_as_it_should_whatever_time_the_members_have(
    strict: Bench, monkeypatch, ahead: float
):
    monkeypatch.setattr(copies, "LONGEST_STEP", 1)
    time_waited, late = await waited(strict, 2.2, ahead)
    assert 2.2 <= time_waited < 4.2 + late


async def test_an_inbox_that_lives_is_not_swept_by_who_has_a_later_time(bench: Bench):
    adapter, other = await bench.adapter(), await bench.adapter()
    with clock_wrong_by(-HOUR):
        inbox = await adapter.reply_inbox()
    with clock_wrong_by(HOUR):
        await sweep(other._connection, other._topology, own="")

    assert await other._topology.queues.find(inbox.address) is not None
    await inbox.close()


def told(date: object) -> dict[str, object]:
    return {"ResponseMetadata": {"HTTPHeaders": {"date": date}}}


@pytest.mark.parametrize("answer", [told("soon"), told(None), {}, None])
def test_an_answer_without_a_date_tells_no_time(answer):
    service = BrokerTime()
    service.heard(told("Thu, 01 Jan 1970 01:00:00 GMT"))
    service.heard(answer)
    assert service.now() == pytest.approx(HOUR, abs=1)
