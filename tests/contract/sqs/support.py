"""Adapters on a real SQS and SNS, and what most tests do with them."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from botocore.awsrequest import AWSResponse

from messaging.adapter import AdapterContext, GroupSpec
from messaging.clock import SystemClock
from messaging_sqs import SQSAdapter
from messaging_sqs.clients import make_clients
from messaging_sqs.consumer import Member
from tests.contract.bench import AdapterBench


class Bench(AdapterBench[SQSAdapter, Member]):
    kind: ClassVar = SQSAdapter


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
            state = adapter._topology.state(topic)
            if state.arn is not None:
                await adapter._connection.call("sns", "delete_topic", TopicArn=state.arn)
            elif url := await adapter._topology.queues.find(adapter._topology.names.record(topic)):
                await adapter._topology.queues.delete(url)
    finally:
        await adapter.close()


async def stored(adapter: SQSAdapter, group: GroupSpec, number: int) -> None:
    """Wait until so many messages are in the group's queue: SNS confirms before it delivers.

    So a test that needs several of one key at once gets them: of those that come one by one, the queue would give the
    next only after an acknowledgement (`handled`).
    """
    url = await adapter._topology.queue_url(group)
    async with asyncio.timeout(10):
        while (
            int(attributes_of(adapter, url, "ApproximateNumberOfMessages")["ApproximateNumberOfMessages"])
            < number
        ):
            await asyncio.sleep(0.02)


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


def refuse_entries(adapter: SQSAdapter, monkeypatch, operation: str, times: int) -> None:
    """Refuse all entries of the first so many batches of an operation, as the service does in trouble of its own."""
    left = itertools.count(times, -1)

    async def refuse(go_on: Callable[..., Any], parameters: dict[str, Any]) -> Any:
        if next(left) <= 0:
            return await go_on(**parameters)
        return {
            "Failed": [
                {"Id": one["Id"], "SenderFault": False, "Code": "InternalError", "Message": "try again"}
                for one in parameters["Entries"]
            ]
        }

    intercept(adapter, monkeypatch, operation, refuse)


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


class Page:
    """Answers an operation with this text and status 200, as a gateway does that is in the way, until it is `over`."""

    def __init__(self, client: Any, operation: str, text: str) -> None:
        self.over = False
        self.text = text
        service = client.meta.service_model.service_name
        client.meta.events.register(f"before-send.{service}.{operation}", self._answer)

    def _answer(self, request: Any, **_: object) -> AWSResponse | None:
        return None if self.over else AWSResponse(request.url, 200, {}, self)

    def stream(self) -> Iterator[bytes]:
        yield self.text.encode()


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
