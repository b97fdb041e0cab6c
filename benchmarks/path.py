"""A path of a message through a broker, and who competes on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.measure import Measured

Run: TypeAlias = Callable[[str, int], Awaitable[Measured]]
"""One round: the broker's URL and the number of messages."""

OURS = "messaging"
BYTES = "messaging, bytes"
"""The library with bytes for a payload, as raw clients have them."""


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    run: Run
    share: float = 1.0
    """Of the path's messages: slow contenders get fewer, so that a round takes as long for each."""
    target: float | None = None
    """What the library's speed must be, in parts of this contender's."""
    like: str = OURS
    """The row of the library that it is compared with: the one that carries what it carries."""


@dataclass(frozen=True, slots=True)
class Path:
    name: str
    broker: str
    what: str
    """What one round does, in a line."""
    messages: int
    contenders: tuple[Contender, ...]
    rate: float | None = None
    """Messages a second that the library must reach on one core."""
    limit: str = ""
    """What bounds the library on this path, in a sentence."""
    least: int = 0
    """Messages that a counted round has whatever its scale: of fewer, only what was read ahead would be timed."""
    latency: bool = False
    """Compared by the latency of single calls, not by rate."""
