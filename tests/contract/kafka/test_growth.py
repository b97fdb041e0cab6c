"""A topic of another program that gets more partitions: seen by who runs, adopted by who starts."""

from dataclasses import replace

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import ConfigurationError
from messaging_kafka import watching
from messaging_kafka.brokers import NewTopic
from tests.contract.bench import ack, ids, outgoing, receive
from tests.contract.kafka.support import QUICK, Bench, brokers_of


async def adopted(bench: Bench, *, ordered: bool):
    adapter = await bench.adapter(**QUICK)
    native = f"messaging.{bench.namespace}.theirs"
    await brokers_of(adapter).create([NewTopic(native, 2, {})])
    topic = TopicSpec("orders", ordered=ordered, partitions=2, native=native)
    return adapter, topic, await bench.group(adapter, topic)


async def fill(bench: Bench, topic: TopicSpec, *names: str) -> set[int | None]:
    """The partitions that hold them."""
    publisher = await bench.adapter()
    results = await publisher.publish([outgoing(topic, name, key=name) for name in names])
    return {result.partition for result in results}  # type: ignore[union-attr]


NAMES = [str(number) for number in range(30)]


@pytest.mark.parametrize("ordered", [False, True])
async def test_partitions_that_its_owner_adds_are_read_by_who_runs_and_by_who_starts(
    bench: Bench, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GROWTH_PERIOD", 0.2)
    adapter, topic, group = await adopted(bench, ordered=ordered)
    running = bench.consumer(adapter, group)
    await running.receive(1, 0.1)

    assert topic.native is not None
    await brokers_of(adapter).grow(topic.native, 4)
    assert await fill(bench, topic, *NAMES) == {0, 1, 2, 3}
    deliveries = await receive(running, 30)

    assert sorted(ids(deliveries)) == sorted(NAMES)
    assert {one.partition for one in deliveries} == {0, 1, 2, 3}
    await ack(running, deliveries[:20])
    await running.close()
    again = await receive(bench.consumer(await bench.adapter(**QUICK), group), 10)
    assert sorted(ids(again)) == sorted(ids(deliveries[20:]))


@pytest.mark.parametrize("ordered", [False, True])
async def test_partitions_that_were_added_while_nobody_ran_are_read_from_their_beginning(
    bench: Bench, ordered: bool
) -> None:
    adapter, topic, group = await adopted(bench, ordered=ordered)
    assert topic.native is not None
    await brokers_of(adapter).grow(topic.native, 4)
    await fill(bench, topic, *NAMES)
    other = await bench.adapter()
    await bench.group(other, topic)
    (info,) = await other.groups()
    assert info.lag == 30

    deliveries = await receive(bench.consumer(other, group), 30)

    assert sorted(ids(deliveries)) == sorted(NAMES)


async def test_what_cannot_grow_with_an_ordered_topic_is_named_with_both_counts(bench: Bench) -> None:
    adapter, topic, group = await adopted(bench, ordered=True)
    assert topic.native is not None
    await brokers_of(adapter).grow(topic.native, 4)
    other = await bench.adapter()
    await other.declare(Topology(groups=[replace(group)], mode="verify"))

    with pytest.raises(ConfigurationError, match=r"theirs has 4 partitions.*redrive.*has 2"):
        await bench.consumer(other, group).receive(1, 0.1)
