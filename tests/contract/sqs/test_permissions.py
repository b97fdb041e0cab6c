"""The least policy in the documentation is what the adapter calls, no more and no less."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from messaging.adapter import BrokerHealth, GroupSpec, TopicSpec, Topology
from messaging.message import Ack, Message, Reject, Release, Retry
from messaging_sqs.connection import Denied
from messaging_sqs.permissions import CALLS, Fanout, Role, actions, calls_of, policy
from tests.contract.bench import healthy, publish, receive, settle
from tests.contract.sqs.support import Bench, Refusal, recording

PAGE = Path(__file__).parents[3] / "docs" / "brokers" / "sqs.md"
TOPIC = TopicSpec("orders", partitions=2)
GROUP = GroupSpec(TOPIC, "billing")


@pytest.fixture
async def roles(fanout: Fanout, bench: Bench, monkeypatch):
    """Each role does its work once, with an adapter of its own; what each has called."""
    recorded: dict[str, set[tuple[str, str]]] = {}
    bench.url += f"&fanout={fanout}"

    async def recorder(role: str):
        adapter, recorded[role] = await recording(bench, monkeypatch)
        return adapter

    topology = await recorder("topology")
    await topology.declare(Topology(groups=[GROUP]))
    await topology.declare(Topology(groups=[GROUP]))
    await topology.groups()
    await topology.generations(TOPIC)
    await topology.begin_generation(replace(TOPIC, generation=2, partitions=5))

    publisher = await recorder("publisher")
    await publisher.declare(Topology(topics=[TOPIC], mode="verify"))
    assert len(await publisher.generations(TOPIC)) == 2
    await publish(publisher, TOPIC, "ack", "retry", "reject", "guard", mandatory=True)
    await healthy(publisher)

    consumer = await recorder("consumer")
    await consumer.declare(Topology(groups=[GROUP], mode="verify"))
    assert len(await consumer.generations(TOPIC)) == 2
    member = bench.consumer(consumer, GROUP)
    outcomes = {"ack": Ack(), "retry": Retry(), "reject": Reject("bad")}
    guarded = 0
    while outcomes or guarded < 5:
        (delivery,) = await receive(member, 1)
        name = delivery.message.id
        if name == "guard":
            guarded += 1
            if guarded >= 4:
                assert await member.isolate(delivery)
            await settle(member, [delivery], Release() if guarded < 5 else Ack())
        else:
            await settle(member, [delivery], outcomes.pop(name, Ack()), failure="{}")
    await member.close()
    await consumer.groups()
    assert (await healthy(consumer)).groups

    operator = await recorder("dead letters")
    await operator.declare(Topology(groups=[GROUP], mode="verify"))  # as the command does first
    assert len(await operator.generations(TOPIC)) == 2
    dead = operator.dead_letters(GROUP)
    async with dead.scan() as letters:
        assert [letter async for letter in letters]
    async with dead.scan() as letters:
        found = [letter async for letter in letters]
        await dead.redrive([(letter, letter.message, None) for letter in found])

    requester = await recorder("requester")
    recorded["requester"].clear()  # to open is what every publisher does
    others = await (await bench.adapter()).reply_inbox()
    inbox = await requester.reply_inbox()
    await consumer.reply([(inbox.address, Message(id="r", topic="quotes", body=b"42"))])
    while not await inbox.receive(1, 1.0):
        pass
    async with asyncio.timeout(10):  # the sweep goes on beside it, and would end with the inbox
        while ("sqs", "ListQueueTags") not in recorded["requester"]:
            await inbox.receive(1, 0.1)
    await inbox.close()
    await others.close()

    await topology.delete_group(GROUP)
    bench.groups.append(GROUP)
    return recorded


@pytest.mark.parametrize("fanout", ["sns", "client"])
async def test_the_calls_of_each_role_are_those_that_its_policy_allows(roles, fanout: Fanout):
    # Only a long life and a bad moment show these: the heartbeat, and what a poll brings after the end.
    unasked = {"requester": {("sqs", "TagQueue"), ("sqs", "ChangeMessageVisibilityBatch")}}
    for role, calls in roles.items():
        assert calls | unasked.get(role, set()) == calls_of(role, fanout), role


@pytest.mark.parametrize("role", CALLS)
def test_the_page_shows_the_policy_of_each_role(role):
    assert json.dumps(policy(role), indent=2) in PAGE.read_text()


@pytest.mark.parametrize("role", CALLS)
def test_the_page_shows_what_each_role_needs_in_place_of_sns(role: Role):
    more = sorted(set(actions(calls_of(role, "client"))) - set(actions(CALLS[role])))
    shown = ", ".join(f"`{action}`" for action in more) or "nothing"
    assert f"| {role} | {shown} |" in PAGE.read_text()


@pytest.mark.parametrize(
    ("service", "operation"), [("sqs", "GetQueueAttributes"), ("sns", "ListSubscriptionsByTopic")]
)
async def test_a_role_that_may_not_look_at_groups_is_connected_and_has_no_figures(bench, service, operation):
    adapter = await bench.adapter()
    await bench.group(adapter, TOPIC)
    assert (await healthy(adapter)).groups

    Refusal(getattr(adapter.native, service), operation, 403, "AccessDenied")
    adapter._connection.failed = "an older request had no answer"  # a refusal is an answer
    assert await healthy(adapter) == BrokerHealth(connected=True)
    with pytest.raises(Denied, match="not permitted"):
        await adapter.groups()


def test_a_batch_needs_the_permission_of_its_call_and_creating_with_tags_two():
    assert actions({("sqs", "SendMessageBatch"), ("sns", "CreateTopic"), ("sts", "GetCallerIdentity")}) == [
        "sns:CreateTopic",
        "sns:TagResource",
        "sqs:SendMessage",
    ]
