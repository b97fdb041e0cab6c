"""Kafka under test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from messaging_contracts import targets
from messaging_contracts.under_test import Target
from messaging_kafka import library
from messaging_kafka.names import Names
from messaging_kafka.produce import Produce

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging import Bus, Topic

STORE = "memory://contract"
"""Kafka keeps no idempotency keys; the members of these cases share a process."""


def target(url: str, store: str | None) -> Target:
    """A session is what a lease is elsewhere: a member that no longer beats has lost its partitions."""
    return Target(
        url=url,
        short_lease_url=targets.with_options(url, session=1, heartbeat=0.3),
        store=store or STORE,
        foreign=ForeignToKafka(),
    )


class ForeignToKafka:
    """See `messaging_contracts.foreign.ForeignPublisher`. A plain record, without a key, in partition 0."""

    forgeries: Mapping[str, Any] = {
        "messaging-origin": "99/99",
        "messaging-guard": "tripped",
        "messaging-not-before": "99999999999",
        "messaging-wait": "99999999999",
        "messaging-failure": "{}",
    }
    oddities: Mapping[str, Any] = {
        "nothing": None,
        "bytes": b"\xff\xfe",
        "ce_type": b"\xff",
        "ce_time": None,
        "ce_notbefore": b"\xff",
        "messaging-failure": b"\xff",
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
        where = Names(bus.settings.namespace).topic(bus.catalogue.spec(topic))
        written = [
            (name, str(value).encode() if value is not None and not isinstance(value, bytes) else value)
            for name, value in headers.items()
        ]
        if content_type is not None:
            written.append(("content-type", content_type.encode()))
        batch = library.BatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
        # Retention deletes a record by the time that its producer wrote into it.
        batch.append(0, int(time.time() * 1000), None, body, written)
        request = Produce(5000, [(where, [(0, bytes(batch.build()))])])
        client = bus.native
        await client.add_topic(where)
        response = await client.send(client.cluster.leader_for_partition(library.Place(where, 0)), request)
        assert response.topics[0][1][0][1] == 0
