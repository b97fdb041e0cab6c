"""One channel that publishes: its messages go to the socket as one write, and its confirms are taken as they come.

aiormq's `basic_publish` costs a task, a lock and a marshalling of every frame for each message, and each confirm three
steps of its loop. What is done here instead is AMQP, and two attributes of aiormq's channel, which are no promise of
its: a version that this was not made for gets the public call for each message.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiormq.exceptions import DeliveryError
from aiormq.exceptions import PublishError as Returned

from messaging.errors import ConnectionFailed
from messaging_rabbitmq.amqp import AROUND_FRAME
from messaging_rabbitmq.confirms import Batch, Confirms
from messaging_rabbitmq.connection import is_known, wire_of
from messaging_rabbitmq.frames import USUAL_FRAME, marshalled

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from messaging_rabbitmq.frames import Parcel


class Outlet(Protocol):
    """Where batches go out."""

    def hand_over(self, batch: Batch, *, more: bool = False) -> bool:
        """Send all of it, in order; False when the channel is closed and nothing was sent. The batch is told.

        With `more`, others will be handed over in the same tick.
        """
        ...

    def lose(self, error: Exception) -> None:
        """The channel is gone: what it has not confirmed never will be."""
        ...


def outlet_of(channel: AbstractChannel) -> Outlet:
    """The outlet of a channel with confirms that is used for nothing else."""
    if is_known(channel):
        return TappedOutlet(channel)
    return PlainOutlet(channel)


class TappedOutlet:
    """Writes beside aiormq, and takes the answers."""

    def __init__(self, shown: Any) -> None:
        self._number: int = shown.number
        largest: int = shown.max_content_size
        self._largest = largest if largest > 0 else USUAL_FRAME - AROUND_FRAME
        self._wire = wire_of(shown)
        self.confirms = Confirms()
        self._wire.tap(self._number, self.confirms)

    def hand_over(self, batch: Batch, *, more: bool = False) -> bool:
        """See `Outlet`."""
        if self.confirms.closed or not self._wire.write(
            marshalled(self._number, self._largest, batch.parcels), more=more
        ):
            return False
        self.confirms.expect(batch)
        return True

    def lose(self, error: Exception) -> None:
        """See `Outlet`."""
        self.confirms.lose(error)


class PlainOutlet:
    """One public call for each message."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    def hand_over(self, batch: Batch, *, more: bool = False) -> bool:
        """See `Outlet`."""
        del more
        for place, parcel in enumerate(batch.parcels):
            _publish(self._channel, parcel).add_done_callback(partial(_confirmed, batch, place))
        batch.forget_bodies()
        return True

    def lose(self, error: Exception) -> None:
        """Aiormq fails its calls itself."""


def _publish(channel: AbstractChannel, parcel: Parcel) -> asyncio.Future[Any]:
    # The abstract class does not show `wait`, which all channels have.
    publish = cast("Any", channel).basic_publish
    task: asyncio.Task[Any] = asyncio.ensure_future(
        publish(
            parcel.body,
            exchange=parcel.exchange,
            routing_key=parcel.routing_key,
            properties=parcel.properties,
            mandatory=parcel.mandatory,
            wait=False,
        )
    )
    return task


def _confirmed(batch: Batch, place: int, call: asyncio.Future[Any]) -> None:
    error = ConnectionFailed("cancelled") if call.cancelled() else call.exception()
    if error is None:
        batch.tell(place, place + 1, "stored")
    elif isinstance(error, Returned):
        batch.tell(place, place + 1, "unrouted")
    elif isinstance(error, DeliveryError):
        batch.tell(place, place + 1, "refused")
    else:
        batch.tell(place, place + 1, error if isinstance(error, Exception) else ConnectionFailed(str(error)))
