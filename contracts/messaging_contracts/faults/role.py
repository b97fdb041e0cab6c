"""What a process of a scenario is to do, and how it is told what that leaves open."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging import Topic
from messaging.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

Quirk: TypeAlias = Literal["none", "block", "poison", "exit", "stubborn", "slow"]

GROUP = "billing"
TOPICS = ("ordered", "shared")
"""One topic that keeps order and one that does not: every fault is tried on both at once."""
PARTITIONS = 4
PREFETCH = 16
TRIES = 200
NOTICED = 3.0
"""Seconds after the end of a lease within which everybody has noticed it."""
SYSTEM_TIME = time.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a process is to do. Durations in seconds."""

    name: str
    journal: str
    namespace: str
    lease: float
    publish: int = 0
    """Publish so many messages to each topic, and then more until SIGTERM, instead of handling."""
    ask: bool = False
    """Ask until SIGTERM, instead of handling."""
    redrive: bool = False
    """Redrive dead letters until SIGTERM, instead of handling."""
    publishers: int = 10
    """Tasks that publish at once, to each topic, each with a key of its own; or that ask."""
    pace: float = 0.0
    """Between two messages of one task."""
    at_once: int = 1
    """Messages that every second task calls for before any of them has ended: their order must be that of the calls."""
    once: bool = False
    """Publish with `idempotent_publish`, to the topics of which the broker stores a message once."""
    delay: float = 0.0
    """With which messages are published to a topic without order: this, or one to three quarters of it; 0: none."""
    respond: bool = False
    """Answer requests too."""
    store: str = ""
    """The URL of the idempotency store, where the group is idempotent."""
    concurrency: int = 8
    prefetch: int = PREFETCH
    work: float = 0.02
    """What one handling takes."""
    failing: int = 0
    """Every so manieth message fails at its first attempt, until SIGUSR2; 0: none."""
    quirk: Quirk = "none"
    """What happens at the message `special`, once, or each time where it is `poison` or `exit`."""
    special: str = ""
    quirk_seconds: float = 10.0
    grace: float = 30.0
    measure: float = 0.0
    """Seconds between two looks at what the process takes; 0: none."""
    ahead: float = 0.0
    """By how much the clock is wrong from the start."""
    jump: float = 0.0
    """By how much the clock jumps at SIGUSR1."""
    stuck_key: str = ""
    """Each message of this key fails until SIGUSR2."""
    attempts: int = 3
    retry_delay: float = 0.2


def topic_of(name: str) -> Topic[Any]:
    """One of `TOPICS`."""
    return Topic(name, ordered=name == "ordered", partitions=PARTITIONS)


class JumpingClock(SystemClock):
    """The system's clock, whose time of day can be changed; what is monotonic never jumps."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self.time: Callable[[], float] = self._time

    def _time(self) -> float:
        return SYSTEM_TIME() + self._ahead

    def jump(self, seconds: float) -> None:
        """Set it forward, or back."""
        self._ahead += seconds


@dataclass(slots=True)
class Controls:
    """How a worker is told what its role leaves open."""

    ready: Callable[[], object]
    """Called when it takes part."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: finish in an orderly way."""
    clock: JumpingClock = field(default_factory=JumpingClock)
    healed: bool = False
    """Whether what is to fail fails no longer."""

    def heal(self) -> None:
        """Let nothing more fail that is to."""
        self.healed = True
