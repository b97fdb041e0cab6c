"""One channel that consumes one queue: what arrived, what is unacknowledged, and acknowledging it.

aiormq would run callbacks as tasks and cancel them when the channel closes, so they only put messages aside. Delivery
tags belong to the channel; acknowledging a settled tag again closes it, so what is outstanding is tracked here, and
a whole prefix of it is acknowledged by one frame.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity

from messaging.adapter import Lease
from messaging.errors import TopicNotFound
from messaging_rabbitmq.arrivals import callback_of, take_arrivals
from messaging_rabbitmq.connection import abandon, close_channel, translated, when_closed, why_closed
from messaging_rabbitmq.properties import unique_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging.adapter import RawDelivery
    from messaging_rabbitmq.arrivals import Arrivals
    from messaging_rabbitmq.connection import Link


class Claim:
    """The token of a delivery: where it is to be settled."""

    __slots__ = ("done", "held_until", "intake", "tag")

    def __init__(self, intake: Intake, tag: int) -> None:
        self.intake = intake
        self.tag = tag
        self.done = False
        self.held_until = 0.0
        """Its delay is waited for here, by the monotonic clock."""


class Intake:
    """Messages of one queue, prefetched."""

    def __init__(
        self, queue: str, *, arrived: Callable[[], None], lost: Callable[[Intake, str], None]
    ) -> None:
        self.queue = queue
        self.waiting: deque[DeliveredMessage] = deque()
        self.epoch = unique_id()
        """Unique for this channel: with the delivery tag, the only position that RabbitMQ gives a message."""
        self.gone = False
        """The channel is gone: nothing of it can be settled."""
        self.prefetch = 0
        """How many unsettled messages the broker lets this channel have."""
        self._outstanding: dict[int, RawDelivery | None] = {}
        self._arrived = arrived
        self._lost = lost
        self._channel: AbstractChannel | None = None
        self._arrivals: Arrivals | None = None
        """By which it settles, too, with a version of aiormq that is known."""
        self._lease = Lease()

    async def open(self, link: Link, prefetch: int) -> None:
        """Consume. Raises TopicNotFound when the queue does not exist."""
        self._channel = channel = await link.channel(buffer=1024)
        self._lease = link.lease
        self.prefetch = min(prefetch, 65535)
        opened = False
        try:
            with translated(f"consuming queue {self.queue}", link.address):
                channel.on_consumer_cancel_callbacks.add(self._cancelled)
                when_closed(channel, lambda: self._closed(why_closed(channel)))
                self._arrivals = take_arrivals(channel, self._put)
                await channel.basic_qos(prefetch_count=self.prefetch)
                try:
                    await channel.basic_consume(self.queue, callback_of(self._put))
                except ChannelNotFoundEntity as error:
                    raise TopicNotFound(
                        f"queue {self.queue!r} does not exist at RabbitMQ {link.address}: it was deleted or never "
                        f"declared. Declare the group, then start again."
                    ) from error
            opened = True
        finally:
            if not opened:
                self.gone = True
                self._channel = None
                abandon(channel)

    def _put(self, message: DeliveredMessage) -> None:
        if self.gone:
            return
        self._outstanding[message.delivery_tag or 0] = None
        self.waiting.append(message)
        self._arrived()

    def _cancelled(self, _: Any) -> None:
        self._closed("the broker cancelled its consumer: the queue was deleted, or its node left")

    def _closed(self, reason: str) -> None:
        if not self.gone:
            self.gone = True
            self.waiting.clear()
            self._lost(self, reason)

    def lose(self) -> None:
        """A settlement found its channel closed, before that was told: what is here must not go on without it (7)."""
        self._closed("its channel was closed" if self._channel is None else why_closed(self._channel))

    def hand_out(self, delivery: RawDelivery, tag: int) -> RawDelivery:
        """Remember who has it."""
        delivery.token = Claim(self, tag)
        delivery.lease = self._lease
        self._outstanding[tag] = delivery
        return delivery

    def handed_out(self) -> list[RawDelivery]:
        """What was handed out and is not settled."""
        return [delivery for delivery in self._outstanding.values() if delivery is not None]

    def forsake(self) -> list[RawDelivery]:
        """Settle nothing of it any more; what was handed out and is now lost, told once."""
        lost = self.handed_out()
        self.gone = True
        self.waiting.clear()
        self._outstanding.clear()
        return lost

    async def acknowledge(self, tags: Collection[int]) -> None:
        """One frame for the oldest ones without a gap, one for each of the others.

        Raises ChannelInvalidStateError when the channel is gone.
        """
        channel = self._open_channel()
        wanted = set(tags) & self._outstanding.keys()
        prefix = 0
        last = 0
        for tag in self._outstanding:
            if tag not in wanted:
                break
            prefix, last = prefix + 1, tag
        for tag in wanted:
            del self._outstanding[tag]
        settled = [(last, prefix > 1)] if prefix else []
        if prefix < len(wanted):
            settled += [(tag, False) for tag in sorted(wanted) if tag > last]
        if settled and self._arrivals is not None:
            self._arrivals.acknowledge(settled)
            return
        for tag, multiple in settled:
            await channel.basic_ack(tag, multiple=multiple, wait=False)

    async def give_back(self, tag: int, *, requeue: bool = True) -> None:
        """Back to the queue (`requeue`), or to the queue's own dead-letter exchange."""
        channel = self._open_channel()
        if tag in self._outstanding:
            del self._outstanding[tag]
            if self._arrivals is not None:
                self._arrivals.give_back(tag, requeue=requeue)
            elif requeue:
                await channel.basic_nack(tag, requeue=True, wait=False)
            else:
                await channel.basic_reject(tag, requeue=False, wait=False)

    def _open_channel(self) -> AbstractChannel:
        if self.gone or self._channel is None:
            raise ChannelInvalidStateError("closed")
        return self._channel

    async def close(self) -> None:
        """Everything unsettled goes back, in its order; the consumer is never cancelled by itself, which would not
        keep it.
        """
        self.forsake()
        if self._channel is not None:
            await close_channel(self._channel)
