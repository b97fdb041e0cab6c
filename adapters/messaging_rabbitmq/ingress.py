"""Foreign routing keys: messages that name no partition are sent on to theirs (19).

They reach the topic's ingress queue by its alternate exchange. All members of all groups consume that queue, of which
the broker lets one be active, so that the order of arrival is kept.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from messaging.clock import check_cancelled
from messaging.envelope import decode
from messaging.errors import MessagingError, TopicNotFound
from messaging.partition import partition_of
from messaging_rabbitmq.frames import Parcel, parcel_of
from messaging_rabbitmq.intake import Intake
from messaging_rabbitmq.packing import PREFIX
from messaging_rabbitmq.properties import foreign_properties

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from messaging.adapter import TopicSpec
    from messaging_rabbitmq.session import Session

logger = logging.getLogger("messaging")

PREFETCH = 200


class IngressRelay:
    """One member's readiness to send foreign messages on."""

    def __init__(self, session: Session, topic: TopicSpec) -> None:
        self._session = session
        self._topic = topic
        self._task: asyncio.Task[None] | None = None
        self._needless = topic.native is not None
        self._turn = 0

    def keep_running(self) -> None:
        """Start, or start again after a failure; called with every `receive`."""
        if self._needless or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.create_task(self._run(), name=f"rabbitmq-ingress-{self._topic.name}")

    async def _run(self) -> None:
        arrived = asyncio.Event()
        intake = Intake(
            self._session.names.ingress(self._topic),
            arrived=arrived.set,
            lost=lambda _intake, _reason: arrived.set(),
        )
        try:
            await intake.open(self._session.consuming, PREFETCH)
            while not intake.gone:
                check_cancelled()
                await arrived.wait()
                arrived.clear()
                await self._relay(intake)
        except TopicNotFound:
            self._needless = True  # a group that was made by hand, or all groups are deleted
        except (MessagingError, AMQPError, ChannelInvalidStateError) as error:
            logger.warning(
                "Foreign messages of topic %s wait in the ingress queue: %s",
                self._topic.name,
                error,
                extra={"topic": self._topic.name},
            )
        finally:
            await intake.close()

    async def _relay(self, intake: Intake) -> None:
        parcels: list[Parcel] = []
        tags: list[int] = []
        partitions = {str(partition) for partition in range(self._topic.partitions)}
        unbound = 0
        while intake.waiting:
            original = intake.waiting.popleft()
            tags.append(original.delivery_tag or 0)
            if original.routing_key in partitions:
                # Nobody was bound to the partition: sent on now, it would pass what came since, or come back for ever.
                unbound += 1
            else:
                parcels.append(self._sent_on(original))
        for fate in await self._session.sender.send(parcels):
            if isinstance(fate, MessagingError):
                raise fate  # closing the channel gives all back, in order
        if unbound:
            logger.warning("%d messages of topic %s had no group", unbound, self._topic.name)
        if tags:
            await intake.acknowledge(tags)

    def _sent_on(self, original: DeliveredMessage) -> Parcel:
        routing_key = original.routing_key or ""
        partitions = self._topic.partitions
        headers: dict[str, Any] = original.header.properties.headers or {}
        described = decode(headers, prefix=PREFIX, topic="", body=b"", position="", key=routing_key or None)
        if described.key is None:  # no key, no order: partitions in turn (10)
            self._turn += 1
            partition = self._turn % partitions
        else:
            partition = partition_of(described.key, partitions)
        return parcel_of(
            self._session.names.exchange(self._topic),
            str(partition),
            foreign_properties(
                original,
                routing_key if described.key == routing_key else None,
                table_limit=self._session.consuming.table_limit,
            ),
            original.body,
        )

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
