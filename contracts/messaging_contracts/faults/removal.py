"""What an operator deletes by mistake with the broker's own tools: what messages lie in, or the topic they come by."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from messaging_contracts.brokers.resp import Connection
from messaging_contracts.faults.role import GROUP, PARTITIONS, TOPICS

if TYPE_CHECKING:
    from messaging_contracts.faults.ground import Part


async def remove(name: str, url: str, native: Any, namespace: str, part: Part) -> None:
    """Delete this of both topics, and nothing beside it, on this broker of ours; `native` is the adapter's client.

    Raises LookupError where it is not known here how.
    """
    if name == "redis":
        await asyncio.to_thread(_redis, url, namespace)
    elif name == "rabbitmq":
        await _rabbitmq(native, namespace, part)
    elif name == "kafka":
        await _kafka(url, namespace)
    elif name == "sqs":
        await asyncio.to_thread(_sqs, native, namespace, part)
    else:
        raise LookupError(f"it is not known here how something is deleted from {name}")


def _redis(url: str, namespace: str) -> None:
    streams = [
        f"messaging:{{{namespace}::{name}}}:{partition}" for name in TOPICS for partition in range(PARTITIONS)
    ]
    with Connection(url, 5) as connection:
        connection.call("DEL", *streams)


async def _rabbitmq(connection: Any, namespace: str, part: Part) -> None:
    channel = await connection.channel()
    if part == "topics":
        for name in TOPICS:
            await channel.exchange_delete(f"{namespace}::topic:{name}")
    else:
        await channel.queue_delete(f"{namespace}::queue:shared:{GROUP}")
        for partition in range(PARTITIONS):
            await channel.queue_delete(f"{namespace}::queue:ordered:{GROUP}:{partition}")
    await channel.close()


async def _kafka(url: str, namespace: str) -> None:
    admin: Any = import_module("aiokafka.admin").AIOKafkaAdminClient(bootstrap_servers=urlsplit(url).netloc)
    await admin.start()
    try:
        await admin.delete_topics([f"messaging.{namespace}..topic.{name}" for name in TOPICS])
    finally:
        await admin.close()


def _sqs(clients: Any, namespace: str, part: Part) -> None:
    # Both services know `_` and `-` only: a namespace is written in another way there, but not what makes it unique.
    unique = namespace.rpartition("-")[2]
    if part == "topics":
        for page in clients.sns.get_paginator("list_topics").paginate():
            for topic in page["Topics"]:
                if unique in topic["TopicArn"]:
                    clients.sns.delete_topic(TopicArn=topic["TopicArn"])
    else:
        for page in clients.sqs.get_paginator("list_queues").paginate():
            for url in page.get("QueueUrls", ()):
                if unique in url and "--queue-" in url:
                    clients.sqs.delete_queue(QueueUrl=url)
