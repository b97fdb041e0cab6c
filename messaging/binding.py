"""What the dispatcher needs to know of one subscription, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from messaging.errors import Closed, is_fatal
from messaging.isolation import Isolation
from messaging.message import Ack, Release, Retry
from messaging.middleware.timeout import AckTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from messaging.adapter import RawDelivery, Settled, Subscription
    from messaging.codec import Codec
    from messaging.message import Delivery, Handler, Message, Outcome

REMEMBERED = 30.0
"""Seconds for which a store counts as away that is asked no more: what is released comes again sooner."""
SILENT = 5.0
"""Seconds after which a store that is asked and answers nobody counts as away."""


@dataclass(slots=True)
class Counters:
    """What happened to the deliveries of one subscription since it started."""

    received: int = 0
    acked: int = 0
    retried: int = 0
    rejected: int = 0
    released: int = 0
    lost: int = 0
    expired: int = 0
    reconnects: int = 0

    def count(self, outcome: Outcome) -> None:
        """One delivery was settled with this outcome."""
        if isinstance(outcome, Ack):
            self.acked += 1
        elif isinstance(outcome, Release):
            self.released += 1
        elif isinstance(outcome, Retry):
            self.retried += 1
        else:
            self.rejected += 1


@dataclass(slots=True)
class StoreState:
    """What the last question to a subscription's idempotency store came to: without it, nothing is handled."""

    error: Exception | None = None
    at: float = -inf
    """When it failed, in `Clock.monotonic` seconds."""
    asking: int = 0
    """Questions that it has not answered."""
    quiet_since: float = inf
    """While there are any: since when it has answered none."""

    def asked(self, now: float) -> None:
        """A question begins."""
        if not self.asking:
            self.quiet_since = now
        self.asking += 1

    def answered(self, now: float) -> None:
        """One is over, with an answer or without."""
        self.asking -= 1
        self.quiet_since = now

    def check(self) -> None:
        """Raise what no trying again heals (25); a store of another party may raise OSError where it is away."""
        if self.error is not None and is_fatal(self.error) and not isinstance(self.error, OSError | Closed):
            raise self.error

    def failing(self, now: float) -> str | None:
        """Why it does not answer; None where it does, or where nothing was asked for long."""
        if self.asking and now - self.quiet_since >= SILENT:
            return f"the idempotency store has answered nothing for more than {SILENT:g} s"
        if self.error is None or now > self.at + REMEMBERED:
            return None
        return f"the idempotency store does not answer: {self.error!r}"


class Observer(Protocol):
    """Who wants to know of single deliveries: consuming by hand does."""

    def started(self, delivery: Delivery[Any], raw: RawDelivery) -> None:
        """The handler is about to be called with this delivery."""
        ...

    def settled(self, raw: RawDelivery, result: Settled) -> None:
        """The broker has taken its outcome, or never will: then it is a SettleError."""
        ...


@dataclass(slots=True, kw_only=True)
class Binding:
    """One subscription of an app, bound to a bus: what the dispatcher needs to know of it."""

    subscription: Subscription
    codec: Codec[Any]
    handler: Handler
    handler_name: str
    service: str
    grace: float
    max_delay: float
    max_hold: float = inf
    """The longest time for which the broker lets a delivery be held, all its retries together, seconds (8)."""
    answer: Callable[[RawDelivery, Outcome], tuple[Outcome, Message | None]] | None = None
    """Turns a responder's outcome into a reply."""
    observer: Observer | None = None
    control: Callable[[RawDelivery], Awaitable[Outcome | None]] | None = None
    """Asked first about a message whose type begins with `messaging.`: its outcome, or None for an ordinary one."""
    counters: Counters = field(default_factory=Counters)
    store: StoreState = field(default_factory=StoreState)
    ack_timeout: AckTimeout = field(default_factory=AckTimeout)
    isolation: Isolation = field(default_factory=Isolation)
    """Shared with the other subscriptions of the bus."""
