"""What becomes of others when one is cancelled who waits for the broker (20)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from messaging.adapter import DONE, Consumer, GroupSpec, RawDelivery, Subscription, TopicSpec, Topology
from messaging.message import Ack, Retry
from messaging_rabbitmq import RabbitMQAdapter
from messaging_rabbitmq.connection import abandon
from messaging_rabbitmq.registry import Entries
from tests.contract.bench import Recorder, ids, nothing, outgoing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

STEPS = range(4)
"""Of the event loop, between the frame that closes the channel and the cancellation."""


@pytest.fixture(params=STEPS)
def cancelled_in_between(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Runs something, which is cancelled so many steps after the broker has closed a channel of it."""
    hand_on, cancelling = Channel._on_close_frame, []

    async def run(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)

        async def cancel() -> None:
            for _ in range(request.param):
                await asyncio.sleep(0)
            task.cancel()

        async def closed(self: Channel, frame: Any) -> None:
            cancelling.append(asyncio.create_task(cancel()))
            await hand_on(self, frame)

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_on_close_frame", closed)
            await asyncio.wait([task])
            await asyncio.gather(*cancelling)
        return task

    return run


async def look_for_generations(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    await adapter.generations(topic)


async def publish_to_a_topic_that_is_not_there(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    await adapter.publish([outgoing(replace(topic, name="absent"), "m")])


async def declare_another_shape(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    await adapter.declare(Topology(topics=[replace(topic, partitions=topic.partitions + 1)]))


async def delete_a_group_that_is_not_there(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    await adapter.delete_group(GroupSpec(replace(topic, name="absent"), "absent"))


async def join_a_group_that_is_not_there(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    consumer = adapter.consumer(Subscription(GroupSpec(topic, "absent"), 10, concurrency=10), Recorder())
    try:
        await consumer.receive(1, 1.0)
    finally:
        await consumer.close()


async def count_letters(adapter: RabbitMQAdapter, topic: TopicSpec) -> None:
    await adapter.dead_letters(GroupSpec(topic, "billing")).count()


async def list_groups(adapter: RabbitMQAdapter, _: TopicSpec) -> None:
    await adapter.groups()


async def open_an_inbox(adapter: RabbitMQAdapter, _: TopicSpec) -> None:
    await (await adapter.reply_inbox()).close()


Work = Callable[[RabbitMQAdapter, TopicSpec], Coroutine[Any, Any, None]]
REFUSED: list[Work] = [
    look_for_generations,
    publish_to_a_topic_that_is_not_there,
    declare_another_shape,
    delete_a_group_that_is_not_there,
    join_a_group_that_is_not_there,
]
"""In each the broker closes a channel."""


@dataclass
class InHand:
    """One who has a delivery in hand, which is lost with the connection."""

    adapter: RabbitMQAdapter
    group: GroupSpec
    consumer: Consumer
    deliveries: list[RawDelivery]

    @classmethod
    async def on(cls, bench: Bench) -> Self:
        adapter = await bench.adapter()
        group = await bench.group(adapter)
        consumer = bench.consumer(adapter, group)
        await publish(adapter, group.topic, "m1")
        return cls(adapter, group, consumer, await receive(consumer, 1))

    @contextlib.asynccontextmanager
    async def record(self) -> AsyncGenerator[Entries]:
        async with self.adapter._session.topology.registry_of(self.group.topic, create=False) as entries:
            assert entries is not None
            yield entries

    async def check_still_ours(self) -> None:
        assert await settle(self.consumer, self.deliveries, Ack()) == [DONE]
        await nothing(self.consumer, 0.1)


@pytest.mark.parametrize("work", REFUSED)
async def test_one_who_is_cancelled_as_the_broker_refuses_takes_nothing_from_others(
    bench: Bench, cancelled_in_between, work: Work
):
    other = await InHand.on(bench)

    await cancelled_in_between(work(other.adapter, other.group.topic))

    await other.adapter.groups()
    await other.check_still_ours()


@pytest.mark.parametrize("work", [*REFUSED, count_letters, list_groups, open_an_inbox])
async def test_one_who_is_cancelled_at_any_step_takes_nothing_from_others(bench: Bench, work: Work):
    other = await InHand.on(bench)

    for steps in range(100):
        tasks = [asyncio.create_task(work(other.adapter, other.group.topic)) for _ in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    await other.adapter.groups()
    await other.check_still_ours()


async def test_a_long_record_of_groups_that_nobody_waits_for_any_more_stops_nothing(bench: Bench):
    """More entries than a channel holds that nobody reads."""
    other = await InHand.on(bench)
    names = [f"g{number}" for number in range(200)]
    async with other.record() as entries:
        for name in names:
            await entries.begin(name, ordered=False)

    for steps in range(100):
        looking = asyncio.create_task(other.adapter._session.topology.recorded(other.group))
        for _ in range(steps):
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking])

    async with asyncio.timeout(5), other.record() as entries:
        for name in names:
            await entries.remove(name)
    await other.check_still_ours()


async def test_a_declaration_that_was_cut_off_and_is_done_again_takes_nothing_from_the_group(bench: Bench):
    """A program that only verifies, or an older one, may already use it."""
    other = await InHand.on(bench)
    await publish(other.adapter, other.group.topic, "m2")
    async with other.record() as entries:
        await entries.remove(other.group.name)
        await entries.begin(other.group.name, ordered=False)

    await bench.group(await bench.adapter())

    assert ids(await receive(other.consumer, 1)) == ["m2"]
    await other.check_still_ours()


async def test_the_cancellation_is_not_lost(bench: Bench, cancelled_in_between):
    adapter = await bench.adapter()

    async def look() -> None:
        async with adapter._session.consuming.throwaway("looking") as channel:
            with contextlib.suppress(ChannelNotFoundEntity):
                await channel.queue_declare("absent", passive=True)

    looking = await cancelled_in_between(look())

    assert looking.cancelled() or not looking.cancelling()  # it may have ended before


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_close_that_is_cut_off_at_any_step_keeps_nothing_from_others(bench: Bench, ordered: bool):
    adapter, other = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=ordered, partitions=2))
    await publish(adapter, group.topic, "m1", partition=0)

    for steps in range(1, 60, 4):
        leaving = bench.consumer(adapter, group)
        held = await receive(leaving, 1, within=30)
        settling = asyncio.create_task(settle(leaving, held, Retry()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(leaving.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing, settling))

        taking_over = bench.consumer(other, group)
        assert {*ids(await receive(taking_over, 1, within=30))} == {"m1"}
        await taking_over.close()


async def test_a_channel_that_is_given_up_during_a_long_call_is_closed_after_it(bench: Bench) -> None:
    # A consumer that begins while its queue has no leader would get messages that nobody reads.
    adapter = await bench.adapter(heartbeat=2)
    link = adapter._session.consuming
    channel = await link.channel()
    queue = (await channel.queue_declare(exclusive=True)).queue
    assert queue is not None
    await channel.basic_consume(queue, _ignored)

    async with cast("Any", channel).lock:  # as a call has it that is not answered yet
        abandon(channel)
        await asyncio.wait([channel.closing], timeout=2.5)  # longer than aiormq waits: a heartbeat

    async with link.throwaway("looking") as other, asyncio.timeout(5):
        while (await other.queue_declare(queue, passive=True)).consumer_count:
            await asyncio.sleep(0.05)


async def _ignored(_: DeliveredMessage) -> None:
    """Nothing comes."""
