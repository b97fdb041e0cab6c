"""The least IAM policy of each role: generated from the calls that the adapter makes in it.

A test records the calls and compares them with `CALLS`; the operators' page shows `policy`. STS tells the account's
number without a permission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Role: TypeAlias = Literal["publisher", "requester", "consumer", "dead letters", "topology"]
AdoptedRole: TypeAlias = Literal["publisher to a topic", "publisher to a queue", "consumer", "dead letters"]
Fanout: TypeAlias = Literal["sns", "client"]
Call: TypeAlias = "tuple[str, str]"
"""A service and its operation, as `("sqs", "SendMessageBatch")`."""


def _calls(service: str, *operations: str) -> frozenset[Call]:
    return frozenset((service, operation) for operation in operations)


_VERIFY_TOPIC = _calls("sns", "GetTopicAttributes", "ListTagsForResource")
_VERIFY_GROUP = _VERIFY_TOPIC | _calls("sns", "ListSubscriptionsByTopic", "GetSubscriptionAttributes")
_FREE = _calls("sts", "GetCallerIdentity")
_HANDLE = _calls(
    "sqs",
    "GetQueueUrl",
    "GetQueueAttributes",
    "ReceiveMessage",
    "SendMessageBatch",
    "DeleteMessageBatch",
    "ChangeMessageVisibilityBatch",
)

CALLS: Mapping[Role, Collection[Call]] = {
    "publisher": (
        _FREE
        | _VERIFY_TOPIC
        | _calls("sqs", "GetQueueUrl", "GetQueueAttributes", "ListQueueTags")
        | _calls("sns", "PublishBatch", "ListSubscriptionsByTopic")
    ),
    "requester": _calls(
        "sqs",
        "CreateQueue",
        "TagQueue",
        "ListQueues",
        "ListQueueTags",
        "ReceiveMessage",
        "DeleteMessageBatch",
        "ChangeMessageVisibilityBatch",
        "DeleteQueue",
    ),
    "consumer": (_FREE | _VERIFY_GROUP | _HANDLE | _calls("sqs", "ListQueueTags", "TagQueue", "UntagQueue")),
    "dead letters": _FREE | _VERIFY_GROUP | _HANDLE | _calls("sqs", "ListQueueTags"),
    "topology": (
        _FREE
        | _VERIFY_GROUP
        | _calls("sns", "CreateTopic", "Subscribe", "Unsubscribe")
        | _calls("sqs", "GetQueueUrl", "CreateQueue", "GetQueueAttributes", "ListQueueTags", "DeleteQueue")
        | _calls("sqs", "ListQueues")
    ),
}
"""What each role calls with `topology="verify"`; `topology` declares and deletes. A requester is a publisher, too."""

_ADOPTED_GROUP = _HANDLE | _calls("sns", "GetTopicAttributes")
ADOPTED: Mapping[AdoptedRole, Collection[Call]] = {
    "publisher to a topic": _calls("sns", "GetTopicAttributes", "ListSubscriptionsByTopic", "PublishBatch"),
    "publisher to a queue": _calls("sqs", "GetQueueUrl", "SendMessageBatch"),
    "consumer": _ADOPTED_GROUP | _calls("sqs", "ListQueueTags", "TagQueue", "UntagQueue"),
    "dead letters": _ADOPTED_GROUP,
}
"""What is called of topics and queues that are adopted: on the topic, its queues and their queues of dead letters."""

_WITHOUT_SNS: Mapping[Role, Collection[Call]] = {
    "publisher": _calls("sqs", "ListQueues", "SendMessageBatch"),
    "consumer": _calls("sqs", "ListQueues"),
}
"""What `fanout=client` calls in place of SNS: who the groups are is told by the queues' names and tags."""

_ALSO: Mapping[Call, tuple[str, ...]] = {
    ("sns", "CreateTopic"): ("sns:TagResource",),
    ("sqs", "CreateQueue"): ("sqs:TagQueue",),
}
"""Creating with tags asks for two permissions."""
_ANYWHERE = frozenset({"sqs:ListQueues", "sns:Unsubscribe", "sns:GetSubscriptionAttributes"})
"""Actions that IAM cannot limit to a resource."""


def calls_of(role: Role, fanout: Fanout = "sns") -> frozenset[Call]:
    """What a role calls, with or without SNS."""
    calls = frozenset(CALLS[role])
    if fanout == "sns":
        return calls
    return frozenset(call for call in calls if call[0] == "sqs").union(_WITHOUT_SNS.get(role, ()))


def actions(calls: Collection[Call]) -> list[str]:
    """The IAM actions that these calls need; a batch needs the permission of its single call."""
    needed: set[str] = set()
    for service, operation in calls:
        if service != "sts":
            needed.add(f"{service}:{operation.removesuffix('Batch')}")
            needed.update(_ALSO.get((service, operation), ()))
    return sorted(needed)


def policy(
    role: Role,
    *,
    fanout: Fanout = "sns",
    prefix: str = "messaging",
    region: str = "*",
    account: str = "*",
    partition: str = "aws",
) -> dict[str, Any]:
    """The least policy of a role, as IAM reads it. With a namespace, put it behind the prefix: `messaging-staging-`."""
    needed = actions(calls_of(role, fanout))
    kind = f"{prefix}-reply-*" if role == "requester" else f"{prefix}-*"
    statements: list[dict[str, Any]] = []
    for service in ("sns", "sqs"):
        limited = [one for one in needed if one.startswith(f"{service}:") and one not in _ANYWHERE]
        if limited:
            resource = f"arn:{partition}:{service}:{region}:{account}:{kind}"
            statements.append({"Effect": "Allow", "Action": limited, "Resource": resource})
    if anywhere := [one for one in needed if one in _ANYWHERE]:
        statements.append({"Effect": "Allow", "Action": anywhere, "Resource": "*"})
    return {"Version": "2012-10-17", "Statement": statements}
