"""Partition leases: which member of an ordered group owns which partition, with a fencing epoch.

One script does heartbeat, expiry, quota, sticky acquisition and surplus. A lease holds as long as its member beats;
here it ends by the local clock, counted from before the last beat was sent, so always earlier than on the server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from messaging.adapter import Lease
from messaging_redis.scripts import HEARTBEAT

if TYPE_CHECKING:
    from collections.abc import Collection

    from messaging.adapter import RawDelivery
    from messaging_redis.connection import Argument, RedisConnection
    from messaging_redis.keys import GroupKeys

PENDING = "0"
NEW = ">"


@dataclass(slots=True)
class Source:
    """One stream of a partition, and how far it was read."""

    name: str
    stream: str
    cursor: str = PENDING
    """What is pending comes first, by the last id that was read; then what is new."""
    wake_after: str = ""
    """The last id that is known not to be new, for the read that only wakes; empty: not yet known."""


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
    held: dict[str, RawDelivery] = field(default_factory=dict["str, RawDelivery"])
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


class PartitionLeases:
    """The heartbeat of one member."""

    def __init__(self, connection: RedisConnection, keys: GroupKeys, member: str) -> None:
        self._connection = connection
        self._keys = keys
        self._member = member
        self._milliseconds = int(connection.settings.partition_lease * 1000)

    async def beat(self, give_up: Collection[int] = ()) -> Beat:
        """Extend every lease of ours, give up these, take what is free up to our quota."""
        sent = time.monotonic()
        held, surplus, members = await self._run(0, give_up)
        triples = zip(held[::3], held[1::3], held[2::3], strict=True)
        owned = {int(number): (int(epoch), bool(new)) for number, epoch, new in triples}
        return Beat(sent, owned, [int(number) for number in surplus], members)

    async def leave(self) -> None:
        """Give up all and be no member any more."""
        await self._run(1, ())

    async def _run(self, leave: int, give_up: Collection[int]) -> tuple[list[int], list[int], int]:
        arguments: list[Argument] = [
            self._member,
            self._milliseconds,
            self._keys.topic.partitions,
            leave,
            *give_up,
        ]
        held, surplus, members = await self._connection.run(
            HEARTBEAT, [self._keys.members, self._keys.leases], arguments
        )
        return held, surplus, members
