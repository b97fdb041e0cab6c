"""Queues that are gone, and queues of other accounts: they are nobody's trouble but their own."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from messaging.adapter import TopicSpec, Topology
from messaging.message import Receipt
from messaging_sqs.settings import SQSSettings
from tests.contract.bench import ids, outgoing, publish, receive
from tests.contract.sqs.support import Bench

ELSEWHERE = "111111111111"
"""LocalStack takes an access key of twelve digits for the account."""


class Theirs:
    """A queue of another account, and the name that its ARN and its URL give it."""

    def __init__(self, sqs: Any, region: str) -> None:
        self.sqs = sqs
        name = f"theirs-{secrets.token_hex(4)}"
        self.arn = f"arn:aws:sqs:{region}:{ELSEWHERE}:{name}"
        self.urls = [sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]]
        redrive = json.dumps({"deadLetterTargetArn": f"{self.arn}-dead", "maxReceiveCount": "100"})
        self.url = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
        self.urls.append(self.url)

    def received(self) -> int:
        return len(self.sqs.receive_message(QueueUrl=self.url, WaitTimeSeconds=5).get("Messages", ()))


@pytest.fixture
def theirs(sqs_url: str) -> Iterator[Theirs]:
    settings = SQSSettings.from_url(sqs_url)
    sqs = boto3.client(
        "sqs",
        region_name=settings.region,
        endpoint_url=settings.endpoint_url,
        aws_access_key_id=ELSEWHERE,
        aws_secret_access_key="test",
    )
    assert settings.region is not None
    made = Theirs(sqs, settings.region)
    yield made
    for url in made.urls:
        sqs.delete_queue(QueueUrl=url)


async def test_a_group_whose_queue_is_gone_keeps_no_message_from_the_others(bench: Bench):
    adapter = await bench.adapter()
    gone, group = await bench.group(adapter, name="gone"), await bench.group(adapter)
    adapter.native.sqs.delete_queue(QueueUrl=await adapter._topology.queue_url(gone))
    fresh = await bench.adapter()
    await fresh.declare(Topology(topics=[group.topic]))
    await publish(fresh, group.topic, "one")
    assert [info.group for info in (await fresh.health()).groups] == ["billing"]
    assert ids(await receive(bench.consumer(adapter, group), 1)) == ["one"]


async def test_a_topic_that_another_account_subscribes_to_is_published_to(bench: Bench, theirs: Theirs):
    adapter = await bench.adapter()
    sns = adapter.native.sns
    arn = sns.create_topic(Name=f"adopted-{bench.namespace}")["TopicArn"]
    sns.subscribe(
        TopicArn=arn, Protocol="sqs", Endpoint=theirs.arn, Attributes={"RawMessageDelivery": "true"}
    )
    try:
        topic = TopicSpec("orders", native=arn)
        await adapter.declare(Topology(topics=[topic]))
        await publish(adapter, topic, "one")
        assert theirs.received() == 1
    finally:
        sns.delete_topic(TopicArn=arn)


async def test_a_queue_of_another_account_is_adopted_by_its_arn_or_its_url(bench: Bench, theirs: Theirs):
    adapter = await bench.adapter()
    for native in (theirs.arn, theirs.url):
        topic = TopicSpec("jobs", native=native)
        await adapter.declare(Topology(topics=[topic]))
        (result,) = await adapter.publish([outgoing(topic, "one")])
        assert isinstance(result, Receipt)
        assert theirs.received() == 1


async def test_replies_arrive_though_a_queue_of_another_account_was_adopted(bench: Bench, theirs: Theirs):
    inbox = await (await bench.adapter()).reply_inbox()
    responder = await bench.adapter()
    topic = TopicSpec("jobs", native=theirs.arn)
    await responder.declare(Topology(topics=[topic]))
    assert await responder.reply([(inbox.address, outgoing(topic, "reply").message)]) == [None]
    assert [reply.id for reply in await inbox.receive(1, 5.0)] == ["reply"]
    await inbox.close()
