"""What this process knows of one topic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from messaging_sqs.settings import SNS_DEFAULT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import TopicSpec, TopologyMode
    from messaging.errors import MessagingError


@dataclass(slots=True)
class TopicState:
    """Of a topic that was declared, adopted or published to."""

    spec: TopicSpec
    mode: TopologyMode
    arn: str | None = None
    """Of the SNS topic; None where messages go to queues."""
    queue: str | None = None
    """The URL of the adopted queue that is the topic."""
    limit: int = SNS_DEFAULT_BYTES
    """What the SNS topic takes, in bytes."""
    queues: Sequence[str] = ()
    """The URLs of the groups' queues; with SNS, see `TopologyKeeper.urls`."""
    endpoints: Sequence[str] = ()
    """The ARNs of the queues of this region to which the SNS topic delivers."""
    routed: bool = False
    """Somebody got what was published when it was last looked."""
    strangers: bool = False
    """The SNS topic has subscribers that are no queues, or none of this region."""
    blind: MessagingError | None = None
    """Why the subscriptions of the SNS topic could not be looked at the last time."""
    verified: bool = False
    """The service's record says the same."""
    gone: bool = False
    """A publish found no SNS topic."""
    looked: float = -1e9
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
