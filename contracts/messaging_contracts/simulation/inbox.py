"""A reply inbox that fails as the SPI allows it to: it loses what was sent meanwhile, and may have another address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import ReplyInbox
from messaging.errors import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.message import Message
    from messaging_contracts.simulation.adapter import FaultyAdapter

AT_ONCE = 1e-3
"""Virtual seconds after which a request whose reply cannot come any more must have ended (22)."""


class FaultyInbox(ReplyInbox):
    """See `FaultyAdapter`."""

    def __init__(self, adapter: FaultyAdapter, inner: ReplyInbox) -> None:
        self._adapter = adapter
        self._inner = inner
        self.address = inner.address
        self.arrived = 0
        """Replies that were handed over."""

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        adapter, faults = self._adapter, self._adapter.faults
        await adapter.there()
        try:
            if faults.strikes("inbox_fails"):
                await self._inner.receive(limit, 0.0)
                raise ConnectionFailed("simulated: replies may be lost")
            if faults.strikes("inbox_moves"):
                await self._move()
                raise ConnectionFailed("simulated: the inbox was lost")
            replies = await self._inner.receive(limit, wait)
        except ConnectionFailed:
            self._fail()
            raise
        self.arrived += len(replies)
        return replies

    async def close(self) -> None:
        await self._inner.close()

    async def _move(self) -> None:
        former, self._inner = self._inner, await self._adapter.inner.reply_inbox()
        self.address = self._inner.address
        await former.close()

    def _fail(self) -> None:
        """What waits for its reply now is to end at once."""
        waiting = self._adapter.requested.waiting(self._adapter.member)
        if waiting:
            self._adapter.clock.call_later(AT_ONCE, lambda: self._look(waiting))

    def _look(self, failed: Collection[str]) -> None:
        left = sorted({*failed} & {*self._adapter.requested.waiting(self._adapter.member)})
        if left:
            self._adapter.problem(f"{left} wait although the connection that brings their replies was lost")
