"""The crash guard: marks outlive the process that set them, and only those of processes that ended count."""

import re

import pytest

from messaging.adapter import SUSPECT_AFTER, TopicSpec
from messaging.errors import ConfigurationError
from messaging.message import Ack, Release
from messaging_sqs import releases
from tests.contract.bench import publish, receive, settle
from tests.contract.sqs.support import Bench, intercept

ORDERED = TopicSpec("orders", ordered=True, partitions=2)


async def suspect(consumer):
    """The message, after it came back three times."""
    for _ in range(3):
        (delivery,) = await receive(consumer, 1)
        consumer._held.clear()
        await consumer._hide([delivery], [0])
    (delivery,) = await receive(consumer, 1)
    assert delivery.returns >= 3
    return delivery


def marks(adapter, url) -> list[str]:
    tags = adapter.native.sqs.list_queue_tags(QueueUrl=url).get("Tags", {})
    return [tag for tag in tags if "guard" in tag]


async def crashed(bench: Bench, adapter, group) -> None:
    """A process takes the message, runs it alone, and is gone."""
    other = await bench.adapter()
    member = bench.consumer(other, group)
    (delivery,) = await receive(member, 1)
    assert delivery.guard == "none"
    assert await member.isolate(delivery)
    await member._hide([delivery], [0])  # what the end of its lease does
    member._held.clear()


async def test_a_message_that_ended_two_processes_alone_is_given_up(any_bench: Bench):
    for topic in (TopicSpec("clicks"), ORDERED):
        adapter = await any_bench.adapter()
        group = await any_bench.group(adapter, topic)
        await publish(adapter, topic, "poison", key="k")
        consumer = any_bench.consumer(adapter, group)
        delivery = await suspect(consumer)
        await consumer._hide([delivery], [0])
        await consumer.close()
        await crashed(any_bench, adapter, group)
        await crashed(any_bench, adapter, group)
        (delivery,) = await receive(any_bench.consumer(adapter, group), 1)
        assert delivery.guard == "tripped"


async def test_a_mark_goes_when_its_message_is_settled_or_given_back(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    url = await adapter._topology.queue_url(group)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    delivery = await suspect(consumer)
    for outcome in (Release(), Release(), Ack()):
        assert delivery.guard == "none"
        assert await consumer.isolate(delivery)
        assert len(marks(adapter, url)) == 1
        await settle(consumer, [delivery], outcome)
        assert marks(adapter, url) == []
        if not isinstance(outcome, Ack):
            (delivery,) = await receive(consumer, 1)


async def test_a_member_that_leaves_in_peace_takes_its_marks_with_it(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    url = await adapter._topology.queue_url(group)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    assert await consumer.isolate(await suspect(consumer))
    await consumer.close()
    assert marks(adapter, url) == []


async def test_marks_that_crashed_processes_left_never_fill_the_queue(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    url = await adapter._topology.queue_url(group)
    for number in range(35):
        tags = {f"messaging-guard-{number}": f"{1000 + number}/1/gone"}
        adapter.native.sqs.tag_queue(QueueUrl=url, Tags=tags)
    await publish(adapter, group.topic, "one")
    consumer = any_bench.consumer(adapter, group)
    assert await consumer.isolate(await suspect(consumer))
    left = marks(adapter, url)
    assert len(left) <= 31
    assert "messaging-guard-34" in left
    assert "messaging-guard-0" not in left


@pytest.mark.parametrize("topic", [TopicSpec("clicks"), ORDERED], ids=["shared", "ordered"])
async def test_clean_departures_make_no_suspect_and_a_crash_counts_on(any_bench: Bench, topic):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, topic)
    await publish(adapter, topic, "waiting", key="k")
    for _ in range(6):
        member = any_bench.consumer(adapter, group)
        (delivery,) = await receive(member, 1)
        assert delivery.returns < SUSPECT_AFTER
        await member.close()
    for _ in range(SUSPECT_AFTER):
        crashing = any_bench.consumer(adapter, group)
        (delivery,) = await receive(crashing, 1)
        crashing._held.clear()
        await crashing._hide([delivery], [0])  # what the end of its lease does
    (delivery,) = await receive(any_bench.consumer(adapter, group), 1)
    assert delivery.returns >= SUSPECT_AFTER


async def test_what_departures_recorded_never_fills_the_tags_of_a_queue(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    url = await adapter._topology.queue_url(group)
    for number in range(12):
        adapter.native.sqs.tag_queue(QueueUrl=url, Tags={f"messaging-released-{number}": "1:none"})
    await publish(adapter, ORDERED, "waiting", key="k")
    for _ in range(4):
        member = any_bench.consumer(adapter, group)
        (delivery,) = await receive(member, 1)
        await member.close()
    assert delivery.returns < SUSPECT_AFTER
    tags = adapter.native.sqs.list_queue_tags(QueueUrl=url)["Tags"]
    assert len([tag for tag in tags if tag.startswith("messaging-released-")]) <= 10


def test_the_tags_of_a_departure_are_few_and_legal():
    uncounted = {f"message-{number}": number % 7 for number in range(2000)}
    tags = releases.written(uncounted, 1_800_000_000.0, "abc")
    assert len(tags) <= releases.MOST_TAGS
    assert all(re.fullmatch(r"[A-Za-z0-9:+/]{1,256}", value) for value in tags.values())
    known = releases.read({**tags, "messaging-released-x": "no number", "other": "9:AAAA"})
    right = [one for one, number in uncounted.items() if known.get(releases.hash_of(one)) == number]
    assert len(right) >= 500


async def test_without_the_permission_a_suspect_runs_alone_unmarked(bench: Bench, monkeypatch, caplog):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    delivery = await suspect(consumer)

    async def deny(call, parameters):
        raise ConfigurationError("not permitted")

    intercept(adapter, monkeypatch, "tag_queue", deny)
    assert await consumer.isolate(delivery)
    assert "unmarked" in caplog.text
