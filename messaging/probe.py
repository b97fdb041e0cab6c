"""What a broker answers when it is asked how it is. A part of the SPI (`messaging.adapter`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group as the broker knows it."""

    topic: str
    group: str
    lag: int | None = None
    """Messages not yet handed to a member, where the broker can tell."""
    members: int | None = None
    dead_letters: int | None = None
    oldest: float | None = None
    """Age in seconds of the oldest message not yet handled, where the broker can tell."""
    generation: int = 1
    """Of the topic; above the SPI, all generations are one group."""
    ordered: bool | None = None
    stuck: str | None = None
    """Why messages wait that the broker hands to no member, and what to do; None where it cannot tell."""


@dataclass(frozen=True, slots=True)
class BrokerHealth:
    """What the broker answers to a probe."""

    connected: bool
    groups: Sequence[GroupInfo] = ()
    error: str | None = None
    refusing: str | None = None
    """Why it takes no publishes now, where it says so by itself; what came of publishes is known without it."""
    silent: bool = False
    """It did not answer this probe at all, on a connection that is not given up yet."""
    unsafe: bool = False
    """It may lose what it has confirmed, because of how it is configured by now; `error` says why and what to do."""
