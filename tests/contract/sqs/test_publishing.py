"""Publishing: one result each, in order, nothing lost in silence, nothing sent that would be."""

from datetime import UTC, datetime, timedelta

import pytest

from messaging.adapter import TopicSpec, Topology, Unrouted
from messaging.errors import (
    ConnectionFailed,
    MessageTooLarge,
    NoGroup,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging.message import Receipt
from messaging_sqs.connection import Interrupted
from tests.contract.bench import ack, handled, ids, outgoing, publish, receive
from tests.contract.sqs.support import Bench, Refusal, intercept

ORDERED = TopicSpec("orders", ordered=True, partitions=2)
UNORDERED = TopicSpec("orders", partitions=2)
KIB = 1024


def failed_entry(id: str, code: str, *, sender: bool = False) -> dict:
    return {"Id": id, "Code": code, "Message": "because", "SenderFault": sender}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x0b control",
        "\ufffe".encode(),
        b"a\r\nb",
        bytes(range(256)),
        "größe 🦜\t\n".encode(),
        b"\xff",
    ],
)
async def test_what_the_services_would_lose_in_silence_arrives(any_bench: Bench, body):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter)
    await publish(adapter, group.topic, "one", body=body, headers={"kept": "\x01 \ufffe größe"})
    (delivery,) = await receive(any_bench.consumer(adapter, group), 1)
    assert delivery.message.body == body
    assert delivery.message.headers == {"kept": "\x01 \ufffe größe"}


@pytest.mark.parametrize("key", ["a b", "größe 🦜", "x" * 500, "", b"\xff\x00", "sha256:abc", "\x01"])
async def test_a_key_that_is_no_message_group_arrives_in_order(any_bench: Bench, key):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, group.topic, *"abc", key=key)
    deliveries = await handled(any_bench.consumer(adapter, group), 3)
    assert ids(deliveries) == ["a", "b", "c"]
    assert {delivery.message.key for delivery in deliveries} == {key}


async def test_many_messages_go_in_batches_of_ten(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    sizes: list[int] = []

    async def count(call, parameters):
        sizes.append(len(parameters["PublishBatchRequestEntries"]))
        return await call(**parameters)

    intercept(adapter, monkeypatch, "publish_batch", count)
    await publish(adapter, group.topic, *(f"{number}" for number in range(64)))
    assert sorted(sizes) == [4, 10, 10, 10, 10, 10, 10]


async def test_a_batch_never_has_more_bytes_than_sns_takes(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    sizes: list[int] = []

    async def count(call, parameters):
        sizes.append(sum(len(entry["Message"]) for entry in parameters["PublishBatchRequestEntries"]))
        return await call(**parameters)

    intercept(adapter, monkeypatch, "publish_batch", count)
    await publish(adapter, group.topic, *(f"{number}" for number in range(10)), body=b"x" * 60 * KIB)
    assert max(sizes) <= 256 * KIB
    assert len(await receive(bench.consumer(adapter, group), 10)) == 10


async def test_one_entry_may_fail_alone(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)

    async def fail_the_second(call, parameters):
        entries = parameters["PublishBatchRequestEntries"]
        answer = await call(**{**parameters, "PublishBatchRequestEntries": [entries[0], entries[2]]})
        return {**answer, "Failed": [failed_entry(entries[1]["Id"], "InvalidParameter", sender=True)]}

    intercept(adapter, monkeypatch, "publish_batch", fail_the_second)
    results = await adapter.publish([outgoing(group.topic, id) for id in "abc"])
    assert isinstance(results[0], Receipt)
    assert isinstance(results[1], PublishError)
    assert "b" in str(results[1])
    assert isinstance(results[2], Receipt)
    assert sorted(ids(await receive(bench.consumer(adapter, group), 2))) == ["a", "c"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConnectionFailed("throttled"), PublishError), (Interrupted("lost"), PublishUncertain)],
)
async def test_a_failure_is_certain_or_uncertain_by_what_is_known(bench: Bench, monkeypatch, error, kind):
    adapter = await bench.adapter()
    group = await bench.group(adapter)

    async def fail(call, parameters):
        raise error

    intercept(adapter, monkeypatch, "publish_batch", fail)
    (result,) = await adapter.publish([outgoing(group.topic, "one")])
    assert type(result) is kind


async def test_what_follows_a_failed_message_of_its_key_is_not_stored(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)

    async def fail_a2(call, parameters):
        entries = parameters["PublishBatchRequestEntries"]
        good = [entry for entry in entries if entry["Message"] != "a2"]
        answer = await call(**{**parameters, "PublishBatchRequestEntries": good})
        bad = [failed_entry(entry["Id"], "InternalError") for entry in entries if entry["Message"] == "a2"]
        return {**answer, "Failed": bad}

    intercept(adapter, monkeypatch, "publish_batch", fail_a2)
    results = await adapter.publish(
        [outgoing(group.topic, id, key=id[0]) for id in ("a1", "b1", "a2", "b2", "a3")]
    )
    assert [isinstance(result, Receipt) for result in results] == [True, True, False, True, False]
    assert isinstance(results[2], PublishUncertain)
    assert not isinstance(results[4], PublishUncertain)
    assert sorted(ids(await handled(bench.consumer(adapter, group), 3))) == ["a1", "b1", "b2"]


async def test_a_message_that_is_too_large_is_refused_and_its_successors_with_it(any_bench: Bench):
    adapter = await any_bench.adapter(max_message_bytes=10 * KIB)
    group = await any_bench.group(adapter, ORDERED)
    results = await adapter.publish(
        [
            outgoing(group.topic, "a1", key="a"),
            outgoing(group.topic, "a2", key="a", body=b"x" * 20 * KIB),
            outgoing(group.topic, "a3", key="a"),
            outgoing(group.topic, "b1", key="b"),
        ]
    )
    assert [type(result) for result in results] == [Receipt, MessageTooLarge, PublishError, Receipt]
    assert sorted(ids(await receive(any_bench.consumer(adapter, group), 2))) == ["a1", "b1"]


async def test_what_is_behind_a_message_that_wants_a_group_is_not_stored_without_one(any_bench: Bench):
    adapter = await any_bench.adapter()
    await adapter.declare(Topology(topics=[ORDERED]))
    results = await adapter.publish(
        [
            outgoing(ORDERED, "a1", key="a"),
            outgoing(ORDERED, "a2", key="a", mandatory=True),
            outgoing(ORDERED, "a3", key="a"),
            outgoing(ORDERED, "b1", key="b"),
        ]
    )
    assert [type(result) for result in results] == [Unrouted, NoGroup, PublishError, Unrouted]
    assert "a2" in str(results[2])
    await any_bench.group(adapter, ORDERED)


async def test_where_groups_cannot_be_seen_nothing_is_stored_behind_a_message_that_wants_one(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    Refusal(adapter.native.sns, "ListSubscriptionsByTopic", 403, "AuthorizationError")
    results = await adapter.publish(
        [
            outgoing(ORDERED, "a1", key="a"),
            outgoing(ORDERED, "a2", key="a", mandatory=True),
            outgoing(ORDERED, "a3", key="a"),
            outgoing(ORDERED, "b1", key="b"),
        ]
    )
    assert [isinstance(result, Receipt) for result in results] == [True, False, False, True]
    assert sorted(ids(await receive(bench.consumer(adapter, group), 2))) == ["a1", "b1"]


async def test_the_size_counts_as_sqs_counts_it(bench: Bench):
    adapter = await bench.adapter(max_message_bytes=10 * KIB)
    group = await bench.group(adapter)
    results = await adapter.publish(
        [
            outgoing(group.topic, "text", body=b"x" * 9 * KIB),
            outgoing(group.topic, "binary", body=b"\xff" * 9 * KIB),
            outgoing(group.topic, "headers", headers={"large": "ä" * 2 * KIB}),
        ]
    )
    assert [type(result) for result in results] == [Receipt, MessageTooLarge, MessageTooLarge]


async def test_a_message_larger_than_sns_takes_goes_to_every_group_and_no_order_is_broken(bench: Bench):
    adapter = await bench.adapter()
    billing, search = await bench.group(adapter), await bench.group(adapter, name="search")
    ordered = await bench.group(adapter, TopicSpec("ledger", ordered=True))
    await publish(adapter, billing.topic, "large", body=b"x" * 900 * KIB)
    for group in (billing, search):
        (delivery,) = await receive(bench.consumer(adapter, group), 1)
        assert len(delivery.message.body) == 900 * KIB
    (refused,) = await adapter.publish([outgoing(ordered.topic, "large", key="a", body=b"x" * 900 * KIB)])
    assert type(refused) is MessageTooLarge


async def test_the_largest_message_that_is_allowed_can_be_tried_again(bench: Bench):
    from messaging.message import Retry
    from tests.contract.bench import settle

    adapter = await bench.adapter()
    group = await bench.group(adapter)
    most = adapter.capabilities.max_message_bytes
    (result,) = await adapter.publish([outgoing(group.topic, "one", body=b"x" * (most - 400))])
    assert isinstance(result, Receipt), result
    consumer = bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    await settle(consumer, [delivery], Retry(), failure='{"why": "' + "y" * 2000 + '"}')
    (again,) = await receive(consumer, 1)
    assert (again.attempt, len(again.message.body)) == (2, most - 400)


async def test_a_topic_without_a_group_is_told(any_bench: Bench):
    adapter = await any_bench.adapter()
    await adapter.declare(Topology(topics=[UNORDERED]))
    allowed, refused = await adapter.publish(
        [outgoing(UNORDERED, "allowed"), outgoing(UNORDERED, "mandatory", mandatory=True)]
    )
    assert isinstance(allowed, Unrouted)
    assert isinstance(refused, NoGroup)
    await any_bench.group(adapter, UNORDERED)
    (result,) = await adapter.publish([outgoing(UNORDERED, "one", mandatory=True)])
    assert type(result) is Receipt


async def test_a_topic_that_does_not_exist_is_told(any_bench: Bench):
    adapter = await any_bench.adapter()
    await adapter.declare(Topology(topics=[UNORDERED], mode="off"))
    (result,) = await adapter.publish([outgoing(UNORDERED, "one")])
    assert isinstance(result, TopicNotFound)


async def test_without_sns_what_only_some_groups_have_is_uncertain(strict: Bench, monkeypatch):
    adapter = await strict.adapter()
    billing, search = await strict.group(adapter), await strict.group(adapter, name="search")
    url = await adapter._topology.queue_url(search)

    async def fail_for_search(call, parameters):
        if parameters["QueueUrl"] == url:
            raise ConnectionFailed("throttled")
        return await call(**parameters)

    intercept(adapter, monkeypatch, "send_message_batch", fail_for_search)
    (result,) = await adapter.publish([outgoing(billing.topic, "one")])
    assert isinstance(result, PublishUncertain)
    assert "1 of 2" in str(result)
    assert ids(await receive(strict.consumer(adapter, billing), 1)) == ["one"]


async def test_a_group_that_gives_order_up_gets_an_ordered_topic_too(any_bench: Bench):
    adapter = await any_bench.adapter()
    ordered = await any_bench.group(adapter, ORDERED)
    loose = await any_bench.group(adapter, ORDERED, "search", ordered=False)
    await publish(adapter, ORDERED, *"abc", key="k")
    assert ids(await handled(any_bench.consumer(adapter, ordered), 3)) == ["a", "b", "c"]
    assert sorted(ids(await receive(any_bench.consumer(adapter, loose), 3))) == ["a", "b", "c"]


async def test_two_messages_of_one_id_are_two(any_bench: Bench):
    adapter = await any_bench.adapter()
    group = await any_bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "same", key="k")
    await publish(adapter, ORDERED, "same", key="k")
    assert ids(await handled(any_bench.consumer(adapter, group), 2)) == ["same", "same"]


async def test_an_adopted_topic_and_queue_are_used_and_nothing_is_made_beside_them(bench: Bench):
    from messaging.adapter import GroupSpec

    adapter = await bench.adapter()
    sqs, sns = adapter.native.sqs, adapter.native.sns
    theirs = f"theirs-{bench.namespace}"
    arn = sns.create_topic(Name=theirs)["TopicArn"]
    dead = sqs.create_queue(QueueName=f"{theirs}-dead")["QueueUrl"]
    dead_arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = f'{{"deadLetterTargetArn":"{dead_arn}","maxReceiveCount":"100"}}'
    queue = sqs.create_queue(QueueName=theirs, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    queue_arn = dead_arn.removesuffix("-dead")
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue_arn, Attributes={"RawMessageDelivery": "true"})
    before = set(sqs.list_queues()["QueueUrls"])
    try:
        topic = TopicSpec("orders", native=arn)
        group = GroupSpec(topic, "billing", native=queue_arn)
        await adapter.declare(Topology(groups=[group]))
        await publish(adapter, topic, "one")
        consumer = bench.consumer(adapter, group)
        await ack(consumer, await receive(consumer, 1))
        straight = TopicSpec("jobs", native=queue_arn)
        await adapter.declare(Topology(topics=[straight]))
        await publish(adapter, straight, "two")
        assert ids(await receive(consumer, 1)) == ["two"]
        assert f"{bench.namespace}--" not in "".join(set(sqs.list_queues()["QueueUrls"]) - before)
    finally:
        sns.delete_topic(TopicArn=arn)
        for url in (queue, dead):
            sqs.delete_queue(QueueUrl=url)


async def test_a_publish_delay_is_taken_by_the_queue_itself_where_messages_go_to_queues(
    strict: Bench, monkeypatch
):
    adapter = await strict.adapter()
    group = await strict.group(adapter)
    consumer = strict.consumer(adapter, group)
    due = datetime.now(UTC) + timedelta(seconds=2.4)
    sent: list[dict] = []
    left: list[int] = []

    async def note(call, parameters):
        sent.extend(parameters["Entries"])
        left.append(max(0, int((due - datetime.now(UTC)).total_seconds())))
        return await call(**parameters)

    intercept(adapter, monkeypatch, "send_message_batch", note)
    await publish(adapter, group.topic, "late", not_before=due)
    (delivery,) = await receive(consumer, 1)
    assert datetime.now(UTC) + timedelta(seconds=delivery.hold + 0.01) >= due
    assert (delivery.attempt, delivery.token.count) == (1, 1)
    (entry,) = sent
    # What is left when it is sent, in whole seconds: a slow machine asks for less than two.
    assert left[0] <= entry["DelaySeconds"] <= 2
    await publish(adapter, group.topic, "far", not_before=due + timedelta(days=2))
    assert sent[-1]["DelaySeconds"] == 900


async def test_a_publish_delay_that_sns_does_not_know_waits_in_the_queue_uncounted(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    due = datetime.now(UTC) + timedelta(seconds=2.4)
    await publish(adapter, group.topic, "late", not_before=due)
    (delivery,) = await receive(consumer, 1)
    assert datetime.now(UTC) + timedelta(seconds=delivery.hold + 0.01) >= due
    assert (delivery.attempt, delivery.returns, delivery.message.not_before) == (1, 0, due)
