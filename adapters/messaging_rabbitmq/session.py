"""What the parts of one adapter share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messaging.clock import Clock
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.names import Names
    from messaging_rabbitmq.sender import Sender
    from messaging_rabbitmq.settings import RabbitMQSettings
    from messaging_rabbitmq.topology import TopologyKeeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The connections of one adapter and what knows how to use them."""

    settings: RabbitMQSettings
    names: Names
    consuming: Link
    """Also declares, scans and probes: a broker short of memory stops reading from connections that publish."""
    publishing: Link
    sender: Sender
    topology: TopologyKeeper
    clock: Clock
    member: str
    claimed: set[str] = field(default_factory=set[str])
    """Locks of partitions that a consumer of this adapter has: the broker tells connections apart, not these."""
    unread: dict[str, float] = field(default_factory=dict[str, float])
    """Queues of groups that have messages and no consumer, and since when a probe has found them so."""
