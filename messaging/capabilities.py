"""What a broker promises, with its bounds: native, emulated or unsupported. A part of the SPI (`messaging.adapter`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["native", "emulated", "unsupported"]


@dataclass(frozen=True, slots=True)
class Capability:
    """How a broker keeps one promise; `reason` says how, or why not and what to do instead."""

    level: Level
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an adapter promises on the broker it is connected to, with its bounds. Checked at start."""

    broker: str
    version: str = ""
    groups: Capability
    """Every group gets every message."""
    order: Capability
    """Per-key order across the members of a group, retries included (7)."""
    delayed_retry: Capability
    dead_letters: Capability
    redrive: Capability
    requests: Capability
    history: Capability
    """A new group may start at earliest or at a time."""
    no_group: Capability
    """A publish to a topic without a group can be told."""
    crash_guard: Capability
    """A poison message that kills the process ends as a dead letter, alone (3)."""
    generations: Capability = Capability(
        "unsupported", "make a topic with another name, and move its publishers and groups there"
    )
    """A topic's partitions and order can be changed while its programs run (16)."""
    idempotent_publish: Capability = Capability(
        "unsupported",
        "leave the setting idempotent_publish out, and make handlers idempotent: idempotent=True",
    )
    """What is published again with the same `Outgoing.once` is stored once. See `Adapter.publishes_once`."""
    max_delay: float = inf
    """The longest delay of an unordered retry, and of a publish, seconds."""
    lateness: float = 0.0
    """How late what was delayed may come on an idle broker, seconds."""
    max_hold: float = inf
    """The longest time a delivery may be held by a member of an ordered group, seconds (8)."""
    max_message_bytes: int
    """Body, key, headers and attributes together, bytes."""
    durability: Literal["none", "process crash", "power loss", "unknown"]
    """What a confirmed message survives, on one node."""
    fenced: bool
    """The settlement of a member that lost its lease is refused (9)."""

    def longest_wait(self, *, ordered: bool) -> float:
        """The longest delay of one retry, in seconds: a member of an ordered group holds it, else the broker does."""
        return self.max_hold if ordered else self.max_delay
