"""A topic that gets more partitions by hand. One of another program: seen by who runs, adopted by who starts. One of
ours: refused by who runs, until programs ask for as many.
"""

import re
from dataclasses import replace

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import ConfigurationError, PublishError
from messaging_kafka import watching
from messaging_kafka.brokers import NewTopic
from tests.contract.bench import ack, healthy, ids, outgoing, publish, receive
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


async def grown(bench: Bench, *, ordered: bool):
    adapter = await bench.adapter(**QUICK)
    topic = TopicSpec("orders", ordered=ordered, partitions=2)
    group = await bench.group(adapter, topic)
    await brokers_of(adapter).grow(adapter._session.names.topic(topic), 4)
    return adapter, topic, group


async def test_a_topic_of_ours_that_was_grown_by_hand_is_told_and_ends_its_members(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would read what other programs send to the new partitions."""
    monkeypatch.setattr(watching, "GROWTH_PERIOD", 0.05)
    running = await bench.adapter(**QUICK)
    member = bench.consumer(running, await bench.group(running, TopicSpec("orders", partitions=2)))
    await member.receive(1, 0.01)

    _, topic, _ = await grown(bench, ordered=False)

    (info,) = (await healthy(running)).groups
    assert re.search(r"4 partitions.*asks for 2", info.stuck or "")
    with pytest.raises(ConfigurationError, match=r"4 partitions.*asks for 2.*generations begin"):
        await member.receive(1, 10.0)
    running._session.topology.topics["orders", None].found = False  # as after a publish that failed
    (refused,) = await running.publish([outgoing(topic, "one", key="ann")])
    assert isinstance(refused, PublishError)
    assert "asks for 2" in str(refused)


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_program_that_asks_for_as_many_partitions_reads_all_that_was_sent_to_the_added_ones(
    bench: Bench, ordered: bool
) -> None:
    adapter, topic, _ = await grown(bench, ordered=ordered)
    more = replace(topic, partitions=4)
    await publish(await bench.adapter(), more, "before", partition=3)
    await bench.group(adapter, more)
    await fill(bench, more, *NAMES)
    (info,) = await adapter.groups()
    assert info.lag == 31

    deliveries = await receive(bench.consumer(adapter, replace(bench.groups[0], topic=more)), 31)

    assert sorted(ids(deliveries)) == sorted([*NAMES, "before"])
