"""Members whose time of day is wrong: what is delayed comes neither early nor late for that (5)."""

import time

import pytest

from messaging.adapter import DONE, GroupSpec, Hold, TopicSpec
from messaging.message import Retry
from messaging_contracts.standstill import standstill
from messaging_kafka import tiers
from messaging_kafka.brokers import KEPT_BY_AGE, NewTopic
from tests.contract.bench import publish, receive, settle
from tests.contract.clocks import clock_wrong_by
from tests.contract.kafka.support import Bench, brokers_of

PLAIN = TopicSpec("orders", partitions=1)
ORDERED = TopicSpec("orders", ordered=True, partitions=1)
DELAY = 0.3
EARLIER_VERSION = {
    **KEPT_BY_AGE,
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "message.timestamp.after.max.ms": str(2**63 - 1),
}
"""The times of its records are those of their writers."""
SKEWS = pytest.mark.parametrize("skew", [3600.0, -3600.0], ids=["ahead", "behind"])


@SKEWS
@pytest.mark.parametrize("stamped", ["by the broker", "by its writer"])
async def test_a_retry_is_due_after_its_delay_whatever_the_clock_of_its_writer_says(
    bench: Bench, skew: float, stamped: str
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    if stamped == "by its writer":
        name = adapter._session.names.retry(group)
        await brokers_of(adapter).delete([name])
        await brokers_of(adapter).create([NewTopic(name, tiers.TIERS, EARLIER_VERSION)])
    consumer = bench.consumer(adapter, group)
    await publish(adapter, PLAIN, "one")
    (delivery,) = await receive(consumer, 1)

    settled = time.monotonic()
    async with standstill(adapter.dead_letters(group).count) as lost:
        with clock_wrong_by(skew):
            assert await settle(consumer, [delivery], Retry(), after=DELAY, failure="{}") == [DONE]
        await receive(consumer, 1)
        waited, late = time.monotonic() - settled, 1.5 + 2 * lost.seconds

    assert DELAY <= waited < DELAY + late


@SKEWS
async def test_a_retry_is_due_after_its_delay_whatever_the_clock_of_its_reader_says(
    bench: Bench, skew: float
) -> None:
    with clock_wrong_by(skew):
        adapter = await bench.adapter()
        group = await bench.group(adapter, PLAIN)
        consumer = bench.consumer(adapter, group)
        await publish(adapter, PLAIN, "one")
        (delivery,) = await receive(consumer, 1)
    settled = time.monotonic()
    async with standstill(adapter.dead_letters(group).count) as lost:
        await settle(consumer, [delivery], Retry(), after=DELAY, failure="{}")
        with clock_wrong_by(skew):
            await receive(consumer, 1)
        waited, late = time.monotonic() - settled, 1.5 + 2 * lost.seconds

    assert DELAY <= waited < DELAY + late


async def failed_and_left(bench: Bench) -> tuple[GroupSpec, float]:
    """The group whose member left while a key of its waited for 30 s, and when it began to wait (monotonic)."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "one", key="ann")
    failed = await receive(consumer, 1)
    settled = time.monotonic()
    (held,) = await settle(consumer, failed, Retry(), after=30.0, failure="{}")
    assert isinstance(held, Hold)
    await consumer.close()
    return group, settled


@SKEWS
async def test_the_next_owner_of_a_failed_key_waits_for_what_is_left_whatever_the_clock_of_the_former_says(
    bench: Bench, skew: float
) -> None:
    with clock_wrong_by(skew):
        group, settled = await failed_and_left(bench)

    (again,) = await receive(bench.consumer(await bench.adapter(), group), 1)

    # By what the former owner knows of the brokers' time: within how long a message took to it.
    assert 29.0 <= again.hold + time.monotonic() - settled < 33.0
    assert again.attempt == 2


async def test_an_owner_whose_clock_is_behind_waits_for_what_is_left_of_a_failed_keys_delay(
    bench: Bench,
) -> None:
    group, settled = await failed_and_left(bench)

    with clock_wrong_by(-3600.0):
        (again,) = await receive(bench.consumer(await bench.adapter(), group), 1)

    # By what the former owner knows of the brokers' time: within how long a message took to it.
    assert 29.0 <= again.hold + time.monotonic() - settled < 33.0
