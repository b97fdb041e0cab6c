"""Redis under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from messaging_contracts import targets
from messaging_contracts.under_test import Target
from messaging_redis.keys import TopicKeys
from messaging_redis.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging import Bus, Topic


def target(url: str, store: str | None) -> Target:
    """Leases of messages and of partitions have an option each."""
    return Target(
        url=url,
        short_lease_url=targets.with_options(url, lease=1, partition_lease=1),
        store=store or url,
        foreign=ForeignToRedis(),
    )


class ForeignToRedis:
    """See `messaging_contracts.foreign.ForeignPublisher`."""

    forgeries: Mapping[str, Any] = {"_entry": "[]", "_attempt": "99", "_returns": "99", "_guard": "tripped"}
    oddities: Mapping[str, Any] = {
        "bytes": b"\xff\xfe",
        "ce_type": b"\xff",
        "ce_notbefore": b"\xff",
        "": "",
        "_origin": "9",
    }
    """Values that are no text."""

    async def publish(
        self,
        bus: Bus,
        topic: Topic[Any],
        body: bytes,
        *,
        headers: Mapping[str, Any],
        content_type: str | None,
    ) -> None:
        assert bus.settings.url is not None
        settings = RedisSettings.from_url(bus.settings.url, namespace=bus.settings.namespace)
        stream = TopicKeys(settings, bus.catalogue.spec(topic)).stream(0)
        fields: dict[str, Any] = {**headers, "body": body} if headers or content_type else {"data": body}
        if content_type is not None:
            fields["content-type"] = content_type
        await bus.native.xadd(stream, fields)
