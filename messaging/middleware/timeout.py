"""A bound on how long a handler may run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from messaging.clock import Clock, timeout
from messaging.message import checked_seconds

if TYPE_CHECKING:
    from messaging.message import Delivery, Duration, Handler, Middleware, Outcome


def timing_out(seconds: Duration, *, clock: Clock) -> Middleware:
    """Cancel the handler after `seconds` and raise TimeoutError, which the retry policy judges like any
    other. Raises ConfigurationError for what is no duration.

    A synchronous handler's thread cannot be stopped: its attempt ends when the thread does. A
    TimeoutError of the handler's own and a cancellation from outside pass unchanged.
    """
    longest = checked_seconds(seconds, "The timeout")

    def middleware(next: Handler) -> Handler:
        async def handle(delivery: Delivery[Any]) -> Outcome:
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
                    f" of {delivery.message.topic}, group {delivery.group}"
                ) from error

        return handle

    return middleware
