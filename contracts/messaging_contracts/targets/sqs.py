"""SQS and SNS under test."""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from messaging_contracts import targets
from messaging_contracts.under_test import Target
from messaging_sqs.names import Names
from messaging_sqs.settings import SQSSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging import Bus, Topic
    from messaging.adapter import TopicSpec

MOST_ATTRIBUTES = 8
"""SQS takes ten; the content type and ours come on top."""
_NONCHARACTERS = frozenset("\ufffe\uffff")
STORE = "memory://contract"
"""SQS keeps no idempotency keys; the members of these cases share a process."""


def target(url: str, store: str | None) -> Target:
    """Without SNS, no publisher may go by an old list of groups here: cases declare and publish at once."""
    if SQSSettings.from_url(url).fanout == "client":
        url = targets.with_options(url, groups_refresh=0)
    return Target(
        url=url,
        short_lease_url=targets.with_options(url, lease=2),
        store=store or STORE,
        foreign=ForeignToSQS(),
    )


class ForeignToSQS:
    """See `messaging_contracts.foreign.ForeignPublisher`. What no attribute of SQS can carry goes into the JSON of the
    documented one.
    """

    forgeries: Mapping[str, Any] = {
        "ApproximateReceiveCount": "99",
        "MessageGroupId": "elsewhere",
    }
    oddities: Mapping[str, Any] = {
        "list": [1, "a", {"deep": [None, True]}],
        "number": 1e308,
        "nothing": None,
        "ce_type": {"a": 1},
        "ce_notbefore": 5,
        "messaging-attempt": [3],
        "messaging-failure": {"last": 1},
    }
    """Values of other types than text."""

    async def publish(
        self,
        bus: Bus,
        topic: Topic[Any],
        body: bytes,
        *,
        headers: Mapping[str, Any],
        content_type: str | None,
    ) -> None:
        assert bus.settings.url is not None
        settings = SQSSettings.from_url(bus.settings.url, namespace=bus.settings.namespace)
        spec = bus.catalogue.spec(topic)
        fitting = [(name, value) for name, value in headers.items() if _fits(name, value)][:MOST_ATTRIBUTES]
        attributes = {name: {"DataType": "String", "StringValue": value} for name, value in fitting}
        wrapped = {name: value for name, value in headers.items() if name not in attributes}
        try:
            text = body.decode()
            legal = _legal(text)
        except UnicodeDecodeError:
            text, legal = "", False
        if not legal:
            text = b64encode(body).decode()
            wrapped["messaging-encoding"] = "base64"
        if not text:
            text = "-"
            wrapped["messaging-encoding"] = "empty"
        if content_type is not None:
            attributes["Content-Type"] = {"DataType": "String", "StringValue": content_type}
        if wrapped:
            attributes["messaging"] = {"DataType": "String", "StringValue": json.dumps(wrapped)}
        fifo: dict[str, str] = {}
        if spec.ordered:
            fifo = {"MessageGroupId": secrets.token_hex(4), "MessageDeduplicationId": secrets.token_hex(8)}
        await asyncio.to_thread(
            _send, bus.native, settings, spec, text, {"MessageAttributes": attributes, **fifo}
        )


def _send(clients: Any, settings: SQSSettings, topic: TopicSpec, text: str, more: dict[str, Any]) -> None:
    names = Names(settings)
    if settings.fanout == "sns":
        account = clients.sts.get_caller_identity()["Account"]
        arn = f"arn:{clients.partition}:sns:{clients.region}:{account}:{names.topic(topic)}"
        clients.sns.publish(TopicArn=arn, Message=text, **more)
        return
    for url in clients.sqs.list_queues(QueueNamePrefix=names.queues_of(topic)).get("QueueUrls", ()):
        clients.sqs.send_message(QueueUrl=url, MessageBody=text, **more)


def _legal(text: str) -> bool:
    return all(
        letter in "\t\n\r" or " " <= letter <= "\ud7ff" or letter >= "\ue000" for letter in text
    ) and not (_NONCHARACTERS & set(text))


def _fits(name: str, value: Any) -> bool:
    if not isinstance(value, str) or not value or name.startswith("messaging-") or not _legal(value):
        return False
    return name.isascii() and all(letter.isalnum() or letter in "_-." for letter in name)
