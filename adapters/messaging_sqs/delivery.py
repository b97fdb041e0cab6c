"""Whether SNS delivers a topic to a queue: by its subscription, and by the queue's policy. Else it drops, unsaid."""

from __future__ import annotations

import json
import logging
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from messaging.errors import ConfigurationError, TopicNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from messaging.adapter import GroupSpec
    from messaging_sqs.queues import Queues

logger = logging.getLogger("messaging")

_SNS = "sns.amazonaws.com"


async def subscribe(queues: Queues, group: GroupSpec, arn: str, url: str, *, create: bool) -> None:
    """Without a subscription, publishing would be accepted and reach nobody."""
    queue = await queues.attributes(url, "QueueArn", "Policy")
    queue_arn = queue["QueueArn"]
    more = {"topic": group.topic.name, "group": group.name}
    if not lets_send(queue.get("Policy"), arn):
        logger.warning(not_let(queue_arn, arn), extra=more)
    subscription = await queues.subscription(arn, queue_arn)
    if subscription is not None:
        attributes = await queues.subscription_attributes(subscription)
        if attributes.get("RawMessageDelivery") != "true":
            raise ConfigurationError(
                f"the subscription of queue {queue_arn} to {arn} wraps messages: give it RawMessageDelivery"
            )
        if attributes.get("FilterPolicy", "{}") != "{}":
            logger.warning(
                "The subscription of queue %s to %s has a filter policy: its group never gets what that leaves out",
                queue_arn,
                arn,
                extra=more,
            )
    elif create:
        await queues.subscribe(arn, queue_arn)
    else:
        raise TopicNotFound(
            f"group {group.name!r} gets nothing of topic {group.topic.name!r}: queue {queue_arn} is not "
            f"subscribed to {arn}. Declare it first, or use topology='declare'"
        )


def delivery_policy(queue_arn: str, topic_arn: str) -> str:
    """Lets one SNS topic send to one queue."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": _SNS},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def lets_send(policy: str | None, topic_arn: str) -> bool:
    """Whether some statement may let the topic send to the queue: only AWS can judge all that one may say."""
    try:
        statements = _all(json.loads(policy or "{}").get("Statement"))
        return any(_may_allow(statement, topic_arn) for statement in statements)
    except (ValueError, AttributeError):
        return True  # not as AWS writes it: nothing is known


def not_let(queue: str, topic_arn: str) -> str:
    """What an operator is told then."""
    return (
        f"The policy of queue {queue} does not let {topic_arn} send to it, so SNS drops what its group should get: "
        f"allow sqs:SendMessage to {_SNS}"
    )


def _may_allow(statement: dict[str, Any], topic_arn: str) -> bool:
    if statement.get("Effect") != "Allow":
        return False
    actions = [str(action).lower() for action in _all(statement.get("Action"))]
    if actions and not any(fnmatchcase("sqs:sendmessage", action) for action in actions):
        return False
    principal: Any = statement.get("Principal")
    named: list[Any] = (
        list(cast("dict[str, Any]", principal).values()) if isinstance(principal, dict) else [principal]
    )
    if principal is not None and not any({"*", _SNS}.intersection(_all(one)) for one in named):
        return False
    sources = list(_sources(statement.get("Condition") or {}))
    return not sources or any(fnmatchcase(topic_arn, source) for source in sources)


def _sources(condition: dict[str, dict[str, Any]]) -> Iterator[str]:
    for operator, keys in condition.items():
        for key, value in keys.items():
            if key.lower() == "aws:sourcearn" and "Not" not in operator:
                yield from map(str, _all(value))


def _all(value: Any) -> list[Any]:
    """A policy has a list, or its one element."""
    if value is None:
        return []
    return list(cast("Sequence[Any]", value)) if isinstance(value, list) else [value]
