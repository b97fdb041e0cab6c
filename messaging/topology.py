"""What a broker is to have: topics, and groups of them. Part of the SPI."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Start: TypeAlias = Literal["latest", "earliest"] | datetime
TopologyMode: TypeAlias = Literal["declare", "verify", "off"]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the broker is to know it."""

    name: str
    ordered: bool = False
    partitions: int = 8
    retention: float | None = None
    native: str | None = None
    generation: int = 1
    """Counts the changes of partitions and order. Each generation is a topic of its own; its names carry it (16)."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group of a topic. `ordered` is false where a group of an ordered topic gives order up.

    A `start` that is a time has a zone.
    """

    topic: TopicSpec
    name: str
    ordered: bool = False
    start: Start = "latest"
    native: str | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """What `declare` creates or verifies. A group begins when it is declared."""

    topics: Sequence[TopicSpec] = ()
    groups: Sequence[GroupSpec] = ()
    mode: TopologyMode = "declare"
