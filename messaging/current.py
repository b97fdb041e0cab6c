"""What runs now: context variables that a worker sets, and what is called from a handler reads."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from messaging.message import Delivery

current_delivery: ContextVar[Delivery[Any] | None] = ContextVar("current_delivery", default=None)
still_leased: ContextVar[Callable[[], bool]] = ContextVar("still_leased", default=lambda: True)
"""Tells whether the lease of what this worker runs has not ended: for who has waited and is about to start it (9)."""
