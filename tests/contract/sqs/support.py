"""Adapters on real servers, and what most tests do with them."""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from botocore.awsrequest import AWSResponse

from messaging.adapter import (
    AdapterContext,
    Consumer,
    GroupSpec,
    Outgoing,
    RawDelivery,
    Settlement,
    Subscription,
    TopicSpec,
    Topology,
)
from messaging.clock import SystemClock
from messaging.message import Ack, Message, Receipt
from messaging.partition import partition_of
from messaging_sqs import SQSAdapter
from messaging_sqs.clients import make_clients
from messaging_sqs.consumer import Member


class Recorder:
    """An ownership that records what it is told."""

    def __init__(self) -> None:
        self.lost: list[RawDelivery] = []

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        raise AssertionError("SQS has no partitions to revoke")

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        self.lost += deliveries


@dataclass
class Bench:
    """Adapters on one server, and what most tests do with them."""

    url: str
    stack: AsyncExitStack
    namespace: str = field(default_factory=lambda: "t" + secrets.token_hex(4))
    groups: list[GroupSpec] = field(default_factory=list)

    async def adapter(self, url: str | None = None, **options: object) -> SQSAdapter:
        adapter = self.unopened(url, **options)
        await adapter.open()
        return adapter

    def unopened(self, url: str | None = None, **options: object) -> SQSAdapter:
        context = AdapterContext(
            clock=SystemClock(), namespace=self.namespace, member=secrets.token_hex(4), options=options
        )
        adapter = SQSAdapter.from_url(url or self.url, context)
        self.stack.push_async_callback(adapter.close)
        return adapter

    async def group(
        self,
        adapter: SQSAdapter,
        topic: TopicSpec | None = None,
        name: str = "billing",
        *,
        ordered: bool | None = None,
    ) -> GroupSpec:
        topic = topic or TopicSpec("orders", partitions=2)
        group = GroupSpec(topic, name, topic.ordered if ordered is None else ordered)
        await adapter.declare(Topology(groups=[group]))
        if group not in self.groups:
            self.groups.append(group)
        return group

    def consumer(
        self, adapter: SQSAdapter, group: GroupSpec, ownership: Recorder | None = None, *, prefetch: int = 100
    ) -> Member:
        subscription = Subscription(group, prefetch, concurrency=10)
        consumer = adapter.consumer(subscription, ownership or Recorder())
        assert isinstance(consumer, Member)
        self.stack.push_async_callback(consumer.close)
        return consumer


async def clean(bench: Bench) -> None:
    """Delete what the test has made."""
    if not bench.groups:
        return
    adapter = SQSAdapter.from_url(bench.url, AdapterContext(clock=SystemClock(), namespace=bench.namespace))
    await adapter.open()
    try:
        for group in bench.groups:
            await adapter.delete_group(group)
        for topic in {group.topic.name: group.topic for group in bench.groups}.values():
            state = adapter._topics.state(topic)
            if state.arn is not None:
                await adapter._connection.call("sns", "delete_topic", TopicArn=state.arn)
            elif url := await adapter._topics.queues.find(adapter._topics.names.record(topic)):
                await adapter._topics.queues.delete(url)
    finally:
        await adapter.close()


def outgoing(topic: TopicSpec, id: str, *, key: str | bytes | None = None, **more: object) -> Outgoing:
    partition = 0 if key is None else partition_of(key, topic.partitions)
    options = {name: more.pop(name) for name in ("mandatory", "reply_to") if name in more}
    fields: dict[str, Any] = {"body": id.encode(), "headers": {}} | more
    return Outgoing(topic, Message(id=id, topic=topic.name, key=key, **fields), partition, **options)  # type: ignore[arg-type]


async def publish(adapter: SQSAdapter, topic: TopicSpec, *ids: str, **more: object) -> None:
    results = await adapter.publish([outgoing(topic, id, **more) for id in ids])  # type: ignore[arg-type]
    assert all(isinstance(result, Receipt) for result in results), results


async def stored(adapter: SQSAdapter, group: GroupSpec, number: int) -> None:
    """Wait until so many messages are in the group's queue: SNS confirms before it delivers."""
    url = await adapter._topics.queue_url(group)
    async with asyncio.timeout(10):
        while (
            int(attributes_of(adapter, url, "ApproximateNumberOfMessages")["ApproximateNumberOfMessages"])
            < number
        ):
            await asyncio.sleep(0.02)


async def receive(consumer: Consumer, number: int, within: float = 10.0) -> list[RawDelivery]:
    """So many deliveries."""
    deliveries: list[RawDelivery] = []
    async with asyncio.timeout(within):
        while len(deliveries) < number:
            deliveries += await consumer.receive(number - len(deliveries), 0.5)
    return deliveries


async def nothing(consumer: Consumer, during: float = 0.3) -> None:
    assert await consumer.receive(10, during) == ()


async def ack(consumer: Consumer, deliveries: Sequence[RawDelivery]) -> None:
    await settle(consumer, deliveries, Ack())


async def settle(consumer: Consumer, deliveries: Sequence[RawDelivery], outcome, **more):
    return await consumer.settle([Settlement(one, outcome, **more) for one in deliveries])


def ids(deliveries: Sequence[RawDelivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def attributes_of(adapter: SQSAdapter, url: str, *names: str) -> dict[str, str]:
    """What the service says of a queue."""
    found = adapter.native.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(names) or ["All"])
    return found.get("Attributes", {})


def intercept(adapter: SQSAdapter, monkeypatch, operation: str, answer: Callable[..., Any]) -> None:
    """Let `answer(call, parameters)` answer an operation; `call(**parameters)` is the real one."""
    real = adapter._connection.call

    async def call(service: str, name: str, /, **parameters: Any) -> Any:
        if name != operation:
            return await real(service, name, **parameters)  # type: ignore[arg-type]

        async def go_on(**changed: Any) -> Any:
            return await real(service, name, **changed)  # type: ignore[arg-type]

        return await answer(go_on, parameters)

    monkeypatch.setattr(adapter._connection, "call", call)


class Refusal:
    """Answers an operation in place of the service, where a request has `part` in its body, until it is `over`."""

    def __init__(
        self, client: Any, operation: str, status: int, code: str, text: str = "no", *, part: bytes = b""
    ) -> None:
        self.over = False
        answer = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}

        def refuse(params: dict[str, Any], **_: object) -> tuple[AWSResponse, dict[str, Any]] | None:
            if self.over or (part and part not in params["body"]):
                return None
            return AWSResponse("", status, {}, None), answer

        service = client.meta.service_model.service_name
        client.meta.events.register(f"before-call.{service}.{operation}", refuse)


def poll_begun(adapter: SQSAdapter, monkeypatch, number: int) -> asyncio.Event:
    """Set when the adapter begins its poll of this number, from one."""
    real, begun, numbers = adapter._connection.poll, asyncio.Event(), itertools.count(1)

    def poll(*arguments: Any, **parameters: Any) -> Any:
        if next(numbers) == number:
            begun.set()
        return real(*arguments, **parameters)

    monkeypatch.setattr(adapter._connection, "poll", poll)
    return begun


async def recording(bench: Bench, monkeypatch) -> tuple[SQSAdapter, set[tuple[str, str]]]:
    """An adapter, and what it calls: service and operation."""
    calls: set[tuple[str, str]] = set()

    def note(model, **_: object) -> None:
        calls.add((model.service_model.service_name, model.name))

    def make(settings):
        clients = make_clients(settings)
        for client in (clients.sqs, clients.polls, clients.sns, clients.sts, *clients.sends.values()):
            client.meta.events.register("before-call", note)
        return clients

    with monkeypatch.context() as patched:
        patched.setattr("messaging_sqs.connection.make_clients", make)
        return await bench.adapter(), calls
