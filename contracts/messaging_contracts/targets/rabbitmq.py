"""RabbitMQ under test."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pamqp.commands import Basic

from messaging_contracts import targets
from messaging_contracts.under_test import Target
from messaging_rabbitmq.names import Names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiormq

    from messaging import Bus, Topic

SHORT_STRING = 255
"""Bytes of a property, in AMQP 0-9-1."""
STORE = "memory://contract"
"""RabbitMQ keeps no idempotency keys; the members of these cases share a process."""


def target(url: str, store: str | None) -> Target:
    """A connection is what a lease is elsewhere: a member that no longer beats has lost its messages."""
    return Target(
        url=url,
        short_lease_url=targets.with_options(url, heartbeat=2),
        store=store or STORE,
        foreign=ForeignToRabbitMQ(),
    )


class ForeignToRabbitMQ:
    """See `messaging_contracts.foreign.ForeignPublisher`. The routing key is empty: no partition, and no key."""

    forgeries: Mapping[str, Any] = {
        "x-delivery-count": 99,
        "x-death": [{"count": 99, "reason": "expired", "queue": "elsewhere"}],
        "x-first-death-queue": "elsewhere",
        "CC": ["elsewhere"],
        "messaging-partition": "99",
    }
    oddities: Mapping[str, Any] = {
        "list": [1, "a", {"deep": [None, True]}],
        "bytes": bytearray(b"\xff\xfe"),
        "number": 1 << 40,
        "decimal": Decimal("1.5"),
        "nothing": None,
        "cloudEvents_type": {"a": 1},
        "cloudEvents_time": 5,
        "cloudEvents_notbefore": datetime(2000, 1, 1, tzinfo=UTC),
        "messaging-attempt": [3],
        "messaging-failure": {"last": 1},
    }
    """Values of other types than text."""

    async def publish(
        self,
        bus: Bus,
        topic: Topic[Any],
        body: bytes,
        *,
        headers: Mapping[str, Any],
        content_type: str | None,
    ) -> None:
        connection = cast("aiormq.Connection", bus.native)
        reply_to = str(headers.get("messaging-reply-to", ""))
        channel = await connection.channel()
        try:
            await channel.basic_publish(
                body,
                exchange=Names(bus.settings.namespace).exchange(bus.catalogue.spec(topic)),
                routing_key="",
                properties=Basic.Properties(
                    headers=dict(headers) or None,
                    content_type=content_type,
                    reply_to=reply_to.encode()[:SHORT_STRING].decode(errors="ignore") or None,
                    delivery_mode=2,
                ),
            )
        finally:
            await channel.close()
