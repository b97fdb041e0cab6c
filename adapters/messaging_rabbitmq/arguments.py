"""What quorum queues of ours are declared with."""

from __future__ import annotations

from typing import Any

DELIVERY_LIMIT = 1_000_000
"""RabbitMQ 4.0 drops a message after 20 returns unless told otherwise, and -1 means drop at once on 3.10."""


def quorum(**arguments: Any) -> dict[str, Any]:
    """The arguments of a quorum queue."""
    named = {"x-" + name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
    return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, **named}
