"""What becomes of a message whose time has passed (6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging.message import Ack, Unbegun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from messaging.clock import Clock
    from messaging.message import Delivery, Handler, Message, Middleware, Outcome

OnExpired: TypeAlias = Literal["drop", "dead_letter"]


class Expired(Unbegun):
    """The end of a message whose time was over before this attempt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, cause="expired")


def has_expired(message: Message, clock: Clock) -> bool:
    """Whether its time has passed."""
    return message.expires_at is not None and clock.time() >= message.expires_at.timestamp()


def expiring(
    on_expired: OnExpired = "drop", *, clock: Clock, expired: Callable[[Delivery[Any]], object]
) -> Middleware:
    """Before each attempt: a message past its `expires_at` is dropped (Ack) or rejected, unhandled.

    `expired` is called for each, so that drops are counted.
    """

    def middleware(next: Handler) -> Handler:
        # No coroutine of its own around that of a message that has not expired.
        def handle(delivery: Delivery[Any]) -> Awaitable[Outcome]:
            end = delivery.message.expires_at
            if end is None or clock.time() < end.timestamp():
                return next(delivery)
            return refuse(delivery, end)

        return handle

    async def refuse(delivery: Delivery[Any], end: datetime) -> Outcome:
        expired(delivery)
        if on_expired == "drop":
            return Ack()
        return Expired(f"expired at {end.isoformat()}")

    return middleware
