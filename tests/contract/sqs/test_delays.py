"""What waits: at its time, whatever goes wrong on the way to it."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.adapter import TopicSpec
from messaging_sqs.connection import Untaken
from messaging_sqs.entries import ATTRIBUTE, DELAY, NOT_BEFORE
from tests.contract.bench import ids, nothing, publish, receive
from tests.contract.sqs.support import Bench, attributes_of, intercept, refuse_entries


async def test_what_cannot_be_sent_on_hides_no_longer_than_until_its_time(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    hidden: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def refuse(call, parameters):
        raise Untaken("throttled")

    async def note(call, parameters):
        if not hidden.done():
            hidden.set_result(parameters["Entries"][0])
        return await call(**parameters)

    intercept(adapter, monkeypatch, "send_message_batch", refuse)
    intercept(adapter, monkeypatch, "change_message_visibility_batch", note)
    await publish(adapter, group.topic, "one", not_before=datetime.now(UTC) + timedelta(seconds=20))
    assert not await bench.consumer(adapter, group).receive(1, 0.1)
    async with asyncio.timeout(10):
        assert 1 <= (await hidden)["VisibilityTimeout"] <= 20


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_message_whose_next_step_is_stored_is_removed_though_the_service_refuses_that_at_first(
    bench: Bench, monkeypatch, leaves
):
    adapter = await bench.adapter(lease=3)
    group = await bench.group(adapter)
    url = await adapter._topology.queue_url(group)
    refuse_entries(adapter, monkeypatch, "delete_message_batch", 1)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "one", not_before=datetime.now(UTC) + timedelta(seconds=60))
    async with asyncio.timeout(10):
        while not consumer._held:
            await nothing(consumer, 0.1)
        if leaves:
            await consumer.close()
        while consumer._held:
            await asyncio.sleep(0.05)
    found = attributes_of(adapter, url)
    waiting = {name: found[f"ApproximateNumberOfMessages{name}"] for name in ("", "NotVisible", "Delayed")}
    assert waiting == {"": "0", "NotVisible": "0", "Delayed": "1"}


async def test_a_forged_due_time_holds_up_no_key(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    sqs, url = adapter.native.sqs, await adapter._topology.queue_url(group)
    forged = json.dumps({"ce_id": "forged", NOT_BEFORE: "9e9", DELAY: "86400"})
    for at, attribute in enumerate((forged, json.dumps({"ce_id": "next"}))):
        sqs.send_message(
            QueueUrl=url,
            MessageBody="{}",
            MessageGroupId="a",
            MessageDeduplicationId=str(at),
            MessageAttributes={ATTRIBUTE: {"DataType": "String", "StringValue": attribute}},
        )
    assert ids(await receive(bench.consumer(adapter, group), 2, within=5)) == ["forged", "next"]
