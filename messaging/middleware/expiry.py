"""What becomes of a message whose time has passed (6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging.message import Ack, Reject

if TYPE_CHECKING:
    from collections.abc import Callable

    from messaging.clock import Clock
    from messaging.message import Delivery, Handler, Middleware, Outcome

OnExpired: TypeAlias = Literal["drop", "dead_letter"]


def expiring(
    on_expired: OnExpired = "drop", *, clock: Clock, expired: Callable[[Delivery[Any]], object]
) -> Middleware:
    """Before each attempt: a message past its `expires_at` is dropped (Ack) or rejected, unhandled.

    `expired` is called for each, so that drops are counted.
    """

    def middleware(next: Handler) -> Handler:
        async def handle(delivery: Delivery[Any]) -> Outcome:
            end = delivery.message.expires_at
            if end is None or clock.time() < end.timestamp():
                return await next(delivery)
            expired(delivery)
            if on_expired == "drop":
                return Ack()
            return Reject(f"expired at {end.isoformat()}", cause="expired")

        return handle

    return middleware
