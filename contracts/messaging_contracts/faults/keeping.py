"""The idempotency store of a group under fire: a Redis of its own, and what it did, written down."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from messaging.store import Begun, Completed, IdempotencyStore
from messaging_contracts import brokers
from messaging_contracts.faults.history import Kept, now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from typing import TypeVar

    from messaging.clock import Clock
    from messaging.store import BeginResult
    from messaging_contracts.faults.history import Journal, Keeping

    T = TypeVar("T")


@asynccontextmanager
async def keeper() -> AsyncGenerator[str]:
    """The URL of a store that nothing else uses. Raises BrokerUnavailable."""
    server = await asyncio.to_thread(partial(brokers.start, "redis", own=True))
    try:
        yield server.url
    finally:
        await asyncio.to_thread(server.stop)


class RecordingStore(IdempotencyStore):
    """A member's connection to the store. Records what the store knows, and what the member could not learn."""

    shared = True

    def __init__(self, inner: IdempotencyStore, journal: Journal, member: str) -> None:
        self._inner = inner
        self._journal = journal
        self._member = member
        self.tokens: dict[str, int] = {}
        """What this member was last given, by message."""

    @classmethod
    def from_url(cls, url: str, *, clock: Clock) -> IdempotencyStore:
        raise NotImplementedError("it is put around a store")

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def begin(self, key: str, *, digest: str, lease: float, token: str = "") -> BeginResult:
        result = await self._asked(key, self._inner.begin(key, digest=digest, lease=lease, token=token))
        if isinstance(result, Begun):
            self.tokens[_id(key)] = result.fence
            self._tell("taken", key, result.fence)
        elif isinstance(result, Completed):
            self._tell("repeated", key)
        return result

    async def extend(self, key: str, fence: int, *, lease: float) -> bool:
        return await self._asked(key, self._inner.extend(key, fence, lease=lease))

    async def complete(self, key: str, fence: int, *, result: bytes | None, ttl: float) -> bool:
        done = await self._asked(key, self._inner.complete(key, fence, result=result, ttl=ttl))
        if done:
            self._tell("done", key, fence)
        return done

    async def clear(self, key: str, fence: int) -> None:
        await self._asked(key, self._inner.clear(key, fence))

    async def _asked(self, key: str, call: Awaitable[T]) -> T:
        try:
            return await call
        except BaseException:
            self._tell("missed", key)
            raise

    def _tell(self, how: Keeping, key: str, token: int = 0) -> None:
        _, group, id = key.rsplit(":", 2)
        self._journal.record(Kept(at=now(), how=how, id=id, group=group, member=self._member, token=token))


def _id(key: str) -> str:
    """The message: the last part of what names it, in its scope."""
    return key.rpartition(":")[2]
