"""Reply inboxes: where the answers to this process arrive (22)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from messaging.adapter import ReplyInbox
from messaging.errors import Closed, ConnectionFailed, InvalidMessage, MessageTooLarge, PublishError
from messaging_memory.record import Record, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_memory.broker import Broker, Connection

CAPACITY = 100_000
"""Replies that wait in one inbox; further ones are dropped and counted."""

logger = logging.getLogger("messaging")


class MemoryInbox(ReplyInbox):
    """See `messaging.adapter.ReplyInbox`."""

    def __init__(self, connection: Connection, address: str) -> None:
        self.address = address
        self._connection = connection
        self._clock = connection.broker.clock
        self._records: deque[Record] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self._closed = False
        self._attach()

    def put(self, record: Record) -> bool:
        """Take a reply; False when there is no room."""
        if len(self._records) >= CAPACITY:
            return False
        self._records.append(record)
        self._wake()
        return True

    def drop(self) -> None:
        """The connection is lost, and with it what waits here."""
        self._lost = True
        self._records.clear()
        self._detach()
        self._wake()

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        await asyncio.sleep(0)
        self._check()
        if not self._records and wait > 0:
            await self._wait(wait)
            self._check()
        taken = list(islice(self._records, max(limit, 0)))
        for _ in taken:
            self._records.popleft()
        if taken:
            self._connection.broker.touch()
        return [record.message("") for record in taken]

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._records.clear()
            self._detach()
            self._wake()

    async def _wait(self, wait: float) -> None:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(wait, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _check(self) -> None:
        if self._closed:
            raise Closed("this reply inbox is closed")
        if self._lost:
            self._lost = False
            raise ConnectionFailed(
                "the connection to the memory broker was lost; replies sent meanwhile are lost too"
            )
        if not self._connection.alive:
            self._connection.ensure()
        self._attach()

    def _attach(self) -> None:
        self._connection.broker.inboxes[self.address] = self
        self._connection.inboxes[self] = None

    def _detach(self) -> None:
        self._connection.broker.inboxes.pop(self.address, None)
        if self._closed:
            self._connection.inboxes.pop(self, None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Replier:
    """Sends replies to the inboxes of this namespace, and to nothing else (19)."""

    def __init__(self, broker: Broker, *, namespace: str | None, maximum: int) -> None:
        self._broker = broker
        self._prefix = f"reply:{namespace or ''}:"
        self._maximum = maximum
        self._number = 0

    def address(self, member: str) -> str:
        """A new address, which no other inbox has."""
        self._number += 1
        return f"{self._prefix}{member}:{id(self):x}:{self._number}"

    def reply(self, replies: Sequence[tuple[str, Message]]) -> list[PublishError | None]:
        results = [self._reply(address, message) for address, message in replies]
        self._broker.touch()
        return results

    def _reply(self, address: str, message: Message) -> PublishError | None:
        if not address.startswith(self._prefix):
            return InvalidMessage(
                f"reply {message.id} was not sent: {address[:80]!r} is no reply address of this namespace"
            )
        row, size = row_of(message, self._broker.clock.time(), None, self._maximum)
        if size > self._maximum:
            return MessageTooLarge(
                f"reply {message.id} has {size} bytes, the memory broker carries {self._maximum} "
                f"(option max_message_bytes)"
            )
        inbox = self._broker.inboxes.get(address)
        if inbox is None or not inbox.put(Record(row, 0)):
            self._broker.dropped_replies += 1
            logger.info("a reply was dropped: its inbox is gone or full", extra={"message_id": message.id})
        return None
