"""Writing to partitions: a batch per partition, one request per broker, one fate per record.

Every batch is confirmed by all replicas that are in sync. A partition has one batch of a call under way; after a failed
one nothing more of the call is written there (7). Nothing is sent twice, but to a broker that leads in another's place.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from messaging.errors import MessageTooLarge, PublishError
from messaging_kafka import library
from messaging_kafka.exchange import ONE_REFUSED, Batch, Exchange, Fate, fate_of
from messaging_kafka.library import Place
from messaging_kafka.records import COPY_ROOM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_kafka.brokers import Brokers
    from messaging_kafka.records import Parcel

BATCH_BYTES = 512 << 10
"""Of a batch with several records; a single record may be larger."""
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
NO_PRODUCER = (-1, -1, -1)
"""Of a batch without producer id, epoch and sequence number: the broker stores it as often as it comes."""
NOT_SENT = PublishError("not sent: an earlier message of the same partition failed")


class Writer:
    """Writes parcels. One per adapter."""

    def __init__(self, brokers: Brokers) -> None:
        self._link = brokers.link
        self._exchange = Exchange(brokers)
        self._codec = CODECS[brokers.link.settings.compression]

    async def write_copies(self, parcels: Sequence[Parcel]) -> list[Fate]:
        """As `write`, each for itself: none fails for another, and what is too large as it is goes compressed.

        Another program may have sent it compressed. MessageTooLarge where even that does not fit.
        """
        most = self._link.settings.max_message_bytes + COPY_ROOM
        fates: list[Fate] = [NOT_SENT] * len(parcels)
        waiting: list[int] = [at for at, parcel in enumerate(parcels) if parcel.size <= most]
        large = [at for at, parcel in enumerate(parcels) if parcel.size > most]
        while waiting:
            for at, fate in zip(waiting, await self.write([parcels[at] for at in waiting]), strict=True):
                fates[at] = fate
            refused = [at for at in waiting if isinstance(fates[at], MessageTooLarge)]
            large += refused
            # What lay behind one that was refused was not sent.
            waiting = [at for at in waiting if fates[at] is NOT_SENT] if refused else []
        for at in large:
            (fates[at],) = await self.write([parcels[at]], squeezed=True)
        return fates

    async def write(self, parcels: Sequence[Parcel], *, squeezed: bool = False) -> list[Fate]:
        """One fate each, in order. Cancelling leaves the fates open and the connection whole.

        `squeezed`: compressed, whatever the settings say.
        """
        fates: list[Fate] = [NOT_SENT] * len(parcels)
        waiting: dict[tuple[str, int], list[int]] = {}
        for at, parcel in enumerate(parcels):
            place = (parcel.topic, parcel.partition)
            queue = waiting.get(place)
            if queue is None:
                waiting[place] = [at]
            else:
                queue.append(at)
        codec = self._codec or (CODECS["gzip"] if squeezed else 0)
        single: set[tuple[str, int]] = set()
        while waiting:
            batches: list[Batch] = []
            for place, queue in waiting.items():
                taken = queue[:1] if place in single else queue
                if squeezed:
                    data, count = await asyncio.to_thread(build, parcels, taken, codec)
                else:
                    data, count = build(parcels, taken, codec)
                batches.append(Batch(Place(*place), queue[:count], data))
            await self._exchange.send(batches)
            for batch in batches:
                outcome, places = batch.outcome, batch.places
                queue = waiting[batch.to][len(places) :]
                if isinstance(outcome, int):
                    for number, at in enumerate(places):
                        fates[at] = outcome + number
                elif isinstance(outcome, ONE_REFUSED) and len(places) > 1:
                    # The topic takes less than it said: one by one, so that only what it does not take fails.
                    single.add(batch.to)
                    continue
                else:
                    fate = fate_of(batch, self._link.settings.address)
                    for at in places:
                        fates[at] = fate
                    queue = []
                if queue:
                    waiting[batch.to] = queue
                else:
                    del waiting[batch.to]
        return fates


def build(
    parcels: Sequence[Parcel],
    places: Sequence[int],
    codec: int,
    producer: tuple[int, int, int] = NO_PRODUCER,
) -> tuple[bytes, int]:
    """A batch of as many of these parcels as fit into it, at least one: its bytes, and how many they are."""
    builder = library.BatchBuilder(2, codec, 0, *producer, BATCH_BYTES)
    now = int(time.time() * 1000)
    taken = 0
    for at in places:
        parcel = parcels[at]
        if builder.append(taken, now, parcel.key, parcel.value, parcel.headers) is None:
            break
        taken += 1
    return bytes(builder.build()), taken
