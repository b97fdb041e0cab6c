"""The inbox of a process: replies are rows under its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import ReplyInbox
from messaging.clock import sleep
from messaging_sqlite.database import POLL, message_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_sqlite.adapter import SQLiteAdapter
    from messaging_sqlite.database import Database


class SQLiteInbox(ReplyInbox):
    """See `messaging.adapter.ReplyInbox`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, address: str) -> None:
        self.address = address
        self._adapter = adapter
        self._database = database
        self._clock = adapter.context.clock

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        end = self._clock.monotonic() + wait
        while True:
            rows = await self._adapter.run(
                self._database.take_replies, self.address, limit, self._clock.time()
            )
            if rows or self._clock.monotonic() >= end:
                return [message_of(row, "") for row in rows]
            await sleep(self._clock, min(POLL, max(0.0, end - self._clock.monotonic())))

    async def close(self) -> None:
        await self._adapter.run(self._database.close_inbox, self.address)
