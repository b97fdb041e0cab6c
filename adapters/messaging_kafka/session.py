"""What the parts of the adapter share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messaging.clock import Clock
    from messaging_kafka.brokers import Brokers
    from messaging_kafka.connection import Link
    from messaging_kafka.names import Names
    from messaging_kafka.settings import KafkaSettings
    from messaging_kafka.topology import TopologyKeeper
    from messaging_kafka.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One adapter's connection, and what works on it."""

    settings: KafkaSettings
    names: Names
    link: Link
    brokers: Brokers
    writer: Writer
    topology: TopologyKeeper
    clock: Clock
    member: str
