"""A member of a group: it looks at the file now and then, and holds what it takes by one lease."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from messaging.adapter import DONE, Consumer, ConsumerStatus, Hold, Lease, RawDelivery, SettleError
from messaging.clock import sleep
from messaging.errors import Closed, ConnectionFailed, LeaseLost
from messaging.message import Release, Retry
from messaging_sqlite.database import POLL, TRIPPED, message_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    from messaging.adapter import Settled, Settlement, Subscription
    from messaging_sqlite.adapter import SQLiteAdapter
    from messaging_sqlite.database import Database


class SQLiteConsumer(Consumer):
    """A member of a group, with one lease for all that it holds. See `messaging.adapter.Consumer`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, subscription: Subscription) -> None:
        self.lease = adapter.lease
        self._seconds = adapter.lease
        self._adapter = adapter
        self._database = database
        self._clock = adapter.context.clock
        self._group = subscription.group
        self._number: int | None = None
        self._member: int | None = None
        self._until = Lease()
        self._taking: asyncio.Task[list[RawDelivery]] | None = None
        self._left: list[RawDelivery] = []
        """What a call that was cancelled has taken beyond what the next one asked for."""
        self._closed = False

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        end = self._clock.monotonic() + wait
        while True:
            # A cancelled call leaves the look at the file to the next one: what it takes is not lost.
            self._taking = self._taking or asyncio.create_task(self._take(limit, tuple(paused)))
            taking = self._taking
            await asyncio.wait((taking,))
            self._taking = None
            taken = [*self._left, *taking.result()]
            batch, self._left = taken[:limit], taken[limit:]
            if batch or self._clock.monotonic() >= end:
                return batch
            await sleep(self._clock, min(POLL, max(0.0, end - self._clock.monotonic())))

    async def _take(self, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        if self._closed:
            raise Closed("this consumer is closed: ask the adapter for a new one")
        if self._has_ended:
            await self._leave()
        if self._number is None:
            self._number = await self._adapter.run(self._adapter.find_group, self._group)
        monotonic = self._clock.monotonic()
        if self._member is None:
            self._member = await self._adapter.run(self._database.join, self._number, self._seconds)
            self._until = Lease(monotonic + self._seconds)
        member = self._member
        found = await self._adapter.run(
            self._database.take,
            *(member, self._number, self._group.ordered, limit, paused, self._seconds),
        )
        if found is None or self._member != member:  # its lease has ended, or the group was deleted
            self._number = self._member = None
            return []
        rows, fence, renewed = found
        if renewed:  # what holds nothing is not extended: what is taken now must not end with an old lease
            self._until.deadline = monotonic + self._seconds
        return [self._delivery(row, member, fence) for row in rows]

    def _delivery(self, row: sqlite3.Row, member: int, fence: int) -> RawDelivery:
        return RawDelivery(
            message=message_of(row, self._group.topic.name),
            partition=row["partition"],
            position=str(row["id"]),
            attempt=row["attempt"],
            deliveries=row["deliveries"],
            returns=row["returns"],
            guard="tripped" if row["guard"] == TRIPPED else "none",
            failure=row["failure"],
            reply_to=row["reply_to"],
            fence=fence,
            lease=self._until,
            native=row,
            token=(row["id"], member),
        )

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        open_ones = [one for one in settlements if one.delivery.token is not None]
        try:
            taken = await self._adapter.run(self._settle, open_ones, self._clock.time())
        except (ConnectionFailed, Closed) as error:
            return [SettleError(error)] * len(settlements)
        results = dict(zip(map(id, open_ones), taken, strict=True))
        return [self._settled(one, results.get(id(one), True)) for one in settlements]

    def _settle(self, settlements: Sequence[Settlement], now: float) -> list[bool]:
        """On the thread."""
        ordered = self._group.ordered
        taken = self._database.settle([(*one.delivery.token, one) for one in settlements], ordered, now)
        for one, known in zip(settlements, taken, strict=True):
            if known and not (ordered and isinstance(one.outcome, Release | Retry)):
                one.delivery.token = None
        return taken

    def _settled(self, settlement: Settlement, taken: bool) -> Settled:
        if not taken:
            message = settlement.delivery.message
            return SettleError(
                LeaseLost(f"message {message.id} of {message.topic} belongs to another member")
            )
        if settlement.delivery.token is not None:
            return Hold(self._clock.monotonic() + settlement.after)
        return DONE

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        if self._member is None:
            return [False] * len(deliveries)
        member, monotonic = self._member, self._clock.monotonic()
        rows = await self._adapter.run(self._database.extend, member, seconds)
        if self._has_ended or self._member != member:
            await self._leave()
            return [False] * len(deliveries)
        self._until.deadline = monotonic + seconds
        return [
            one.token is not None and one.token[1] == member and one.token[0] in rows for one in deliveries
        ]

    async def isolate(self, delivery: RawDelivery) -> bool:
        if delivery.token is None or not await self._adapter.run(self._database.isolate, *delivery.token):
            raise LeaseLost(f"message {delivery.message.id} belongs to another member")
        delivery.guard = "alone"
        return True

    def status(self) -> ConsumerStatus:
        return ConsumerStatus(connected=self._member is not None)

    async def close(self) -> None:
        self._closed = True
        if self._taking is not None:
            await asyncio.gather(self._taking, return_exceptions=True)
            self._taking = None
        await self._leave()

    @property
    def _has_ended(self) -> bool:
        """Whether the lease has ended as the reader sees it: it has given up what the file still says it holds."""
        return self._member is not None and self._clock.monotonic() >= self._until.deadline

    async def _leave(self) -> None:
        """Give back all that is held, so that it comes again before what follows it (7)."""
        if self._member is not None:
            member, self._member = self._member, None
            await self._adapter.run(self._database.leave, member)
