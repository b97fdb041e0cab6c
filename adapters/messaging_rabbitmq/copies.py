"""Copies of a received message: delayed, marked as run alone, or as a dead letter. Stored before the original goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.envelope import ATTEMPT, FAILURE, GUARD
from messaging.errors import ConfigurationError, MessagingError
from messaging_rabbitmq.frames import Parcel, parcel_of
from messaging_rabbitmq.properties import control_headers, copy_properties
from messaging_rabbitmq.tiers import tier_for
from messaging_rabbitmq.waits import FOREVER, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiormq.abc import DeliveredMessage

    from messaging.adapter import GroupSpec, RawDelivery
    from messaging_rabbitmq.session import Session


class Copies:
    """Makes and stores the copies of one group's messages."""

    def __init__(self, session: Session, group: GroupSpec) -> None:
        self._session = session
        self._group = group
        self._queue = session.names.queue(group)

    async def failed(self, delivery: RawDelivery, after: float, failure: str | None) -> Parcel | None:
        """Handled again after so many seconds, one attempt later. None where no delay tier may be made."""
        control = {ATTEMPT: str(delivery.attempt + 1)}
        if failure is not None:
            control[FAILURE] = failure
        return await self._delayed(delivery, after, control)

    async def released(self, delivery: RawDelivery, after: float) -> Parcel | None:
        """Handled again after so many seconds, uncounted."""
        return await self._delayed(delivery, after, control_headers(delivery))

    def alone(self, delivery: RawDelivery) -> Parcel:
        """The same message, with the mark that it is run alone.

        It goes to the queue of which a process takes one at a time: only the one that runs is counted when the
        process dies.
        """
        return self._parcel(
            self._session.names.suspects(self._group), delivery, {**control_headers(delivery), GUARD: "alone"}
        )

    async def dead(self, delivery: RawDelivery, failure: str | None) -> Parcel:
        """A dead letter of the group."""
        queue = await self._session.topology.queues.dead(self._group)
        control = {ATTEMPT: str(delivery.attempt)}
        if failure is not None:
            control[FAILURE] = failure
        return self._parcel(queue, delivery, control)

    async def _delayed(self, delivery: RawDelivery, after: float, control: dict[str, str]) -> Parcel | None:
        session = self._session
        now, after = session.clock.monotonic(), min(after, FOREVER)
        milliseconds = tier_for(after)
        if not milliseconds:
            return self._parcel(self._queue, delivery, control)
        queue = await session.topology.queues.tier(self._group, milliseconds)
        if queue is None:
            return None
        wait = written(after, milliseconds / 1000, now=now, member=session.member)
        return self._parcel(queue, delivery, {**control, **wait})

    def _parcel(self, queue: str, delivery: RawDelivery, control: Mapping[str, str]) -> Parcel:
        original: DeliveredMessage = delivery.native
        properties = copy_properties(
            original, delivery, control, table_limit=self._session.consuming.table_limit
        )
        return parcel_of("", queue, properties, original.body)

    async def store(self, parcels: Sequence[Parcel]) -> list[MessagingError | None]:
        """Store each, confirmed; what went wrong with it, or None."""
        if not parcels:
            return []
        outcomes: list[MessagingError | None] = []
        for parcel, fate in zip(parcels, await self._session.sender.send(parcels), strict=True):
            if fate == "stored":
                outcomes.append(None)
            elif fate == "unrouted":
                self._session.topology.forget()
                outcomes.append(
                    ConfigurationError(
                        f"queue {parcel.routing_key!r} of group {self._group.name}, topic {self._group.topic.name}, "
                        f"is gone from RabbitMQ at {self._session.settings.address}: was the group deleted?"
                    )
                )
            else:
                self._session.topology.queues.unsure(parcel.routing_key)
                outcomes.append(fate)
        return outcomes
