"""Reading: logs that end before a position, partitions whose leader moves, a reader that stands still."""

import asyncio
from types import SimpleNamespace

import pytest

from messaging.adapter import DONE, SettleError, TopicSpec
from messaging.errors import ConnectionFailed, LeaseLost
from messaging.message import Ack
from messaging_kafka import fetching
from messaging_kafka.brokers import Committed, NewTopic
from messaging_kafka.fetching import Fetcher, read_between
from messaging_kafka.library import Place
from messaging_kafka.source import Source
from messaging_kafka.topic_ids import TopicIds
from tests.contract.bench import Recorder, ack, healthy, ids, nothing, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, brokers_of, owned, receive_through

ONE = TopicSpec("orders", partitions=1)
ORDERED = TopicSpec("orders", ordered=True, partitions=1)


@pytest.mark.parametrize("topic", [ONE, ORDERED])
async def test_what_lies_below_a_position_that_the_log_never_reached_is_handled(
    bench: Bench, topic: TopicSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup was restored, or a broker lost its tail: these offsets are those of new messages."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    place = Place(adapter._session.names.topic(topic), 0)
    name = adapter._session.names.group(group)
    await brokers_of(adapter).commit(name, {place: Committed(100)})
    await publish(adapter, topic, *map(str, range(20)), key="ann")
    assert [one.lag for one in await adapter.groups()] == [20]

    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 20)

    assert ids(deliveries) == list(map(str, range(20)))
    assert {(one.attempt, one.returns) for one in deliveries} == {(1, 0)}
    assert "ends at 20, before the position 100" in caplog.text
    assert (await brokers_of(adapter).committed(name, [place]))[place].offset == 0
    await ack(consumer, deliveries)
    await consumer.close()
    assert (await brokers_of(adapter).committed(name, [place]))[place].offset == 20
    await nothing(bench.consumer(adapter, group))


async def test_what_is_given_up_while_a_reader_starts_again_is_read_no_more(bench: Bench) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, ONE)
    place = Place(adapter._session.names.topic(ONE), 0)
    fetcher = Fetcher(brokers_of(adapter), "orders/billing", lambda: None)
    fetcher.add([Source(place, 0)])

    starting = asyncio.create_task(fetcher.restart(ConnectionFailed("it stood still")))
    await asyncio.sleep(0)
    fetcher.remove([place])
    await starting
    fetcher.retry()

    assert fetcher.asking() == []
    await fetcher.close()


async def test_a_topic_that_is_made_anew_under_a_member_is_read_from_its_beginning(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ONE)
    ownership = Recorder()
    consumer = bench.consumer(adapter, group, ownership)
    await publish(adapter, ONE, *[f"old {number}" for number in range(50)])
    done, held = (deliveries := await receive(consumer, 50))[:-1], deliveries[-1]
    await ack(consumer, done)
    brokers, name = brokers_of(await bench.adapter()), adapter._session.names.topic(ONE)

    await brokers.delete([name])
    await brokers.create([NewTopic(name, 1, {})])
    publisher = await bench.adapter()
    await publish(publisher, ONE, *[f"new {number}" for number in range(20)])
    deliveries = await receive(consumer, 20)

    assert ids(deliveries) == [f"new {number}" for number in range(20)]
    assert ownership.lost == [held]
    (result,) = await settle(consumer, [held], Ack())  # of the old log: it must not end a new message
    assert isinstance(result, SettleError)
    assert isinstance(result.error, LeaseLost)
    assert await settle(consumer, deliveries, Ack()) == [DONE] * 20
    await nothing(consumer)


class FakeLink:
    """Brokers that answer each fetch with nothing, soon."""

    settings = SimpleNamespace(fetch_wait=0.01, operation_timeout=1, address="fake")

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.again = asyncio.Event()

    async def send(self, request, node: int = 0, channel=None, within=None):
        await asyncio.sleep(0.001)
        (topics,) = dict(request._topics).values()
        self.asked.append((node, tuple(sorted(one[0] for one in topics))))
        self.again.set()
        empty = [(one[0], 0, 0, 0, 0, [], -1, b"") for one in topics]
        return SimpleNamespace(API_VERSION=11, topics=[("t", empty)])

    def drop_channel(self, channel) -> None:
        pass

    async def until_asked(self, node: int, partitions: set[int]) -> None:
        self.asked.clear()
        async with asyncio.timeout(10):
            while not any(to == node and partitions <= set(some) for to, some in self.asked):
                self.again.clear()
                await self.again.wait()


class FakeBrokers:
    def __init__(self, leaders: dict[Place, int]) -> None:
        self.link = FakeLink()
        self.topic_ids = TopicIds()
        self.leaders = leaders
        self.actual = dict(leaders)
        self.elected = asyncio.Event()
        self.elected.set()

    def leader(self, place: Place) -> int | None:
        return self.leaders.get(place)

    def forget_leader(self, place: Place) -> None:
        self.leaders.pop(place, None)

    async def find_leaders(self, places) -> None:
        await self.elected.wait()
        self.leaders |= {place: self.actual[place] for place in places}


P0, P1 = Place("t", 0), Place("t", 1)


@pytest.mark.parametrize("noticed", ["found", "forgotten"])
async def test_a_partition_that_moves_while_its_reader_is_slow_is_asked_for_at_its_new_leader(
    noticed: str,
) -> None:
    """A publish or a health check learns of the new leader before the fetch does."""
    brokers = FakeBrokers({P0: 1, P1: 1})
    fetcher = Fetcher(brokers, "test", lambda: None)  # type: ignore[arg-type]
    slow, other = Source(P1, 0), Source(P0, 0)
    fetcher.add([other, slow])
    await brokers.link.until_asked(1, {0, 1})
    slow._answers.extend([iter(()), iter(())])  # type: ignore[list-item]
    await brokers.link.until_asked(1, {0})

    brokers.actual[P1] = 2
    if noticed == "found":
        brokers.leaders[P1] = 2
    else:
        brokers.forget_leader(P1)
    await brokers.link.until_asked(1, {0})
    slow._answers.clear()
    fetcher.hungry()

    await brokers.link.until_asked(2, {1})
    await fetcher.close()


async def test_a_partition_that_has_a_leader_again_is_asked_for_while_another_has_no_room() -> None:
    brokers = FakeBrokers({P0: 1})
    fetcher = Fetcher(brokers, "test", lambda: None)  # type: ignore[arg-type]
    full, new = Source(P0, 0), Source(P1, 0)
    full._answers.extend([iter(()), iter(())])  # type: ignore[list-item]
    fetcher.add([full])
    await asyncio.sleep(0.01)
    brokers.elected.clear()
    fetcher.add([new])
    await asyncio.sleep(0.01)

    brokers.actual[P1] = 1
    brokers.elected.set()

    await brokers.link.until_asked(1, {1})
    await fetcher.close()


async def test_a_partition_without_a_leader_is_told_and_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All brokers that have a copy of it are gone, and the others are well."""
    monkeypatch.setattr(fetching, "UNLED_AFTER", 0.0)
    adapter, topic = await bench.adapter(**QUICK), TopicSpec("orders", partitions=2)
    consumer = bench.consumer(adapter, await bench.group(adapter, topic))
    await owned(consumer)
    brokers, place = brokers_of(adapter), Place(adapter._session.names.topic(topic), 1)
    look = brokers._look

    async def without_leader(names):
        found = await look(names)
        brokers._leaders[place] = -1
        return found

    monkeypatch.setattr(brokers, "_look", without_leader)
    await consumer._fetcher.restart(ConnectionFailed("its broker is gone"))
    publisher = await bench.adapter()
    await publish(publisher, topic, "one", partition=1)
    await publish(publisher, topic, "zero", partition=0)
    assert ids(await receive_through(consumer, 1)) == ["zero"]
    (info,) = (await healthy(adapter)).groups
    assert "no broker leads partition 1 of" in (info.stuck or "")

    monkeypatch.setattr(brokers, "_look", look)
    assert ids(await receive_through(consumer, 1)) == ["one"]
    assert caplog.text.count("has no leader") == 1
    (info,) = (await healthy(adapter)).groups
    assert info.stuck is None


async def test_a_reader_that_stands_still_is_started_again_and_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = await bench.adapter()
    group = await bench.group(publisher, ONE)
    consumer = bench.consumer(await bench.adapter(operation_timeout=1, fetch_wait=0.1), group)
    await publish(publisher, ONE, "zero")
    await ack(consumer, await receive_through(consumer, 1))
    for task in consumer._fetcher._polls.values():
        task.cancel()  # whatever it is that nobody asks any more: no error tells
    await publish(publisher, ONE, "one", "two")

    with pytest.raises(ConnectionFailed, match=r"orders/billing stood still while Kafka had 2 messages"):
        await receive(consumer, 1)
    assert "started again" in caplog.text

    assert ids(await receive_through(consumer, 2)) == ["one", "two"]


async def test_a_reader_with_nothing_to_read_is_left_alone(bench: Bench) -> None:
    group = await bench.group(await bench.adapter(), ONE)
    consumer = bench.consumer(await bench.adapter(operation_timeout=1.2, fetch_wait=0.05), group)
    await owned(consumer)

    await nothing(consumer, during=3)
    assert consumer.status().connected


async def test_a_broker_that_answers_with_nothing_is_no_end_of_what_is_there(bench: Bench) -> None:
    adapter, reader = await bench.adapter(), await bench.adapter(operation_timeout=2.0)
    group = await bench.group(adapter, TopicSpec("orders", partitions=1))
    await publish(adapter, group.topic, "1")
    where = Place(adapter._session.names.topic(group.topic), 0)
    found: list[int] = []

    with pytest.raises(ConnectionFailed, match="answered with nothing"):
        async for record in read_between(brokers_of(reader), where, 0, 2):
            found.append(record.offset)  # noqa: PERF401 - what came before the error counts

    assert found == [0]
