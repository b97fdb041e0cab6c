"""Partition leases: which member of an ordered group owns which partition, with a fencing epoch.

One script does heartbeat, expiry, quota, sticky acquisition and surplus. A lease holds as long as its member beats;
here it ends by the local clock, counted from before the last beat was sent, so always earlier than on the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, cast

from messaging.adapter import Lease
from messaging.errors import Closed, ConnectionFailed, MessagingError
from messaging_redis.scripts import HEARTBEAT

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import Ownership, RawDelivery
    from messaging.background import Background
    from messaging_redis.connection import Connection
    from messaging_redis.fenced import FencedSettler
    from messaging_redis.keys import GroupKeys
    from messaging_redis.line import Argument

PENDING = "0"
NEW = ">"
_BEATS_PER_LEASE = 5
_LONGEST_BEAT = 1.0
_WANTING = 4
"""How many times as often a member beats that has fewer partitions than it could."""
_SHORTEST_TRY = 0.05
"""Seconds that a heartbeat may take at least, however near the end of a lease is."""


@dataclass(slots=True)
class Source:
    """One stream of a partition, and how far it was read."""

    name: str
    stream: str
    cursor: str = PENDING
    """What is pending comes first, by the last id that was read; then what is new."""
    wake_after: str = ""
    """The last id that is known not to be new, for the read that only wakes; empty: not yet known."""
    seen: str = PENDING
    """The last id of which a read's answer has come."""
    missed: bool = False
    """The answer to a read of what is new was lost: what it took is read again, uncounted, as it was seen by nobody."""
    certain: bool = False
    """All up to `seen` was handed out: the group's position was not beyond the end of the stream when it was read."""
    asleep_until: float = 0.0
    """A redrive stream is rarely there: it is looked at now and then (monotonic seconds), and when it wakes us."""

    @property
    def redriven(self) -> bool:
        return self.name.startswith("r")

    def look_back(self) -> None:
        """The answer to a read was lost: what it took is pending here, and comes before anything newer (7)."""
        if self.cursor == NEW:
            self.cursor, self.missed = self.seen, True


@dataclass(slots=True, eq=False)
class Partition:
    """A partition that is ours."""

    number: int
    epoch: int
    owner: str
    counted: bool
    """Reading again what is pending counts as a hand-over; not so where the former owner is us."""
    lease: Lease
    sources: tuple[Source, ...]
    held: dict[str, RawDelivery] = field(default_factory=lambda: cast("dict[str, RawDelivery]", {}))
    """What was handed over and is not settled, by the name of its entry."""
    draining: bool = False

    @property
    def key(self) -> str:
        """What the lease on the server must say for us to read or settle."""
        return f"{self.epoch}|{self.owner}"


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    sent: float
    owned: dict[int, tuple[int, bool]]
    """Epoch, and whether it is new, by partition."""
    surplus: list[int]
    members: int


class Partitions:
    """The partitions of one member: taken, kept, given back and lost."""

    def __init__(
        self,
        connection: Connection,
        keys: GroupKeys,
        member: str,
        ownership: Ownership,
        settler: FencedSettler,
        background: Background,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._member = member
        self._ownership = ownership
        self._settler = settler
        self._background = background
        self._lease = connection.settings.partition_lease
        self._interval = min(_LONGEST_BEAT, self._lease / _BEATS_PER_LEASE)
        self._give_up: set[int] = set()
        self._beating = asyncio.Lock()
        self._beat_now = asyncio.Event()
        self._wanting = True
        self.owned: dict[int, Partition] = {}
        self.changed = asyncio.Event()
        """Set when partitions came or went, or a heartbeat failed."""
        self.error: MessagingError | None = None
        """Why the last heartbeat failed."""

    async def keep(self) -> None:
        """Beat until cancelled. An error waits for the next beat: `error` has it."""
        while True:
            interval = self._interval / _WANTING if self._wanting else self._interval
            with contextlib.suppress(TimeoutError):  # the usual end of the wait
                async with asyncio.timeout(min(interval, self._until_first_deadline())):
                    await self._beat_now.wait()
            self._beat_now.clear()
            try:
                await self.beat()
            except MessagingError as error:
                self.error = error
                self.changed.set()
                if isinstance(error, Closed):
                    return

    async def beat(self) -> None:
        """One heartbeat. Raises ConnectionFailed; leases that end meanwhile are lost."""
        async with self._beating:
            self._drop_expired()
            giving = set(self._give_up)
            try:
                async with asyncio.timeout(max(self._until_first_deadline(), _SHORTEST_TRY)):
                    beat = await self._beat(giving)
            except TimeoutError as error:
                self._drop_expired()
                address = self._connection.settings.address
                raise ConnectionFailed(f"Redis at {address} did not answer a heartbeat in time") from error
            except MessagingError:
                self._drop_expired()
                raise
            # What the dispatcher saw expire it has dropped: it must be read again even if nobody else took it.
            self._drop_expired()
            self._give_up -= giving
            self.error = None
            self._apply(beat)

    async def _beat(self, give_up: Collection[int]) -> Beat:
        sent = time.monotonic()
        held, surplus, members = await self._run(0, give_up)
        triples = zip(held[::3], held[1::3], held[2::3], strict=True)
        owned = {int(number): (int(epoch), bool(new)) for number, epoch, new in triples}
        return Beat(sent, owned, [int(number) for number in surplus], members)

    async def leave(self) -> None:
        """Give up all and be no member any more."""
        await self._run(1, ())
        self.owned.clear()

    async def _run(self, leave: int, give_up: Collection[int]) -> tuple[list[int], list[int], int]:
        partitions = self._keys.topic.partitions
        arguments: list[Argument] = [self._member, int(self._lease * 1000), partitions, leave, *give_up]
        held, surplus, members = await self._connection.run(
            HEARTBEAT, [self._keys.members, self._keys.leases], arguments, use="leases"
        )
        return held, surplus, members

    def _until_first_deadline(self) -> float:
        first = min((partition.lease.deadline for partition in self.owned.values()), default=inf)
        return max(0.0, first - time.monotonic())

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for partition in list(self.owned.values()):
            if partition.lease.deadline <= now:
                self.lose(partition, "its lease ended before it was extended")

    def _apply(self, beat: Beat) -> None:
        for partition in list(self.owned.values()):
            epoch, _ = beat.owned.get(partition.number, (None, False))
            if epoch != partition.epoch:
                self.lose(partition, "another member owns it")
        for number, (epoch, new) in beat.owned.items():
            ours = self.owned.get(number)
            if ours is not None:
                ours.lease.deadline = beat.sent + self._lease
            elif number not in self._give_up:
                self._acquire(number, epoch, new, beat.sent)
        surplus = [
            number for number in beat.surplus if number in self.owned and not self.owned[number].draining
        ]
        if surplus:
            for number in surplus:
                self.owned[number].draining = True
            self._background.start(self._drain(surplus), name="messaging-redis-drain")
        self._wanting = len(beat.owned) < self._keys.topic.partitions // max(1, beat.members)

    def _acquire(self, number: int, epoch: int, new: bool, sent: float) -> None:
        sources = (
            Source(f"m{number}", self._keys.topic.stream(number)),
            Source(f"r{number}", self._keys.redrive(number)),
        )
        self.owned[number] = Partition(number, epoch, self._member, new, Lease(sent + self._lease), sources)
        self.changed.set()

    def lose(self, partition: Partition, reason: str) -> None:
        """It is not ours any more: what is held of it is lost."""
        if self.owned.get(partition.number) is not partition:
            return
        del self.owned[partition.number]
        partition.lease.deadline = min(partition.lease.deadline, time.monotonic())
        lost = list(partition.held.values())
        partition.held.clear()
        self.changed.set()
        if lost:
            self._ownership.on_lost(lost, f"partition {partition.number}: {reason}")

    async def _drain(self, numbers: Sequence[int]) -> None:
        """Give surplus partitions back: finish what runs, then let go."""
        draining = [self.owned[number] for number in numbers if number in self.owned]
        await self._ownership.on_revoke(list(numbers), time.monotonic() + self._connection.settings.drain)
        ours = [partition for partition in draining if self.owned.get(partition.number) is partition]
        # Uncounted is a kindness to the crash guard; without it the next owner counts one hand-over more.
        with contextlib.suppress(MessagingError):
            await self._settler.give_back(ours)
        for partition in ours:
            if self.owned.get(partition.number) is partition:
                del self.owned[partition.number]
                self._give_up.add(partition.number)
        self._beat_now.set()
