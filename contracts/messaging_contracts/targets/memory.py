"""The memory broker under test: it lives in the process of its members, so they die in tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from messaging_contracts import targets
from messaging_contracts.under_test import Target
from messaging_memory import MemoryAdapter
from messaging_memory.topology import physical_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging import Bus, Topic


def target(url: str, store: str | None) -> Target:
    """The URL has to name its broker: without a name, no two buses would share one."""
    name = urlsplit(url).netloc
    assert name, "the suite needs a memory broker with a name, as memory://contract: its members share it"
    return Target(
        url=url,
        short_lease_url=targets.with_options(url, lease=1),
        store=store or f"memory://{name}",
        foreign=ForeignToMemory(),
        crash=crash,
    )


def crash(bus: Bus) -> None:
    """The broker loses this bus as it would lose a process."""
    assert isinstance(bus.adapter, MemoryAdapter)
    bus.adapter.crash()


class ForeignToMemory:
    """See `messaging_contracts.foreign.ForeignPublisher`."""

    forgeries: Mapping[str, Any] = {"deliveries": "99", "returns": "99", "position": "0"}
    oddities: Mapping[str, Any] = {
        "list": [1, {"deep": None}],
        "bytes": b"\xff",
        "ce_type": 5,
        "ce_notbefore": object(),
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
        bus.native.inject(
            physical_topic(bus.catalogue.spec(topic), bus.settings.namespace),
            body,
            headers=headers,
            content_type=content_type,
            reply_to=headers.get("messaging-reply-to"),
        )
