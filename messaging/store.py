"""The small SPI of idempotency stores (23); entry point group `messaging.stores`, by URL scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from messaging.clock import Clock


@dataclass(frozen=True, slots=True)
class Begun:
    """The key is now in progress, and ours: `fence` is needed to complete, extend or clear it."""

    fence: int


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another owner has it; its lease ends in `remaining` seconds unless it extends."""

    remaining: float


@dataclass(frozen=True, slots=True)
class Completed:
    """It was handled before; `result` is the reply that was stored with it."""

    result: bytes | None


BeginResult: TypeAlias = Begun | InProgress | Completed


class IdempotencyStore(ABC):
    """absent -> in progress (owner, fence, lease) -> done (result, until its ttl). Each call is atomic."""

    shared: bool
    """Whether other processes see it."""

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, *, clock: Clock) -> IdempotencyStore:
        """Read the URL; no I/O."""

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises ConnectionFailed or AuthenticationFailed."""

    @abstractmethod
    async def close(self) -> None:
        """A second call is a no-op."""

    @abstractmethod
    async def begin(self, key: str, *, digest: str, lease: float, token: str = "") -> BeginResult:
        """Take the key for `lease` seconds, or tell who has it.

        `token` names who asks: whoever the key is in progress for, and asks again since the answer was lost, gets the
        same fence and a new lease. An empty one names nobody.
        An expired lease is taken over by another token, with a larger fence. Raises IdempotencyConflict when the key is
        known with another payload `digest`, ConnectionFailed when the store cannot be reached, AuthenticationFailed or
        ConfigurationError when it refuses for good, which ends the subscription. Anything else counts as a failure of
        the message.
        """

    @abstractmethod
    async def extend(self, key: str, fence: int, *, lease: float) -> bool:
        """Extend the lease; False when the fence is no longer the newest."""

    @abstractmethod
    async def complete(self, key: str, fence: int, *, result: bytes | None, ttl: float) -> bool:
        """Done, for `ttl` seconds; False, and nothing written, when the fence is no longer the newest."""

    @abstractmethod
    async def clear(self, key: str, fence: int) -> None:
        """Absent again, if the fence is still the newest. The next fence is larger all the same."""
