"""What the broker has said of the messages that were handed over on one channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, TypeAlias

from messaging.errors import ConnectionFailed
from messaging_rabbitmq.amqp import ACK, BODY, HEADER, METHOD, NACK, RETURN, TAG
from messaging_rabbitmq.arrivals import content_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging_rabbitmq.frames import Parcel

Word: TypeAlias = "Literal['stored', 'unrouted', 'refused'] | Exception | None"
"""`refused`: basic.nack. An exception: the channel is gone. None: nothing yet."""


class Batch:
    """What was handed over together; `over` is done when there is a word on each, or nobody waits any longer."""

    __slots__ = (
        "_ids",
        "_left",
        "_places",
        "_returned",
        "ended",
        "first",
        "lane",
        "last",
        "over",
        "parcels",
        "refused",
        "spread",
        "unsent",
        "words",
    )

    def __init__(
        self,
        parcels: Sequence[Parcel],
        ended: Callable[[int, bool], None] | None = None,
        *,
        lane: str = "",
        spread: bool = False,
    ) -> None:
        self.parcels = parcels
        """Until they are handed over."""
        self.lane = lane
        self.spread = spread
        """See `Ports`."""
        self.unsent: Exception | None = None
        """Why they were not handed over, where more than time was missing."""
        self._ids: Sequence[str] = ()
        self.words: list[Word] = [None] * len(parcels)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first = self.last = 0
        """Delivery tags."""
        self._left = len(parcels)
        self.ended = ended
        """Gets the number of its messages, and whether one was refused, when the last word has come, even if nobody
        waits for it.
        """
        self.refused = False
        self._returned: set[int] = set()
        self._places: dict[str | None, int] = {}
        """By message id, once one has come back."""

    def tell(self, start: int, end: int, word: Word) -> bool:
        """The word on these places that have none yet; whether that was the last."""
        words, returned = self.words, self._returned
        for at in range(start, end):
            if words[at] is None:
                words[at] = "unrouted" if at in returned and word == "stored" else word
                self._left -= 1
        if word == "refused":
            self.refused = True
        if self._left:
            return False
        if self.ended is not None:
            self.ended(len(words), self.refused)
        self.let_go()
        return True

    def returned(self, message_id: str | None) -> bool:
        """Whether this unroutable message, whose confirmation is still to come, is one of these."""
        if not self._places:
            self._places = {message_id: place for place, message_id in enumerate(self._ids)}
        place = self._places.get(message_id)
        if place is None:
            return False
        self._returned.add(place)
        return True

    def forget_bodies(self) -> None:
        """They are with the socket: a broker that reads nothing is not held in memory twice."""
        self._ids = [parcel.message_id for parcel in self.parcels]
        self.parcels = ()

    def let_go(self) -> None:
        """Let who waits go on."""
        if not self.over.done():
            self.over.set_result(None)


class Confirms:
    """The unconfirmed batches of one channel, in their order; takes what the broker says of them."""

    def __init__(self) -> None:
        self.closed = False
        self.batches: dict[int, Batch] = {}
        """By their first delivery tag."""
        self._next = 1
        self._returning = False
        """The content of a returned message comes."""

    def expect(self, batch: Batch) -> None:
        """These are the next that go out."""
        batch.first = self._next
        self._next += len(batch.words)
        batch.last = self._next - 1
        self.batches[batch.first] = batch
        batch.forget_bodies()

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """See `Tap`."""
        if kind == METHOD:
            method = data[start : start + 4]
            if method in (ACK, NACK):
                tag, flags = TAG.unpack_from(data, start + 4)
                self._confirmed(tag, "stored" if method == ACK else "refused", multiple=bool(flags & 1))
                return True
            self._returning = method == RETURN
            return self._returning
        if not self._returning:
            return False
        if kind == HEADER:
            header = content_header(data, start, end)
            self._returned(None if header is None else header.properties.message_id)
        return kind in (HEADER, BODY)

    def _returned(self, message_id: str | None) -> None:
        if not any(batch.returned(message_id) for batch in self.batches.values()):
            # Its confirm will look like that of a message that is stored: none of them can be believed.
            self._give_up(ConnectionFailed("RabbitMQ returned a message that cannot be told from the others"))

    def _confirmed(self, tag: int, word: Word, *, multiple: bool) -> None:
        if not multiple and (batch := self.batches.get(tag)) is not None:
            if batch.tell(0, 1, word):
                del self.batches[tag]
            return
        over: list[int] = []
        for first, batch in self.batches.items():
            if first > tag:
                break
            if multiple or tag <= batch.last:
                end = min(tag, batch.last) - first + 1
                if batch.tell(0 if multiple else end - 1, end, word):
                    over.append(first)
        for first in over:
            del self.batches[first]

    def lose(self, error: Exception) -> None:
        """The channel is gone: there will be no other word."""
        self.closed = True
        self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        batches, self.batches = self.batches, {}
        for batch in batches.values():
            batch.tell(0, len(batch.words), error)
