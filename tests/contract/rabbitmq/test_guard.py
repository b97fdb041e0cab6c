"""Suspects: marked durably, run alone, tripped only when they come back with the mark."""

from messaging.adapter import Consumer, Done, RawDelivery, TopicSpec
from messaging.errors import ConnectionFailed
from messaging.message import Ack, Reject, Release, Retry
from messaging_rabbitmq import RabbitMQAdapter
from tests.contract.bench import ack, healthy, nothing, publish, receive, settle
from tests.contract.rabbitmq.support import Bench

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def crash(adapter: RabbitMQAdapter, consumer: Consumer) -> None:
    """What the broker sees when the process dies."""
    adapter._session.consuming.abort()
    try:
        while True:
            await consumer.receive(1, 5)
    except ConnectionFailed:
        return


async def returned(bench: Bench, group, times: int) -> tuple[RabbitMQAdapter, Consumer, RawDelivery]:
    """The message in the hands of a new process, after so many crashes of others."""
    for count in range(times + 1):
        adapter = await bench.adapter()
        consumer = bench.consumer(adapter, group)
        (delivery,) = await receive(consumer, 1)
        assert (delivery.returns, delivery.deliveries, delivery.attempt) == (count, count + 1, 1)
        if count < times:
            await crash(adapter, consumer)
            await consumer.close()
    return adapter, consumer, delivery


async def test_a_suspect_is_isolated_by_a_marked_copy_and_tripped_only_after_coming_back_with_it(
    bench: Bench,
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "poison")
    own, consumer, delivery = await returned(bench, group, 3)
    assert delivery.guard == "none"

    assert await consumer.isolate(delivery) is False

    for expected in ("alone", "alone", "alone", "tripped"):
        (delivery,) = await receive(consumer, 1)
        assert (delivery.guard, delivery.attempt) == (expected, 1)
        if expected != "tripped":
            await crash(own, consumer)
            await consumer.close()
            own = await bench.adapter()
            consumer = bench.consumer(own, group)
    await settle(consumer, [delivery], Reject("died"), failure="{}")
    assert await adapter.dead_letters(group).count() == 1
    async with adapter.dead_letters(group).scan() as letters:
        (letter,) = [one async for one in letters]
        assert await adapter.dead_letters(group).redrive([(letter, letter.message, None)]) == [None]
    (again,) = await receive(consumer, 1)
    assert (again.guard, again.returns, again.attempt) == ("none", 0, 1)


async def test_a_marked_message_that_is_given_back_or_fails_starts_unmarked(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "m1")
    (delivery,) = await receive(consumer, 1)
    await consumer.isolate(delivery)
    (alone,) = await receive(consumer, 1)
    await settle(consumer, [alone], Release())
    (free,) = await receive(consumer, 1)
    assert (free.guard, free.returns, free.attempt) == ("none", 0, 1)
    await consumer.isolate(free)
    (alone,) = await receive(consumer, 1)
    assert alone.guard == "alone"
    await consumer.close()
    other = bench.consumer(adapter, group)
    (free,) = await receive(other, 1)
    assert (free.guard, free.attempt) == ("none", 1)
    await other.isolate(free)
    (alone,) = await receive(other, 1)
    await settle(other, [alone], Retry(), after=0.0, failure="{}")
    (failed,) = await receive(other, 1)
    assert (failed.guard, failed.attempt) == ("none", 2)
    await ack(other, [failed])
    await nothing(other)


async def test_an_ordered_suspect_keeps_its_place_and_is_tripped_for_the_next_owner(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "poison", "next", partition=0)
    poison, _next = await receive(consumer, 2)

    assert await consumer.isolate(poison) is True
    await crash(adapter, consumer)
    await consumer.close()

    other_adapter = await bench.adapter()
    other = bench.consumer(other_adapter, group)
    again, following = await receive(other, 2)
    assert (again.message.id, again.guard, again.returns) == ("poison", "tripped", 1)
    assert (following.message.id, following.guard) == ("next", "none")
    await settle(other, [again], Reject("died"), failure="{}")
    await ack(other, [following])
    await other.close()
    third = bench.consumer(await bench.adapter(), group)
    await publish(adapter, ORDERED, "poison", partition=0)
    (redone,) = await receive(third, 1)
    assert redone.guard == "none"


async def test_an_ordered_mark_goes_when_the_process_lives(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, ORDERED, "m1", partition=0)
    (first,) = await receive(consumer, 1)
    await consumer.isolate(first)

    await crash(adapter, consumer)
    (same_process,) = await receive(consumer, 1)
    assert same_process.guard == "alone"
    await consumer.close()

    other = bench.consumer(await bench.adapter(), group)
    (delivery,) = await receive(other, 1)
    assert delivery.guard == "none"
    await other.isolate(delivery)
    assert await settle(other, [delivery], Ack()) == [Done()]
    await other.close()
    (info,) = (await healthy(adapter)).groups
    assert info.lag == 0
