"""A broker that is gone, hangs or forgets: everything is bounded, nothing is lost, everything goes on by itself.

What a consumer or producer of aiokafka does there (endless commits, a `stop` that hangs or leaks a CancelledError) is
what these tests would show. The broker is one of our own.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from messaging import App, Topic, connect
from messaging.adapter import DONE, SettleError, TopicSpec
from messaging.errors import ConnectionFailed, LeaseLost, PublishError, PublishUncertain, TopicNotFound
from messaging.message import Ack, Receipt, Reject
from messaging_contracts.brokers import Broker
from tests.contract.bench import Recorder, ack, ids, outgoing, publish, receive, settle
from tests.contract.kafka.support import Bench, brokers_of, owned, receive_through

pytestmark = pytest.mark.slow

IMPATIENT = {
    "session": 6,
    "heartbeat": 0.5,
    "join_delay": 0,
    "operation_timeout": 2,
    "connect_timeout": 2,
    "confirm_timeout": 2,
}
ONE = TopicSpec("orders", ordered=True, partitions=1)


@asynccontextmanager
async def paused(broker: Broker) -> AsyncIterator[None]:
    """The broker answers nothing."""
    broker.pause()
    try:
        yield
    finally:
        broker.resume()


@pytest.fixture(autouse=True)
def the_broker_runs_afterwards(own_broker: Broker) -> Iterator[None]:
    yield
    own_broker.resume()


async def member(bench: Bench, **options: object):
    adapter = await bench.adapter(**{**IMPATIENT, **options})  # type: ignore[arg-type]
    group = await bench.group(adapter, ONE)
    ownership = Recorder()
    return adapter, group, bench.consumer(adapter, group, ownership), ownership


async def test_closing_is_bounded_and_clean_while_the_broker_hangs(
    fragile: Bench, own_broker: Broker
) -> None:
    adapter, _, consumer, _ = await member(fragile)
    await publish(adapter, ONE, "one")
    await receive(consumer, 1)
    task = asyncio.current_task()
    assert task is not None

    async with paused(own_broker):
        started = time.monotonic()
        await consumer.close()
        await adapter.close()
        took = time.monotonic() - started

    assert took < 12
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # a leaked cancellation would come here


async def test_closing_is_bounded_and_clean_while_the_broker_is_down(
    fragile: Bench, own_broker: Broker
) -> None:
    adapter, _, consumer, _ = await member(fragile)
    await publish(adapter, ONE, "one")
    await receive(consumer, 1)

    own_broker.kill()
    try:
        started = time.monotonic()
        await consumer.close()
        await adapter.close()
        assert time.monotonic() - started < 12
    finally:
        own_broker.restart()


async def test_a_commit_gives_up_and_may_be_made_again(fragile: Bench, own_broker: Broker) -> None:
    adapter, group, consumer, _ = await member(fragile)
    await publish(adapter, ONE, "one", "two")
    deliveries = await receive(consumer, 2)

    async with paused(own_broker):
        started = time.monotonic()
        results = await settle(consumer, deliveries, Ack())
        assert time.monotonic() - started < 8

    assert all(isinstance(one, SettleError) and isinstance(one.error, ConnectionFailed) for one in results)
    async with asyncio.timeout(10):
        while await settle(consumer, deliveries, Ack()) != [DONE, DONE]:
            await asyncio.sleep(0.1)
    await consumer.close()
    await publish(adapter, ONE, "three")
    assert ids(await receive_through(fragile.consumer(adapter, group), 1)) == ["three"]


async def test_a_commit_for_a_deleted_topic_ends(fragile: Bench) -> None:
    adapter, _, consumer, _ = await member(fragile)
    await publish(adapter, ONE, "one")
    deliveries = await receive(consumer, 1)
    await brokers_of(adapter).delete([adapter._session.names.topic(ONE)])

    started = time.monotonic()
    await settle(consumer, deliveries, Ack())

    assert time.monotonic() - started < 5


async def test_a_deleted_topic_ends_the_subscription_with_an_error_that_names_it(fragile: Bench) -> None:
    adapter, _, consumer, _ = await member(fragile)
    await owned(consumer)
    await brokers_of(adapter).delete([adapter._session.names.topic(ONE)])

    with pytest.raises(TopicNotFound, match="orders"):
        await receive_through(consumer, 1)


async def test_a_hung_broker_is_told_and_reading_goes_on_when_it_answers(
    fragile: Bench, own_broker: Broker
) -> None:
    """A consumer that has no answer is not connected, whatever its socket says: that is found and mended."""
    adapter, _, consumer, _ = await member(fragile)
    await owned(consumer)
    assert consumer.status().connected

    async with paused(own_broker):
        with pytest.raises(ConnectionFailed, match="127.0.0.1"):
            async with asyncio.timeout(20):
                while True:
                    await consumer.receive(1, 1)
        assert not consumer.status().connected
        health = await adapter.health()
        assert not health.connected

    await receive_through_publish(adapter, consumer)
    assert consumer.status().connected


async def receive_through_publish(adapter, consumer) -> None:
    async with asyncio.timeout(20):
        while not isinstance((await adapter.publish([outgoing(ONE, "after")]))[0], Receipt):
            await asyncio.sleep(0.1)
    assert ids(await receive_through(consumer, 1)) == ["after"]


async def test_what_was_held_longer_than_the_session_is_lost_by_the_own_clock(
    fragile: Bench, own_broker: Broker
) -> None:
    adapter, _, consumer, ownership = await member(fragile, session=1.5, heartbeat=0.3)
    await publish(adapter, ONE, "one")
    (delivery,) = await receive(consumer, 1)

    async with paused(own_broker):
        async with asyncio.timeout(10):
            while not ownership.lost:
                with contextlib.suppress(ConnectionFailed):
                    await consumer.receive(1, 0.2)
        (result,) = await settle(consumer, [delivery], Reject("too late"), failure="{}")

    assert ownership.lost == [delivery]
    assert isinstance(result, SettleError)
    assert isinstance(result.error, LeaseLost)
    (again,) = await receive_through(consumer, 1)
    assert (again.message.id, again.attempt, again.fence > delivery.fence) == ("one", 1, True)
    await ack(consumer, [again])


async def test_publishing_to_a_hung_broker_claims_nothing_and_goes_on_afterwards(
    fragile: Bench, own_broker: Broker
) -> None:
    adapter, _, consumer, _ = await member(fragile)
    await publish(adapter, ONE, "before")

    async with paused(own_broker):
        started = time.monotonic()
        results = await adapter.publish([outgoing(ONE, "meanwhile")])
        assert time.monotonic() - started < 8
    assert isinstance(results[0], PublishUncertain)

    async with asyncio.timeout(15):
        while not isinstance((await adapter.publish([outgoing(ONE, "after")]))[0], Receipt):
            await asyncio.sleep(0.1)
    got = ids(await receive_through(consumer, 2))
    assert got[0] == "before"
    assert set(got) <= {"before", "meanwhile", "after"}


async def test_publishing_while_nobody_is_there_is_a_plain_error(fragile: Bench, own_broker: Broker) -> None:
    adapter, _, _, _ = await member(fragile)
    await publish(adapter, ONE, "before")
    own_broker.kill()
    try:
        await adapter.publish([outgoing(ONE, "on a dead connection")])
        (result,) = await adapter.publish([outgoing(ONE, "later")])
        assert isinstance(result, PublishError)
        assert not isinstance(result, PublishUncertain)
    finally:
        own_broker.restart()


async def test_nothing_is_lost_when_the_broker_is_killed_and_comes_back(
    fragile: Bench, own_broker: Broker
) -> None:
    """A whole app: what was confirmed is handled, members resume by themselves."""
    topic = Topic[int]("orders", int, partitions=4)
    app, handled, confirmed = App("billing"), set[int](), set[int]()

    @app.subscribe(topic, concurrency=8)
    async def handle(number: int) -> None:
        handled.add(number)

    url = f"{fragile.url}?session=6&operation_timeout=2&confirm_timeout=2&connect_timeout=1"
    async with connect(url, namespace=fragile.namespace) as bus, app.running(bus):

        async def publishing(numbers: range) -> None:
            for number in numbers:
                while number not in confirmed:
                    try:
                        await bus.publish(topic, number, timeout=3)
                        confirmed.add(number)
                    except (PublishError, ConnectionFailed):
                        await asyncio.sleep(0.1)

        async with asyncio.timeout(60):
            async with asyncio.TaskGroup() as publishers:
                for start in range(0, 1000, 100):
                    publishers.create_task(publishing(range(start, start + 100)))
                while len(confirmed) < 300:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(own_broker.kill)
                await asyncio.to_thread(own_broker.restart)
            while not confirmed <= handled:
                await asyncio.sleep(0.05)
    assert confirmed == set(range(1000))


async def test_a_member_that_is_put_out_joins_again(fragile: Bench) -> None:
    adapter, group, consumer, ownership = await member(fragile)
    await publish(adapter, ONE, "one")
    (delivery,) = await receive(consumer, 1)
    name = adapter._session.names.group(group)
    from messaging_kafka import library

    (out,) = (await brokers_of(adapter).members([name]))[name]
    await adapter._session.link.to_coordinator(name, library.LeaveGroup(name, out))

    (again,) = await receive_through(consumer, 1)

    assert ownership.lost == [delivery]
    assert again.message.id == "one"
    assert await settle(consumer, [again], Ack()) == [DONE]
