"""What a role needs for topics and queues that are adopted is in the documentation, and is what it calls."""

import json
from pathlib import Path

import pytest

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.message import Ack, Reject, Release, Retry
from messaging_sqs.permissions import ADOPTED, actions
from tests.contract.bench import healthy, publish, receive, settle
from tests.contract.sqs.support import Bench, Refusal, recording

PAGE = Path(__file__).parents[3] / "docs" / "brokers" / "sqs.md"


@pytest.fixture
async def theirs(bench: Bench):
    """A topic and a queue that somebody else has made."""
    adapter = await bench.adapter()
    sqs, sns = adapter.native.sqs, adapter.native.sns
    name = f"theirs-{bench.namespace}"
    arn = sns.create_topic(Name=name)["TopicArn"]
    dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    dead_arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": "100"})
    queue = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    queue_arn = dead_arn.removesuffix("-dead")
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=queue_arn, Attributes={"RawMessageDelivery": "true"})
    yield arn, queue_arn
    sns.delete_topic(TopicArn=arn)
    for url in (queue, dead):
        sqs.delete_queue(QueueUrl=url)


async def test_a_role_calls_of_what_is_adopted_what_the_page_says(bench: Bench, theirs, monkeypatch):
    arn, queue_arn = theirs
    topic, straight = TopicSpec("orders", native=arn), TopicSpec("jobs", native=queue_arn)
    group = GroupSpec(topic, "billing", native=queue_arn)
    called: dict[str, set[tuple[str, str]]] = {}

    async def recorder(role: str):
        adapter, called[role] = await recording(bench, monkeypatch)
        called[role].clear()  # to open is what every role does, and goes on where it is not permitted
        Refusal(adapter.native.sqs, "GetQueueUrl", 403, "AccessDenied", part=b"messaging-")
        return adapter

    for role, spec in (("publisher to a topic", topic), ("publisher to a queue", straight)):
        publisher = await recorder(role)
        await publisher.declare(Topology(topics=[spec], mode="verify"))
        await publish(publisher, spec, f"{role}-ack", f"{role}-retry", f"{role}-reject", mandatory=True)
        await healthy(publisher)

    consumer = await recorder("consumer")
    await consumer.declare(Topology(groups=[group], mode="verify"))
    member = bench.consumer(consumer, group)
    wanted = {"ack": Ack(), "retry": Retry(), "reject": Reject("bad")}
    left = {
        f"{role}-{name}": outcome for role in called if role in ADOPTED for name, outcome in wanted.items()
    }
    left = {id: outcome for id, outcome in left.items() if not id.startswith("consumer")}
    while left:
        (delivery,) = await receive(member, 1)
        await settle(member, [delivery], left.pop(delivery.message.id, Ack()), failure="{}")
    await publish(publisher, straight, "suspect")
    (delivery,) = await receive(member, 1)
    while delivery.message.id != "suspect":
        await settle(member, [delivery], Ack())
        (delivery,) = await receive(member, 1)
    assert await member.isolate(delivery)
    await settle(member, [delivery], Release())
    (delivery,) = await receive(member, 1)
    await settle(member, [delivery], Ack())
    await member.close()
    await healthy(consumer)

    operator = await recorder("dead letters")
    await operator.declare(Topology(groups=[group], mode="verify"))
    dead = operator.dead_letters(group)
    async with dead.scan() as letters:
        assert [letter async for letter in letters]
    async with dead.scan() as letters:
        found = [letter async for letter in letters]
        await dead.redrive([(letter, letter.message, None) for letter in found])

    # Only what a poll brings after the end shows it, or a lease that is extended.
    called["consumer"].add(("sqs", "ChangeMessageVisibilityBatch"))
    assert called == ADOPTED


@pytest.mark.parametrize("role", ADOPTED)
def test_the_page_shows_what_each_role_needs_of_what_is_adopted(role):
    shown = ", ".join(f"`{action}`" for action in actions(ADOPTED[role]))
    assert f"| {role} | {shown} |" in PAGE.read_text()
