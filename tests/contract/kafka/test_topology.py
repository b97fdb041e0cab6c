"""Topics and groups: created as declared, compared, begun where they should."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from aiokafka.protocol.admin import DescribeConfigsRequest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, ConnectionFailed, TopicNotFound, is_fatal
from messaging.message import Message
from messaging_kafka import library
from messaging_kafka.brokers import NewTopic
from messaging_kafka.fetching import read_between
from messaging_kafka.library import Place
from messaging_kafka.produce import Produce
from messaging_kafka.records import Parcel
from tests.contract.bench import ack, ids, nothing, publish, receive
from tests.contract.kafka.support import Bench, brokers_of, topics_of

TOPIC = TopicSpec("orders", partitions=3)


async def test_a_topic_has_the_partitions_that_were_declared(bench: Bench) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, TOPIC)
    names = adapter._session.names
    group = GroupSpec(TOPIC, "billing")

    found = await brokers_of(adapter).partitions(
        [names.topic(TOPIC), names.retry(group), names.dead(group), names.redrive(group)]
    )

    assert found == {names.topic(TOPIC): 3, names.retry(group): 19, names.dead(group): 2}


async def test_retries_and_letters_outlive_the_retention_of_their_topic(bench: Bench) -> None:
    adapter = await bench.adapter()
    plain = await bench.group(adapter, TopicSpec("plain", partitions=1, retention=600.0))
    long = await bench.group(adapter, TopicSpec("long", ordered=True, partitions=1, retention=30 * 86400.0))
    names = adapter._session.names

    kept = await retention_of(
        adapter, names.topic(plain.topic), names.retry(plain), names.dead(plain), names.redrive(long)
    )

    week, month = 7 * 86_400_000, 30 * 86_400_000
    assert kept == [600_000, week, -1, month]


async def test_a_producer_whose_clock_is_wrong_does_not_decide_how_long_its_message_is_kept(
    bench: Bench,
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", partitions=1))
    before, where = time.time(), Place(adapter._session.names.topic(group.topic), 0)
    batch = library.BatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    batch.append(0, 0, None, b"of 1970", [])

    await adapter._session.link.send(
        Produce(5000, [(where.topic, [(0, bytes(batch.build()))])]),
        node=brokers_of(adapter).leader(where),
    )

    (record,) = [record async for record in read_between(brokers_of(adapter), where, 0, 1)]
    assert (record.value, record.timestamp / 1000 > before - 60) == (b"of 1970", True)


async def retention_of(adapter, *topics: str) -> list[int]:
    request = DescribeConfigsRequest(
        [(2, topic, ["retention.ms"]) for topic in topics], include_synonyms=False
    )
    response = await adapter._session.link.send(request)
    found = {name: int(entries[0][1]) for _, _, _, name, entries in response.resources}
    return [found[topic] for topic in topics]


async def test_many_groups_at_once_are_created_in_portions(bench: Bench) -> None:
    adapter = await bench.adapter()
    groups = [GroupSpec(TOPIC, f"group-{number}") for number in range(8)]
    brokers, portions = brokers_of(adapter), list[int]()
    send = brokers.link.send

    async def sent(request, **more):
        if isinstance(request, library.CreateTopics) and not request.validate_only:
            portions.append(sum(topic[1] for topic in request.create_topic_requests))
        return await send(request, **more)

    brokers.link.send = sent  # type: ignore[method-assign]
    await adapter.declare(Topology(groups=groups))

    assert max(portions) <= 100
    assert sum(portions) == 3 + 1 + 8 * (16 + 3 + 2)


async def test_of_many_topics_only_those_that_failed_are_named(bench: Bench) -> None:
    adapter = await bench.adapter(operation_timeout=4)
    brokers = brokers_of(adapter)
    well, slow, refused = (f"messaging.{bench.namespace}.{name}" for name in ("well", "slow", "refused"))
    look = brokers._look

    async def looked(names):
        return {name: leaders for name, leaders in (await look(names)).items() if name != slow}

    brokers._look = looked  # type: ignore[method-assign]
    with pytest.raises(ConnectionFailed) as late:
        await brokers.create([NewTopic(well, 1), NewTopic(slow, 1)])
    with pytest.raises(ConfigurationError) as wrong:
        await brokers.create([NewTopic(well, 1), NewTopic(refused, 1, {"retention.ms": "soon"})])

    assert (slow in str(late.value), well in str(late.value)) == (True, False)
    assert (refused in str(wrong.value), well in str(wrong.value)) == (True, False)


async def test_a_topic_that_exists_with_another_count_raises_and_names_both(bench: Bench) -> None:
    adapter = await bench.adapter()
    await brokers_of(adapter).create([NewTopic(adapter._session.names.topic(TOPIC), 5)])

    with pytest.raises(ConfigurationError, match=r"orders has 5 partitions.*asks for 3"):
        await bench.group(adapter, TOPIC)


async def test_two_that_declare_different_things_at_once_agree_on_the_first(bench: Bench) -> None:
    one, two = await bench.adapter(), await bench.adapter()
    plain, ordered = TopicSpec("orders", partitions=3), TopicSpec("orders", ordered=True, partitions=3)
    await bench.group(one, TopicSpec("other", partitions=1))  # so that the registry is there

    results = await asyncio.gather(
        one.declare(Topology(topics=[plain])), two.declare(Topology(topics=[ordered])), return_exceptions=True
    )

    refused = [result for result in results if isinstance(result, ConfigurationError)]
    assert len(refused) == 1
    assert results.count(None) == 1
    late = await bench.adapter()
    winner = plain if results[0] is None else ordered
    await late.declare(Topology(topics=[winner]))


async def test_a_group_misses_nothing_that_comes_after_its_declaration(bench: Bench) -> None:
    """A consumer of aiokafka that begins at the latest misses what comes while it starts."""
    adapter = await bench.adapter()
    await adapter.declare(Topology(topics=[TOPIC]))
    await publish(adapter, TOPIC, "before")

    group = await bench.group(adapter, TOPIC)
    await publish(adapter, TOPIC, "after")

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["after"]


async def test_a_group_may_begin_at_the_earliest_or_at_a_time(bench: Bench) -> None:
    adapter = await bench.adapter()
    await adapter.declare(Topology(topics=[TOPIC]))
    for partition in range(3):
        await publish(adapter, TOPIC, f"old {partition}", partition=partition)
    await asyncio.sleep(0.01)
    moment = datetime.now(UTC)
    await publish(adapter, TOPIC, "new", partition=1)

    early = await bench.group(adapter, TOPIC, "early", start="earliest")
    late = await bench.group(adapter, TOPIC, "late", start=moment)
    later = await bench.group(adapter, TOPIC, "later", start=datetime(2100, 1, 1, tzinfo=UTC))

    assert set(ids(await receive(bench.consumer(adapter, early), 4))) == {"old 0", "old 1", "old 2", "new"}
    assert ids(await receive(bench.consumer(adapter, late), 1)) == ["new"]
    await nothing(bench.consumer(adapter, later))


async def test_declaring_again_moves_no_group(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    await publish(adapter, TOPIC, "one", "two", partition=0)
    consumer = bench.consumer(adapter, group)
    await ack(consumer, (await receive(consumer, 2))[:1])
    await consumer.close()

    for start in ("latest", "earliest"):
        other = await bench.adapter()
        await bench.group(other, TOPIC, start=start)  # type: ignore[arg-type]

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["two"]


async def test_a_position_that_the_broker_has_forgotten_is_an_error_and_no_jump(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging_kafka.topology.LEFT_ALONE", 0.1)
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    await brokers_of(adapter).delete_group(adapter._session.names.group(group))

    with pytest.raises(ConfigurationError, match=r"billing of topic orders.*no position"):
        await bench.consumer(adapter, group).receive(1, 0.1)


async def test_a_group_is_deleted_though_a_member_joins_just_after_its_members_were_put_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, TOPIC, "one")
    await receive(consumer, 1)
    brokers, looked = brokers_of(adapter), list[Sequence[str]]()
    members = brokers.members

    async def before_it_joined(groups: Sequence[str]) -> dict[str, list[str]]:
        looked.append(groups)
        return {} if len(looked) == 1 else await members(groups)

    monkeypatch.setattr(brokers, "members", before_it_joined)

    await adapter.delete_group(group)

    assert len(looked) > 1, "the broker took the member for one of a group that may be deleted"
    assert await brokers.committed(adapter._session.names.group(group)) == {}


async def test_what_another_program_wrote_into_the_registry_stops_nobody(bench: Bench) -> None:
    adapter = await bench.adapter()
    await bench.group(adapter, TOPIC)
    registry = adapter._session.names.registry
    rubbish = [
        (None, b"x"),
        (b"\xff", None),
        (b"group/a", b"{}"),
        (b"topic/orders", b"[]"),
        (b"group/a/b", b"{"),
    ]
    await adapter._session.writer.write([Parcel(registry, 0, key, value, []) for key, value in rubbish])

    other = await bench.adapter()
    await bench.group(other, TOPIC)
    assert [info.group for info in await other.groups()] == ["billing"]


async def test_nothing_is_made_where_topology_is_only_verified(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = GroupSpec(TOPIC, "billing")

    with pytest.raises(TopicNotFound, match="orders"):
        await adapter.declare(Topology(groups=[group], mode="verify"))
    await adapter.declare(Topology(topics=[TOPIC]))
    with pytest.raises(TopicNotFound, match="billing"):
        await adapter.declare(Topology(groups=[group], mode="verify"))

    assert not [
        name for name in await topics_of(adapter, f"messaging.{bench.namespace}.") if "billing" in name
    ]


async def test_an_adopted_topic_is_used_as_it_is(bench: Bench) -> None:
    adapter = await bench.adapter()
    native = f"messaging.{bench.namespace}.their-own"
    await brokers_of(adapter).create([NewTopic(native, 5)])
    topic = TopicSpec("orders", native=native)

    group = await bench.group(adapter, topic)
    await publish(adapter, topic, *map(str, range(10)), partition=7)
    deliveries = await receive(bench.consumer(adapter, group), 10)

    assert {one.partition for one in deliveries} == {7 % 5}
    assert await brokers_of(adapter).partitions([native]) == {native: 5}


async def test_an_adopted_consumer_group_goes_on_where_it_is(bench: Bench) -> None:
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    await adapter.declare(Topology(topics=[topic]))
    await publish(adapter, topic, "handled", "next", partition=0)
    place = Place(adapter._session.names.topic(topic), 0)
    from messaging_kafka.brokers import Committed

    theirs = f"{bench.namespace}-theirs"
    await brokers_of(adapter).commit(
        theirs, {place: Committed(1, "theirs"), Place(place.topic, 1): Committed(0)}
    )

    group = GroupSpec(topic, "billing", native=theirs)
    await adapter.declare(Topology(groups=[group]))

    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["next"]


async def test_a_deleted_group_leaves_nothing_and_may_be_made_again(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, TOPIC, "old")
    await receive(consumer, 1)
    await consumer.close()

    await adapter.delete_group(group)
    await adapter.delete_group(group)

    name = adapter._session.names.group(group)
    assert await brokers_of(adapter).committed(name) == {}
    assert await adapter.groups() == []
    await bench.group(adapter, TOPIC)
    await publish(adapter, TOPIC, "new")
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["new"]


async def test_a_first_position_is_committed_for_every_partition(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    names = adapter._session.names

    committed = await brokers_of(adapter).committed(names.group(group))

    places = {Place(names.topic(TOPIC), number) for number in range(3)}
    assert places <= committed.keys()
    ends = await brokers_of(adapter).offsets(dict.fromkeys(places, library.LATEST))
    assert all(committed[place].offset == ends[place] for place in places)


async def test_defaults_of_the_cluster_delete_nothing_but_by_age(bench: Bench) -> None:
    adapter = await bench.adapter()
    ordered = await bench.group(adapter, TopicSpec("ordered", ordered=True, partitions=1))
    plain = await bench.group(adapter, TopicSpec("plain", partitions=1))
    await adapter.reply([("0/" + "0" * 32, Message(id="1", body=b"", topic=""))])
    names = adapter._session.names
    logs = [
        names.topic(plain.topic),
        names.retry(plain),
        names.dead(plain),
        names.redrive(ordered),
        names.replies,
    ]
    settings = ("cleanup.policy", "retention.bytes", "compression.type")

    written = await written_for(adapter, [*logs, names.registry], settings)

    assert [written[name] for name in logs] == [
        {"cleanup.policy": "delete", "retention.bytes": "-1", "compression.type": "producer"}
    ] * len(logs)
    assert written[names.registry] == {"cleanup.policy": "compact", "compression.type": "producer"}


async def written_for(adapter, topics: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """What was said of each topic itself: neither a default of the cluster nor one of Kafka."""
    of_topic = 1
    request = DescribeConfigsRequest([(2, topic, list(settings)) for topic in topics], include_synonyms=False)
    response = await adapter._session.link.send(request)
    return {
        topic: {name: value for name, value, _, source, *_ in entries if source == of_topic}
        for _, _, _, topic, entries in response.resources
    }


async def test_brokers_that_are_missing_for_all_copies_are_waited_for(bench):
    adapter = await bench.adapter(replication=3, operation_timeout=0.3)

    with pytest.raises(ConnectionFailed, match="3") as refused:
        await adapter.declare(Topology((TopicSpec("orders", partitions=1),), ()))

    assert not is_fatal(refused.value)
