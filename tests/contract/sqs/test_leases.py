"""A lease ends when it ends: an extension that hangs or is refused lets no handler run beside the next one."""

import asyncio
import time
from typing import Any

import pytest

from messaging.adapter import RawDelivery, SettleError, TopicSpec
from messaging.errors import ConnectionFailed
from messaging.message import Ack
from messaging_contracts.standstill import standstill
from messaging_sqs import SQSAdapter
from messaging_sqs.connection import Denied
from messaging_sqs.consumer import Member
from tests.contract.bench import Recorder, handled, ids, publish, receive, settle
from tests.contract.sqs.support import Bench, intercept, stored

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
LEASE = 3
REFUSAL = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"


class Watch(Recorder):
    """When something was lost."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.at = 0.0
        self.reason = ""

    def on_lost(self, deliveries, reason: str) -> None:
        super().on_lost(deliveries, reason)
        self.at = time.monotonic()
        self.reason = reason
        self.told.set()


async def hanging(*_: Any) -> Any:
    await asyncio.sleep(60)


async def refused(_: Any, parameters: dict[str, Any]) -> Any:
    failed = [
        {"Id": one["Id"], "SenderFault": True, "Code": "InvalidParameterValue", "Message": REFUSAL}
        for one in parameters["Entries"]
    ]
    return {"Failed": failed}


@pytest.mark.parametrize("answer", [hanging, refused])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_lease_that_is_not_extended_is_lost_when_it_ends(bench: Bench, monkeypatch, answer, ordered):
    adapter = await bench.adapter(lease=LEASE)
    group = await bench.group(adapter, TopicSpec("orders", ordered=ordered, partitions=2))
    watch = Watch()
    consumer = bench.consumer(adapter, group, watch)
    await publish(adapter, group.topic, "one", key="a")
    (delivery,) = await receive(consumer, 1)
    intercept(adapter, monkeypatch, "change_message_visibility_batch", answer)
    extending = asyncio.create_task(extended_again_and_again(consumer, delivery))
    async with standstill(adapter.dead_letters(group).count) as lost, asyncio.timeout(3 * LEASE):
        await watch.told.wait()
    extending.cancel()
    assert ids(watch.lost) == ["one"]
    assert 0 <= watch.at - delivery.lease.deadline < 0.3 + lost.seconds


async def extended_again_and_again(consumer: Any, delivery: RawDelivery) -> None:
    while True:
        await asyncio.sleep(LEASE / 3)
        await consumer.extend([delivery], LEASE)


async def holds_three_of_a_key(
    bench: Bench, adapter: SQSAdapter
) -> tuple[Member, list[RawDelivery], Recorder]:
    """A member, the messages a, b and c that it has received, and what it tells of them."""
    group = await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, *"abc", key="k")
    await stored(adapter, group, 3)
    told = Recorder()
    consumer = bench.consumer(adapter, group, told)
    return consumer, await receive(consumer, 3), told


async def test_who_loses_one_message_of_a_key_loses_its_successors(any_bench: Bench, monkeypatch):
    adapter = await any_bench.adapter()
    consumer, held, told = await holds_three_of_a_key(any_bench, adapter)

    async def gone(_, parameters):
        ids = [entry["Id"] for entry in parameters["Entries"]]
        return {"Failed": [{"Id": id, "SenderFault": True, "Code": "ReceiptHandleIsInvalid"} for id in ids]}

    intercept(adapter, monkeypatch, "delete_message_batch", gone)
    (late,) = await settle(consumer, held[:1], Ack())
    assert isinstance(late, SettleError)
    assert ids(told.lost) == ["b", "c"]


async def test_a_lease_that_ends_takes_all_messages_of_its_key(any_bench: Bench):
    adapter = await any_bench.adapter(lease=1)
    consumer, held, told = await holds_three_of_a_key(any_bench, adapter)
    await asyncio.sleep(1.1)
    (late,) = await settle(consumer, held[:1], Ack())
    assert isinstance(late, SettleError)
    assert ids(told.lost) == ["a", "b", "c"]
    assert ids(await handled(any_bench.consumer(adapter, any_bench.groups[0]), 3)) == ["a", "b", "c"]


async def test_a_lease_that_may_not_be_extended_is_told_and_so_is_why_it_ended(bench: Bench, monkeypatch):
    adapter = await bench.adapter(lease=LEASE)
    group = await bench.group(adapter)
    watch = Watch()
    consumer = bench.consumer(adapter, group, watch)
    await publish(adapter, group.topic, "one")
    (delivery,) = await receive(consumer, 1)

    async def denied(*_: Any) -> Any:
        raise Denied("ChangeMessageVisibilityBatch is not permitted")

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "change_message_visibility_batch", denied)
        with pytest.raises(ConnectionFailed, match="not permitted"):
            await consumer.extend([delivery], LEASE)
        async with asyncio.timeout(3 * LEASE):
            await watch.told.wait()
    assert "not permitted" in watch.reason
    (again,) = await receive(consumer, 1)
    assert await consumer.extend([again], LEASE) == [True]
