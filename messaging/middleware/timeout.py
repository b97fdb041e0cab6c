"""Bounds on how long a handler may run."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from messaging.clock import Clock, timeout
from messaging.message import checked_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from messaging.message import Delivery, Duration, Handler, Middleware, Outcome

SHARE = 0.9
"""Of the time that a broker gives to a delivery: what is left is for its settlement."""


@dataclass(slots=True)
class AckTimeout:
    """How long the broker of one subscription lets a delivery be unsettled, once that was seen."""

    seconds: float = inf

    def seen(self, seconds: float) -> None:
        """One of its consumers has seen this much."""
        self.seconds = min(self.seconds, seconds)


def timing_out(seconds: Duration, *, clock: Clock) -> Middleware:
    """Cancel the handler after `seconds` and raise TimeoutError, which the retry policy judges like any
    other. Raises ConfigurationError for what is no duration.

    A synchronous handler's thread cannot be stopped: its attempt ends when the thread does. A
    TimeoutError of the handler's own and a cancellation from outside pass unchanged.
    """
    longest = checked_seconds(seconds, "The timeout")

    def middleware(next: Handler) -> Handler:
        def handle(delivery: Delivery[Any]) -> Awaitable[Outcome]:
            return _within(longest, next, delivery, clock)

        return handle

    return middleware


def within_ack_timeout(ack_timeout: AckTimeout, *, clock: Clock) -> Middleware:
    """The same in time for the broker: what it takes back from a handler begins anew, uncounted, for ever."""

    def middleware(next: Handler) -> Handler:
        def handle(delivery: Delivery[Any]) -> Awaitable[Outcome]:
            allowed = ack_timeout.seconds
            if allowed == inf:
                return next(delivery)
            why = (
                f". Its broker takes back what is not settled within {allowed:g} s: raise that there, or let the "
                "handler take less"
            )
            return _within(SHARE * allowed, next, delivery, clock, why)

        return handle

    return middleware


async def _within(
    longest: float, next: Handler, delivery: Delivery[Any], clock: Clock, why: str = ""
) -> Outcome:
    own = False
    try:
        async with timeout(clock, longest):
            try:
                return await next(delivery)
            except TimeoutError:
                own = True
                raise
    except TimeoutError as error:
        if own:
            raise
        raise TimeoutError(
            f"the handler took longer than {longest:g} s: message {delivery.message.id}"
            f" of {delivery.message.topic}, group {delivery.group}{why}"
        ) from error
