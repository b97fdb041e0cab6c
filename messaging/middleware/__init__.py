"""Functions from handler to handler, one concept a file.

The library's own stand around the user's, in this order, once per attempt:
retrying( expiring( idempotent( timing_out( user middleware ( handler ))))).
"""

from typing import TYPE_CHECKING

from messaging.lending import lent as _lent

if TYPE_CHECKING:
    from messaging.middleware.expiry import expiring
    from messaging.middleware.idempotency import idempotent
    from messaging.middleware.retry import Delay, RetryPolicy, exponential, fixed, retrying
    from messaging.middleware.timeout import timing_out

__getattr__ = _lent(
    __name__,
    {
        "expiry": "expiring",
        "idempotency": "idempotent",
        "retry": "Delay RetryPolicy exponential fixed retrying",
        "timeout": "timing_out",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Delay",
    "RetryPolicy",
    "expiring",
    "exponential",
    "fixed",
    "idempotent",
    "retrying",
    "timing_out",
]
