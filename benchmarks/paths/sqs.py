"""SQS, on LocalStack where no other endpoint is named: boto3 by hand."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.measure import Incomplete, Measured, Tally, publishing
from benchmarks.path import BYTES, OURS, Contender, Path
from benchmarks.paths import ours
from benchmarks.payload import SIZE, body, fresh, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TEN = 10
POLLERS = 4
TOGETHER = max(1, min(TEN, (240 << 10) // SIZE))
"""Messages in a call of SNS, which takes 256 KiB."""
TO_QUEUES = "&fanout=client&groups_refresh=1"
"""Options of a URL with which messages pass SNS by."""


def _client(service: str, url: str) -> Any:
    import boto3
    from botocore.config import Config

    parts = urlsplit(url)
    return boto3.client(
        service,
        region_name=parts.netloc,
        endpoint_url=parse_qs(parts.query).get("endpoint_url", [None])[0],
        config=Config(max_pool_connections=64),
    )


@contextmanager
def _queue(url: str) -> Iterator[tuple[Any, str]]:
    """A client, and a queue, which is gone afterwards."""
    client = _client("sqs", url)
    queue = client.create_queue(QueueName=fresh("queue"))["QueueUrl"]
    try:
        yield client, queue
    finally:
        client.delete_queue(QueueUrl=queue)


async def single_sends(url: str, messages: int) -> Measured:
    loop = asyncio.get_running_loop()
    with _queue(url) as (client, queue), ThreadPoolExecutor(64) as threads:

        def send(number: int) -> None:
            client.send_message(QueueUrl=queue, MessageBody=body(number).decode())

        return await publishing(
            lambda number: loop.run_in_executor(threads, send, number), messages, callers=64
        )


async def batches_of_ten(url: str, messages: int) -> Measured:
    loop = asyncio.get_running_loop()
    with _queue(url) as (client, queue), ThreadPoolExecutor(POLLERS) as threads:
        measured = await publishing(
            lambda batch: loop.run_in_executor(threads, _send_ten, client, queue, batch * TEN),
            messages // TEN,
            callers=POLLERS,
        )
        return Measured(measured.rate * TEN, messages)


def _send_ten(client: Any, queue: str, start: int) -> None:
    entries = [
        {"Id": str(number), "MessageBody": body(number).decode()} for number in range(start, start + TEN)
    ]
    if client.send_message_batch(QueueUrl=queue, Entries=entries).get("Failed"):
        raise Incomplete("some of a batch were not sent")


async def topic_batches_of_ten(url: str, messages: int) -> Measured:
    """To a topic of SNS, with a queue that gets what is published."""
    loop = asyncio.get_running_loop()
    sns = _client("sns", url)
    topic = sns.create_topic(Name=fresh("topic"))["TopicArn"]
    with _queue(url) as (client, queue), ThreadPoolExecutor(POLLERS) as threads:
        asked = client.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        arn = asked["Attributes"]["QueueArn"]
        raw = {"RawMessageDelivery": "true"}
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
        measured = await publishing(
            lambda batch: loop.run_in_executor(threads, _publish_together, sns, topic, batch * TOGETHER),
            messages // TOGETHER,
            callers=POLLERS,
        )
        sns.delete_topic(TopicArn=topic)
        return Measured(measured.rate * TOGETHER, messages)


def _publish_together(client: Any, topic: str, start: int) -> None:
    numbers = range(start, start + TOGETHER)
    entries = [{"Id": str(number), "Message": body(number).decode()} for number in numbers]
    if client.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries).get("Failed"):
        raise Incomplete("some of a batch were not published")


async def receive_and_delete(url: str, messages: int) -> Measured:
    """As many pollers as the library has, batches of ten."""
    tally = Tally(messages)
    loop = asyncio.get_running_loop()
    with _queue(url) as (client, queue), ThreadPoolExecutor(POLLERS) as threads:

        def poll() -> list[int]:
            got = client.receive_message(QueueUrl=queue, MaxNumberOfMessages=TEN, WaitTimeSeconds=1)
            found = got.get("Messages", [])
            if found:
                client.delete_message_batch(
                    QueueUrl=queue,
                    Entries=[
                        {"Id": str(at), "ReceiptHandle": message["ReceiptHandle"]}
                        for at, message in enumerate(found)
                    ],
                )
            return [number_of(message["Body"].encode()) for message in found]

        async def poller() -> None:
            while not tally.all.is_set():
                for number in await loop.run_in_executor(threads, poll):
                    tally.handled(number)

        for start in range(0, messages, TEN):
            await loop.run_in_executor(threads, _send_ten, client, queue, start)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(POLLERS):
                tasks.create_task(poller())
        return tally.result()


async def publish(url: str, messages: int) -> Measured:
    return await ours.publish(url, messages, callers=64)


async def publish_bytes(url: str, messages: int) -> Measured:
    return await ours.publish_bytes(url, messages, callers=64)


async def publish_to_queues(url: str, messages: int) -> Measured:
    return await publish(f"{url}{TO_QUEUES}", messages)


async def publish_bytes_to_queues(url: str, messages: int) -> Measured:
    return await publish_bytes(f"{url}{TO_QUEUES}", messages)


PATHS = (
    Path(
        "SNS publish",
        "sqs",
        "64 callers at once, to a topic with one queue",
        2_000,
        (
            Contender(OURS, publish),
            Contender(BYTES, publish_bytes),
            Contender("boto3, batches of ten", topic_batches_of_ten, target=0.9, like=BYTES),
        ),
        limit="LocalStack, busy for nine tenths of the time: it takes a fifth longer for a message with our attribute",
    ),
    Path(
        "SQS publish",
        "sqs",
        "64 callers at once, `fanout=client`: to one queue, without SNS",
        2_000,
        (
            Contender(OURS, publish_to_queues),
            Contender(BYTES, publish_bytes_to_queues),
            Contender("boto3, single sends", single_sends, share=0.3, target=5, like=BYTES),
            Contender("boto3, batches of ten", batches_of_ten, target=0.9, like=BYTES),
        ),
        limit="LocalStack, which takes a fifth to a quarter longer for messages with our attribute, whoever sends "
        "them; boto3, some 0.9 ms of the processor for each call of ten, in one process with the callers; and 45 to "
        "50 us of the event loop's thread for a message, beside 7 by hand",
    ),
    Path(
        "SQS consume",
        "sqs",
        "handled and deleted",
        2_000,
        (
            Contender(OURS, ours.consume),
            Contender(BYTES, ours.consume_bytes),
            Contender("boto3, batches of ten", receive_and_delete, target=0.9, like=BYTES),
        ),
    ),
)
