"""Topics and groups: the services' record counts, nothing is altered, what would reach nobody is told."""

import asyncio
import json
import time
from contextlib import suppress

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_sqs.connection import Absent
from messaging_sqs.names import Names
from messaging_sqs.settings import SQSSettings
from tests.contract.bench import ids, publish, receive
from tests.contract.sqs.support import Bench, attributes_of, intercept

UNORDERED = TopicSpec("orders", partitions=2)
ORDERED = TopicSpec("orders", ordered=True, partitions=2)


def test_names_are_legal_and_different():
    names = Names(SQSSettings(namespace="stage.1"))
    long = "x" * 199
    found = set()
    topics = ["a", "a.b", "a-b", "a_b", "A", f"{long}1", f"{long}2"]
    for topic in topics:
        for group in ("b", "dead", long):
            for ordered in (False, True):
                spec = GroupSpec(TopicSpec(topic, ordered=ordered), group, ordered)
                found |= {names.queue(spec), names.dead(spec), names.topic(spec.topic)}
    assert len(found) == len(topics) * 3 * 2 * 2 + len(topics) * 2
    for name in found:
        assert len(name) <= 80 or "-topic-" in name
        assert name.removesuffix(".fifo").replace("-", "").replace("_", "").isalnum()
        assert name.startswith("messaging-")


async def test_a_queue_lets_only_its_topic_send_to_it(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    policy = json.loads(attributes_of(adapter, await adapter._topology.queue_url(group), "Policy")["Policy"])
    (statement,) = policy["Statement"]
    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": adapter._topology.state(group.topic).arn}
    }


@pytest.mark.parametrize(
    "other", [TopicSpec("orders", partitions=3), TopicSpec("orders", ordered=True, partitions=2)]
)
async def test_another_description_of_a_topic_is_refused_and_both_are_named(any_bench: Bench, other):
    adapter = await any_bench.adapter()
    await any_bench.group(adapter, UNORDERED)
    with pytest.raises(ConfigurationError, match="2 partitions and is unordered") as error:
        await (await any_bench.adapter()).declare(Topology(topics=[other]))
    assert ("3 partitions" in str(error.value)) == (other.partitions == 3)


async def test_a_group_of_another_order_is_refused(any_bench: Bench):
    adapter = await any_bench.adapter()
    await any_bench.group(adapter, ORDERED)
    with pytest.raises(ConfigurationError, match="ordered"):
        await adapter.declare(Topology(groups=[GroupSpec(ORDERED, "billing", ordered=False)]))


async def test_declaring_at_once_makes_one(any_bench: Bench):
    adapters = [await any_bench.adapter() for _ in range(4)]
    group = GroupSpec(UNORDERED, "billing")
    any_bench.groups.append(group)
    await asyncio.gather(*(adapter.declare(Topology(groups=[group])) for adapter in adapters))
    await publish(adapters[0], UNORDERED, "one")
    assert ids(await receive(any_bench.consumer(adapters[1], group), 1)) == ["one"]


async def test_a_queue_that_is_not_subscribed_is_told_or_mended(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    arn = adapter._topology.state(group.topic).arn
    sns = adapter.native.sns
    (subscription,) = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
    with pytest.raises(TopicNotFound, match="subscribed"):
        await adapter.declare(Topology(groups=[group], mode="verify"))
    await adapter.declare(Topology(groups=[group]))
    await publish(adapter, group.topic, "one")
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["one"]


async def test_a_subscription_that_wraps_messages_is_refused(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    arn = adapter._topology.state(group.topic).arn
    sns = adapter.native.sns
    (subscription,) = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"],
        AttributeName="RawMessageDelivery",
        AttributeValue="false",
    )
    with pytest.raises(ConfigurationError, match="RawMessageDelivery"):
        await adapter.declare(Topology(groups=[group]))


@pytest.mark.parametrize("retention", [30.0, 15 * 86_400.0])
async def test_a_retention_that_sqs_does_not_have_is_refused(any_bench: Bench, retention):
    adapter = await any_bench.adapter()
    with pytest.raises(ConfigurationError, match="retention"):
        await any_bench.group(adapter, TopicSpec("orders", retention=retention))


async def test_a_retention_is_that_of_the_queue(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", retention=3600.0))
    url = await adapter._topology.queue_url(group)
    assert attributes_of(adapter, url, "MessageRetentionPeriod")["MessageRetentionPeriod"] == "3600"


async def test_a_group_that_is_deleted_leaves_nothing_and_absent_is_no_error(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await adapter.delete_group(group)
    await adapter.delete_group(group)
    assert await adapter._topology.queues.named_like(adapter._topology.names.queues_of(UNORDERED)) == []
    if arn := adapter._topology.state(UNORDERED).arn:
        assert adapter.native.sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"] == []
    assert await adapter.groups() == []


async def test_groups_tell_what_waits_and_what_is_dead(any_bench: Bench):
    adapter = await any_bench.adapter()
    await any_bench.group(adapter)
    await any_bench.group(adapter, name="search")
    await publish(adapter, UNORDERED, *"abc")
    found = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(10):  # SNS hands on to its queues what it has confirmed
            while found != {"billing": (3, 0), "search": (3, 0)}:
                found = {info.group: (info.lag, info.dead_letters) for info in await adapter.groups()}
    assert found == {"billing": (3, 0), "search": (3, 0)}


async def test_without_sns_a_new_group_is_ready_when_every_publisher_knows_it(strict: Bench):
    url = strict.url.replace("groups_refresh=0", "groups_refresh=2")
    publisher, declarer = await strict.adapter(url), await strict.adapter(url)
    await strict.group(publisher)
    await publish(publisher, UNORDERED, "before")
    started = time.monotonic()
    search = await strict.group(declarer, name="search")
    assert time.monotonic() - started >= 1
    await publish(publisher, UNORDERED, "after")
    assert ids(await receive(strict.consumer(declarer, search), 1)) == ["after"]


async def test_health_tells_that_nobody_answers(sqs_url):
    from messaging.adapter import AdapterContext
    from messaging.clock import SystemClock
    from messaging_sqs import SQSAdapter

    adapter = SQSAdapter.from_url(sqs_url, AdapterContext(clock=SystemClock(), namespace="health"))
    await adapter.open()
    try:
        async with asyncio.timeout(15):
            while not (await adapter.health()).connected:  # it may stand still for a moment
                pass
        await adapter.declare(Topology(topics=[UNORDERED], mode="off"))

        async def silence(*_: object, **__: object) -> object:
            await asyncio.sleep(10)
            return {}

        adapter._connection.call = silence  # type: ignore[method-assign]
        started = time.monotonic()
        health = await adapter.health()
        assert time.monotonic() - started < 8
        assert not health.connected
        assert health.error is not None
        assert "no answer" in health.error
    finally:
        with suppress(Exception):
            await adapter.close()


async def test_a_group_is_declared_though_the_service_does_not_know_its_new_queues_at_once(
    bench: Bench, monkeypatch
):
    adapter = await bench.adapter()
    asked: set[str] = set()

    async def late(call, parameters):
        if parameters["QueueUrl"] not in asked:
            asked.add(parameters["QueueUrl"])
            raise Absent("no such queue yet")
        return await call(**parameters)

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "get_queue_attributes", late)
        group = await bench.group(adapter)
    assert len(asked) == 2
    await publish(adapter, group.topic, "one")
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["one"]
