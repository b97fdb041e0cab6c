"""Settling in batches: outcomes gather while one exchange with the broker is under way, then go together.

Replies are sent before the delivery that asked for them is settled, so that a crash between gives a second reply,
never none.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from messaging.adapter import SettleError, Settlement
from messaging.backoff import Backoff
from messaging.clock import sleep
from messaging.errors import LeaseLost, MessagingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from messaging.adapter import RawDelivery, Settled
    from messaging.clock import Clock
    from messaging.errors import PublishError
    from messaging.message import Message

logger = logging.getLogger("messaging")

BATCH = 512


class Settler:
    """Takes outcomes one by one, settles them in batches, and tells the result of each.

    What the broker does not take is settled again, with growing waits, for as long as `wanted` says that the
    delivery is still ours (see `SettleError`). Bounded by what the dispatcher holds.
    """

    def __init__(
        self,
        *,
        settle: Callable[[Sequence[Settlement]], Awaitable[Sequence[Settled]]],
        reply: Callable[[Sequence[tuple[str, Message]]], Awaitable[Sequence[PublishError | None]]],
        settled: Callable[[Settlement, Settled], None],
        wanted: Callable[[RawDelivery], bool],
        clock: Clock,
    ) -> None:
        self._settle = settle
        self._reply = reply
        self._settled = settled
        self._wanted = wanted
        self._clock = clock
        self._pending: list[Settlement] = []
        self._replies: list[tuple[str, Message]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, settlement: Settlement, reply: tuple[str, Message] | None = None) -> None:
        """Settle this one soon; `reply` goes out first."""
        self._pending.append(settlement)
        if reply is not None:
            self._replies.append(reply)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Settle until cancelled. Cancellation leaves the rest to `flush`."""
        backoff = Backoff()
        while True:
            if not self._pending:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
            if await self._settle_batch():
                backoff.reset()
            else:
                await sleep(self._clock, backoff.next())

    async def drained(self) -> None:
        """Return when nothing waits to be settled."""
        await self._idle.wait()

    async def flush(self) -> None:
        """One attempt at what is left, after `run` has ended."""
        while self._pending and await self._settle_batch():
            pass

    async def _settle_batch(self) -> bool:
        """Settle what is there; False when the broker did not take all of it."""
        taken = min(len(self._pending), BATCH)
        batch = [one for one in self._pending[:taken] if self._wanted(one.delivery)]
        replies, self._replies = self._replies, []
        if replies:
            await self._send(replies)
        # What is cancelled midway stays pending: settling twice is a no-op. More may be added meanwhile.
        results = await self._settle(batch) if batch else ()
        del self._pending[:taken]
        failed: list[Settlement] = []
        for settlement, result in zip(batch, results, strict=True):
            if isinstance(result, SettleError) and not isinstance(result.error, LeaseLost):
                failed.append(settlement)
            else:
                self._settled(settlement, result)
        if failed:
            self._pending[:0] = failed
            _log_unsettled(failed, results)
        return not failed

    async def _send(self, replies: Sequence[tuple[str, Message]]) -> None:
        for (address, message), error in zip(replies, await self._reply(replies), strict=True):
            if error is not None:
                _log_lost_reply(address, message, error)


def _log_unsettled(failed: Sequence[Settlement], results: Sequence[Settled]) -> None:
    error = next(result.error for result in results if isinstance(result, SettleError))
    logger.warning(
        "%d deliveries could not be settled: %s. They are settled again while they are ours.",
        len(failed),
        error,
        extra={"message_id": failed[0].delivery.message.id, "unsettled": len(failed)},
    )


def _log_lost_reply(address: str, message: Message, error: MessagingError) -> None:
    logger.warning(
        "The reply to request %s was not sent: %s. The requester will time out.",
        message.correlation_id,
        error,
        extra={"correlation_id": message.correlation_id, "reply_to": address},
    )
