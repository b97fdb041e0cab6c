"""An idempotency store that fails as its SPI allows it to: before or after the deed, late, for all members at once."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from messaging.errors import ConnectionFailed
from messaging.store import Begun, IdempotencyStore
from messaging_contracts.faults import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from messaging.clock import Clock
    from messaging.store import BeginResult
    from messaging_contracts.faults import Event
    from messaging_contracts.faults.history import Keeping
    from messaging_contracts.simulation.faults import Faults
    from messaging_contracts.simulation.loop import ProcessClock
    from messaging_contracts.simulation.requested import Requested

LATE = 1 / 15
"""The part of a key's lease, on one way, after which the member may lose it because of that."""
AWAY = 60.0
"""Seconds for which the store is away at most."""


class Outage:
    """Of the one store of a history: until when nobody reaches it."""

    until = 0.0


class FaultyStore(IdempotencyStore):
    """One process's connection to the store. Records what the store knows and what the process could not learn."""

    shared = True

    def __init__(
        self,
        inner: IdempotencyStore,
        faults: Faults,
        clock: ProcessClock,
        outage: Outage,
        *,
        lease: float,
        requested: Requested,
        member: str,
        record: Callable[[Event], None],
    ) -> None:
        """`lease`: seconds for which a key is its owner's."""
        self._inner = inner
        self._late = lease * LATE
        self._faults = faults
        self._clock = clock
        self._outage = outage
        self._requested = requested
        self._member = member
        self._record = record
        self.dead = False
        self._groups: dict[str, str] = {}
        """Whose each message is."""
        self._owned: dict[str, int] = {}
        """What the store has as this member's."""
        self.tokens: dict[str, int] = {}
        """What this member was last given, by message."""
        self.completing: dict[str, None] = {}
        """Handled, and being stored as done."""
        self.unclear: dict[str, None] = {}
        """Not done: the store is being told, or could not be."""

    @classmethod
    def from_url(cls, url: str, *, clock: Clock) -> IdempotencyStore:
        raise NotImplementedError("it is put around a store")

    async def open(self) -> None:
        """The one store is open."""

    async def close(self) -> None:
        """The one store stays open."""

    def frozen(self) -> None:
        """The process stands still: it reaches the store about nothing that it has."""
        for id in self._owned:
            self._tell("missed", id)

    async def begin(self, key: str, *, digest: str, lease: float, token: str = "") -> BeginResult:
        id = self._id_of(key)
        with self._missing(id):
            await self._there(id)
            result = await self._inner.begin(key, digest=digest, lease=lease, token=token)
            if isinstance(result, Begun):
                self._owned[id] = result.fence
                self._tell("taken", id, result.fence)
            await self._back(id)
        if isinstance(result, Begun):
            self.tokens[id] = result.fence
        return result

    async def extend(self, key: str, fence: int, *, lease: float) -> bool:
        id = self._id_of(key)
        with self._missing(id):
            await self._there(id)
            ours = await self._inner.extend(key, fence, lease=lease)
            await self._back(id)
        return ours

    async def complete(self, key: str, fence: int, *, result: bytes | None, ttl: float) -> bool:
        id = self._id_of(key)
        self.completing[id] = None
        with self._missing(id):
            await self._there(id)
            done = await self._inner.complete(key, fence, result=result, ttl=ttl)
            if done:
                self._owned.pop(id, None)
                self._tell("done", id, fence)
            await self._back(id)
        return done

    async def clear(self, key: str, fence: int) -> None:
        id = self._id_of(key)
        self.unclear[id] = None
        with self._missing(id):
            await self._there(id)
            await self._inner.clear(key, fence)
            if self._owned.get(id) == fence:
                del self._owned[id]
            await self._back(id)
        self.unclear.pop(id, None)

    def _id_of(self, key: str) -> str:
        """How the history calls the message: by the last part of what names it in its scope, its group."""
        _, group, id = key.rsplit(":", 2)
        name = self._requested.name(id)
        self._groups[name] = group
        return name

    async def _there(self, id: str) -> None:
        await self._clock.awake()
        self._alive()
        now = self._clock.monotonic()
        if self._faults.strikes("store_away"):
            self._outage.until = now + self._faults.random.uniform(0.0, AWAY)
        if now < self._outage.until and not self._faults.calm:
            raise ConnectionFailed("simulated: the store is away")
        await self._way(id)
        self._alive()
        if self._faults.strikes("store_fails"):
            raise ConnectionFailed("simulated: the store did nothing")

    def _alive(self) -> None:
        if self.dead:
            raise ConnectionFailed("this process has crashed")

    async def _back(self, id: str) -> None:
        await self._way(id)
        await self._clock.awake()
        if self._faults.strikes("store_unknown"):
            raise ConnectionFailed("simulated: the store did not answer")

    async def _way(self, id: str) -> None:
        delay = self._faults.delay()
        if delay > self._late:
            self._tell("missed", id)  # at once: another may have the key before the way is over
        await self._faults.pass_time(self._clock, delay)

    @contextmanager
    def _missing(self, id: str) -> Generator[None]:
        try:
            yield
        except (ConnectionFailed, asyncio.CancelledError):
            self._tell("missed", id)
            raise
        finally:
            self.completing.pop(id, None)

    def _tell(self, how: Keeping, id: str, token: int = 0) -> None:
        self._record(
            Kept(
                at=self._clock.monotonic(),
                how=how,
                id=id,
                group=self._groups[id],
                member=self._member,
                token=token,
            )
        )
