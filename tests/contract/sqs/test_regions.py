"""Queues and topics of another region: one of the same name here is not what was meant, and gets nothing."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.errors import ConfigurationError, MessageTooLarge
from messaging_sqs.names import region_of
from messaging_sqs.settings import SQSSettings
from tests.contract.bench import outgoing, publish
from tests.contract.sqs.support import Bench, attributes_of

ELSEWHERE = "eu-west-1"


@dataclass
class Both:
    """A queue of one name in two regions, and a topic of each region."""

    here: str
    there: str
    arn: str
    topic_here: str
    topic_there: str


@pytest.fixture
def both(sqs_url: str) -> Iterator[Both]:
    settings, name = SQSSettings.from_url(sqs_url), f"both-{secrets.token_hex(4)}"

    def client(service: str, region: str | None) -> Any:
        return boto3.client(service, region_name=region, endpoint_url=settings.endpoint_url)

    queues = [client("sqs", region) for region in (settings.region, ELSEWHERE)]
    topics = [client("sns", region) for region in (settings.region, ELSEWHERE)]
    here, there = (sqs.create_queue(QueueName=name)["QueueUrl"] for sqs in queues)
    found = queues[1].get_queue_attributes(QueueUrl=there, AttributeNames=["QueueArn"])
    arns = [sns.create_topic(Name=name)["TopicArn"] for sns in topics]
    yield Both(here, there, found["Attributes"]["QueueArn"], *arns)
    for sqs, url in zip(queues, (here, there), strict=True):
        sqs.delete_queue(QueueUrl=url)
    for sns, arn in zip(topics, arns, strict=True):
        sns.delete_topic(TopicArn=arn)


@pytest.mark.parametrize("native", ["arn", "there", "topic_there"])
async def test_what_is_in_another_region_is_not_adopted(bench: Bench, both: Both, native):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=1, native=getattr(both, native))
    with pytest.raises(ConfigurationError, match=f"in region {ELSEWHERE}, .* sqs://{ELSEWHERE}"):
        await adapter.declare(Topology(topics=[topic]))


async def test_a_group_of_another_region_is_not_adopted(bench: Bench, both: Both):
    adapter = await bench.adapter()
    group = GroupSpec(TopicSpec("orders", partitions=1), "billing", native=both.arn)
    with pytest.raises(ConfigurationError, match=f"in region {ELSEWHERE}"):
        await adapter.declare(Topology(groups=[group]))


async def test_a_message_larger_than_sns_takes_goes_to_no_namesake_of_a_subscribed_queue(
    bench: Bench, both: Both
):
    adapter = await bench.adapter()
    adapter.native.sns.subscribe(
        TopicArn=both.topic_here,
        Protocol="sqs",
        Endpoint=both.arn,
        Attributes={"RawMessageDelivery": "true"},
    )
    topic = TopicSpec("orders", partitions=1, native=both.topic_here)
    await adapter.declare(Topology(topics=[topic]))
    await publish(adapter, topic, "small")
    (large,) = await adapter.publish([outgoing(topic, "large", body=b"x" * 300_000)])
    assert isinstance(large, MessageTooLarge)
    waiting = attributes_of(adapter, both.here, "ApproximateNumberOfMessages")
    assert waiting["ApproximateNumberOfMessages"] == "0"


@pytest.mark.parametrize(
    ("reference", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/111111111111/orders", "eu-west-1"),
        ("https://vpce-0a-1b.sqs.us-gov-west-1.vpce.amazonaws.com/111111111111/orders", "us-gov-west-1"),
        ("http://localhost:4566/queue/ap-southeast-2/000000000000/orders", "ap-southeast-2"),
        ("http://sqs-proxy-1:4566/000000000000/eu-west-1", None),
        ("arn:aws:sqs:elasticmq:000000000000:orders", None),
        ("eu-west-1", None),
    ],
)
def test_a_region_is_read_where_aws_writes_one(reference, region):
    assert region_of(reference) == region
