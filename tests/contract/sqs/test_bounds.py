"""Bounds that a queue has of its own, by hand or by another program: no message is lost to them, or brought nearer."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.adapter import Done, TopicSpec
from messaging.message import Release, Retry
from tests.contract.bench import ids, nothing, publish, receive, settle
from tests.contract.sqs.support import Bench, attributes_of, intercept


async def receives(adapter: Any, group: Any, most: int) -> None:
    """Let the queue make a dead letter of what was received so often."""
    dead = attributes_of(adapter, await adapter._topology.dead_url(group), "QueueArn")["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": str(most)})
    url = await adapter._topology.queue_url(group)
    adapter.native.sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})


@pytest.mark.parametrize("most", [1, 2])
async def test_releases_make_no_dead_letter_however_few_receives_the_queue_allows(bench: Bench, caplog, most):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await receives(adapter, group, most)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    for _ in range(4):
        deliveries = await receive(consumer, 1, within=5)
        assert (ids(deliveries), deliveries[0].attempt) == (["one"], 1)
        assert await settle(consumer, deliveries, Release()) == [Done()]
    await consumer.close()
    assert await adapter.dead_letters(group).count() == 0
    assert f"what was received {most} times" in caplog.text


async def test_a_retry_waits_in_steps_that_are_shorter_than_its_queue_keeps_messages(
    bench: Bench, monkeypatch
):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2, retention=60)
    group = await bench.group(adapter, topic)
    sent: list[dict[str, Any]] = []

    async def note(call, parameters):
        sent.extend(parameters["Entries"])
        return await call(**parameters)

    await publish(adapter, topic, "one")
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 1)
    intercept(adapter, monkeypatch, "send_message_batch", note)
    assert await settle(consumer, deliveries, Retry(), after=120.0) == [Done()]
    assert [entry["DelaySeconds"] for entry in sent] == [30]
    await nothing(consumer, 0.1)


async def test_a_publish_delay_waits_in_steps_that_are_shorter_than_its_queue_keeps_messages(
    strict: Bench, monkeypatch
):
    adapter = await strict.adapter()
    group = await strict.group(adapter, TopicSpec("orders", partitions=2, retention=60))
    sent: list[dict[str, Any]] = []

    async def note(call, parameters):
        sent.extend(parameters["Entries"])
        return await call(**parameters)

    intercept(adapter, monkeypatch, "send_message_batch", note)
    await publish(adapter, group.topic, "one", not_before=datetime.now(UTC) + timedelta(hours=1))
    assert [entry["DelaySeconds"] for entry in sent] == [30]
