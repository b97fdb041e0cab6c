"""Queues and SNS topics one by one: found, created, subscribed, deleted. What they are for is said by their tags."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from messaging.errors import ConfigurationError
from messaging_sqs.connection import Absent, DeletedRecently, Exists
from messaging_sqs.entries import LARGEST
from messaging_sqs.names import is_fifo
from messaging_sqs.settings import LONGEST_RETENTION, SNS_DEFAULT_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from messaging_sqs.connection import Connection

DELETED_WAIT = 62.0
"""Amazon SQS, "DeleteQueue": a name is free again after 60 seconds."""
_DELETED_PAUSE = 5.0
_KNOWN_WITHIN = (0.1, 0.4, 1.0, 2.0, 4.0)
"""Pauses. Amazon SQS, "CreateQueue": wait for a second before a new queue is used."""
_PAGE = 1000


class Queues:
    """What this adapter does with queues and topics, beside messages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._tags: dict[str, dict[str, str]] = {}

    # --- queues ------------------------------------------------------------------------------------------------

    async def find(self, reference: str) -> str | None:
        """The URL of a queue, by its name, ARN or URL; None where there is none."""
        try:
            return await self._connection.queue_url(reference)
        except Absent:
            return None

    async def create(
        self,
        name: str,
        tags: Mapping[str, str],
        *,
        retention: int = LONGEST_RETENTION,
        more: Mapping[str, str] | None = None,
        wait: float = DELETED_WAIT,
    ) -> str:
        """The URL of a queue that is made now, or was made alike meanwhile.

        Waits up to `wait` seconds while a queue of this name was deleted within the last minute, then raises
        DeletedRecently. Raises ConfigurationError where one exists with other attributes.
        """
        attributes = {"MessageRetentionPeriod": str(retention), **(more or {})}
        if self._connection.is_aws:
            attributes["MaximumMessageSize"] = str(LARGEST)
        if self._settings.kms_key is not None:
            attributes["KmsMasterKeyId"] = self._settings.kms_key
        if is_fifo(name):
            attributes["FifoQueue"] = "true"
            if self._settings.fanout == "sns":  # ElasticMQ does not know these
                attributes["DeduplicationScope"] = "messageGroup"
                attributes["FifoThroughputLimit"] = "perMessageGroupId"
        deadline = time.monotonic() + wait
        while True:
            try:
                made = await self._connection.call(
                    "sqs", "create_queue", QueueName=name, Attributes=attributes, tags=dict(tags)
                )
                return self._connection.remember(made["QueueUrl"])
            except DeletedRecently:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(_DELETED_PAUSE)
            except Exists as error:
                raise ConfigurationError(
                    f"queue {name!r} exists with other attributes than this program asks for: {error}. "
                    f"Change the setting, or delete the group."
                ) from error

    async def known(self, url: str) -> str:
        """The URL of a queue that was just made, when the service knows it: until then it says that there is none."""
        for pause in _KNOWN_WITHIN:
            try:
                await self.attributes(url, "QueueArn")
                break
            except Absent:
                await asyncio.sleep(pause)
        return url

    async def attributes(self, url: str, *names: str) -> dict[str, str]:
        """Raises Absent."""
        answer = await self._connection.call(
            "sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=list(names)
        )
        found: dict[str, str] = answer.get("Attributes") or {}
        return found

    async def tags(self, url: str) -> dict[str, str]:
        """The tags of a queue, as they were when it was first looked at; none of one that is gone."""
        if url not in self._tags:
            try:
                answer = await self._connection.call("sqs", "list_queue_tags", QueueUrl=url)
            except Absent:
                return {}
            self._tags[url] = answer.get("Tags") or {}
        return self._tags[url]

    async def named_like(self, prefix: str) -> list[str]:
        """The URLs of all queues whose names begin so."""
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._connection.call(
                "sqs", "list_queues", QueueNamePrefix=prefix, MaxResults=_PAGE, **more
            )
            found += answer.get("QueueUrls") or ()
            if not answer.get("NextToken"):
                return found
            more = {"NextToken": answer["NextToken"]}

    async def delete(self, url: str) -> None:
        """Absent is no error."""
        self._tags.pop(url, None)
        try:
            await self._connection.call("sqs", "delete_queue", QueueUrl=url)
        except Absent:
            return

    # --- topics ------------------------------------------------------------------------------------------------

    async def topic(self, arn: str) -> dict[str, str] | None:
        """The attributes of an SNS topic; None where there is none."""
        try:
            answer = await self._connection.call("sns", "get_topic_attributes", TopicArn=arn)
        except Absent:
            return None
        found: dict[str, str] = answer["Attributes"]
        return found

    async def topic_tags(self, arn: str) -> dict[str, str]:
        try:
            answer = await self._connection.call("sns", "list_tags_for_resource", ResourceArn=arn)
        except Absent:
            return {}
        return {tag["Key"]: tag["Value"] for tag in answer.get("Tags") or ()}

    async def create_topic(self, name: str, tags: Mapping[str, str]) -> None:
        """One that was made meanwhile is left as it is."""
        attributes: dict[str, str] = {}
        if is_fifo(name):
            attributes = {"FifoTopic": "true", "FifoThroughputScope": "MessageGroup"}
        if self._settings.max_message_bytes > SNS_DEFAULT_BYTES:
            attributes["MaximumMessageSize"] = str(self._settings.max_message_bytes)
        if self._settings.kms_key is not None:
            attributes["KmsMasterKeyId"] = self._settings.kms_key
        try:
            await self._connection.call(
                "sns",
                "create_topic",
                Name=name,
                Attributes=attributes,
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )
        except Exists:
            return

    async def subscriptions(self, arn: str) -> AsyncIterator[dict[str, str]]:
        """The topic's subscriptions, without those to which it delivers nothing. Raises Absent."""
        more: dict[str, Any] = {}
        while True:
            answer = await self._connection.call("sns", "list_subscriptions_by_topic", TopicArn=arn, **more)
            for subscription in answer.get("Subscriptions") or ():
                # What waits for a confirmation, or was deleted lately, is listed with a word in place of its ARN.
                if subscription["SubscriptionArn"].startswith("arn:"):
                    yield subscription
            if not answer.get("NextToken"):
                return
            more = {"NextToken": answer["NextToken"]}

    async def subscription(self, arn: str, queue_arn: str) -> str | None:
        """The ARN of this queue's subscription to this topic."""
        async for subscription in self.subscriptions(arn):
            if subscription["Endpoint"] == queue_arn:
                return subscription["SubscriptionArn"]
        return None

    async def subscription_attributes(self, subscription: str) -> dict[str, str]:
        """Raises Absent."""
        answer = await self._connection.call(
            "sns", "get_subscription_attributes", SubscriptionArn=subscription
        )
        found: dict[str, str] = answer.get("Attributes") or {}
        return found

    async def subscribe(self, arn: str, queue_arn: str) -> None:
        """Raises ConfigurationError where it is subscribed in another way."""
        try:
            await self._connection.call(
                "sns",
                "subscribe",
                TopicArn=arn,
                Protocol="sqs",
                Endpoint=queue_arn,
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
        except Exists as error:
            raise ConfigurationError(
                f"queue {queue_arn} is subscribed to {arn} in another way: {error}"
            ) from error

    async def unsubscribe(self, subscription: str) -> None:
        try:
            await self._connection.call("sns", "unsubscribe", SubscriptionArn=subscription)
        except Absent:
            return
