"""What keeps SNS from delivering is told: it drops without a word."""

import json

import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.errors import NoGroup
from messaging_sqs.delivery import delivery_policy, lets_send
from messaging_sqs.envelopes import opened
from tests.contract.bench import outgoing, publish, receive
from tests.contract.sqs.support import Bench, intercept

TOPIC = "arn:aws:sns:eu-west-1:000000000000:messaging-topic-orders"
QUEUE = "arn:aws:sqs:eu-west-1:000000000000:messaging-queue-orders-billing"
ALLOW = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["SQS:*"], "Resource": "*"}
LIKE = {"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:*:messaging-*"}}
ELSEWHERE = {"ArnEquals": {"AWS:SourceArn": ["arn:aws:sns:eu-west-1:000000000000:other"]}}


@pytest.mark.parametrize(
    ("policy", "lets"),
    [
        (None, False),
        ("", False),
        (json.dumps({"Statement": []}), False),
        (delivery_policy(QUEUE, TOPIC), True),
        (delivery_policy(QUEUE, f"{TOPIC}2"), False),
        (json.dumps({"Statement": ALLOW}), True),
        (json.dumps({"Statement": {**ALLOW, "Condition": LIKE}}), True),
        (json.dumps({"Statement": [{**ALLOW, "Condition": ELSEWHERE}]}), False),
        (json.dumps({"Statement": [{**ALLOW, "Action": "sqs:ReceiveMessage"}]}), False),
        (json.dumps({"Statement": [{**ALLOW, "Principal": {"AWS": "arn:aws:iam::1:role/x"}}]}), False),
        (json.dumps({"Statement": [{**ALLOW, "Effect": "Deny"}]}), False),
        ("not as AWS writes it", True),
    ],
)
def test_whether_a_policy_may_let_a_topic_send(policy, lets):
    assert lets_send(policy, TOPIC) is lets


async def test_a_queue_whose_policy_lets_no_topic_send_is_told(bench: Bench, caplog):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    assert [info.stuck for info in (await adapter.health()).groups] == [None]
    url = await adapter._topology.queue_url(group)
    adapter.native.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": ""})
    (info,) = (await adapter.health()).groups
    assert "sqs:SendMessage" in (info.stuck or "")
    await adapter.declare(Topology(groups=[group], mode="verify"))
    assert "sqs:SendMessage" in caplog.text


async def test_a_group_whose_subscription_was_removed_is_told_until_it_is_declared(bench: Bench):
    adapter = await bench.adapter()
    group, other = await bench.group(adapter), await bench.group(adapter, name="other")
    sns, arn = adapter.native.sns, adapter._topology.state(group.topic).arn
    for one in sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]:
        if one["Endpoint"].endswith("billing"):
            sns.unsubscribe(SubscriptionArn=one["SubscriptionArn"])
    told = {info.group: info.stuck for info in (await adapter.health()).groups}
    assert told.pop("other") is None
    assert "is not subscribed" in (told.pop("billing") or "")
    assert {info.group for info in await adapter.groups()} == {group.name, other.name}
    await adapter.declare(Topology(groups=[group]))
    assert all(info.stuck is None for info in (await adapter.health()).groups)


async def test_a_filter_policy_is_told(bench: Bench, caplog):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    sns, arn = adapter.native.sns, adapter._topology.state(group.topic).arn
    (one,) = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=one["SubscriptionArn"],
        AttributeName="FilterPolicy",
        AttributeValue='{"colour": ["red"]}',
    )
    assert "filter policy" not in caplog.text
    await adapter.declare(Topology(groups=[group], mode="verify"))
    assert "filter policy" in caplog.text


@pytest.mark.parametrize("shown", ["Deleted", "PendingConfirmation"])
async def test_a_subscription_that_delivers_nothing_is_none(bench: Bench, monkeypatch, shown):
    """SNS lists a deleted one for a while, and one that waits for its confirmation for days."""
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", partitions=2))

    async def listed(call, parameters):
        answer = await call(**parameters)
        for one in answer["Subscriptions"]:
            one["SubscriptionArn"] = shown
        return answer

    with monkeypatch.context() as patched:
        intercept(adapter, patched, "list_subscriptions_by_topic", listed)
        await adapter.declare(Topology(groups=[group]))
        (result,) = await adapter.publish([outgoing(group.topic, "one", mandatory=True)])
        assert isinstance(result, NoGroup)
    await publish(adapter, group.topic, "two")
    assert len(await receive(bench.consumer(adapter, group), 1)) == 1


@pytest.mark.parametrize("ordered", [False, True])
async def test_messages_that_sns_wraps_since_somebody_changed_that_arrive_as_they_were(
    bench: Bench, caplog, ordered
):
    adapter = await bench.adapter()
    group = await bench.group(adapter, TopicSpec("orders", ordered=ordered, partitions=2))
    sns, arn = adapter.native.sns, adapter._topology.state(group.topic).arn
    (one,) = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=one["SubscriptionArn"], AttributeName="RawMessageDelivery", AttributeValue="false"
    )
    await publish(adapter, group.topic, "one", key="a", headers={"tenant": "ours"}, body=b"\xff{")
    consumer = bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    message = delivery.message
    assert (message.id, message.key, message.headers) == ("one", "a", {"tenant": "ours"})
    assert message.body == b"\xff{"
    assert "RawMessageDelivery" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        '{"Type": "Notification", "Message": "{}", "MessageAttributes": {}}',
        '{"Type": "Notification", "Message": 1, "MessageAttributes": {"messaging": {"Value": "{}"}}}',
        '{"Type": "Notification", "Message": "{}", "MessageAttributes": ["messaging"]}',
        '{"Type": "Notification", "Message": "{}", "MessageAttributes": {"messaging": "{}"}}',
        '{"Type": "Order", "Message": "{}", "MessageAttributes": {"messaging": {"Value": "{}"}}}',
        '{"messaging"',
    ],
)
def test_an_envelope_of_others_is_a_message_of_theirs(body):
    message = {"Body": body}
    assert opened(message) is message
