"""Settling in batches: outcomes gather while one exchange with the broker is under way, then go together.

Replies are sent before the delivery that asked for them is settled, so that a crash between gives a second reply,
never none.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from messaging.adapter import DONE, SettleError, Settlement
from messaging.backoff import Backoff
from messaging.clock import check_cancelled, sleep, timeout
from messaging.errors import LeaseLost, MessageTooLarge, MessagingError, is_fatal
from messaging.requests import too_large

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from messaging.adapter import RawDelivery, Settled
    from messaging.clock import Clock
    from messaging.errors import PublishError
    from messaging.message import Message

logger = logging.getLogger("messaging")

BATCH = 512


class Settler:
    """Takes outcomes one by one, settles them in batches, and tells the result of each.

    What the broker does not take is settled again, with growing waits, for as long as `wanted`, which picks those
    whose delivery is still ours, picks it (see `SettleError`). Bounded by what the dispatcher holds.
    """

    def __init__(
        self,
        *,
        settle: Callable[[Sequence[Settlement]], Awaitable[Sequence[Settled]]],
        reply: Callable[[Sequence[tuple[str, Message]]], Awaitable[Sequence[PublishError | None]]],
        settled: Callable[[Sequence[Settlement], Sequence[Settled]], None],
        wanted: Callable[[Sequence[Settlement]], Sequence[Settlement]],
        clock: Clock,
    ) -> None:
        self._settle = settle
        self._reply = reply
        self._settled = settled
        self._wanted = wanted
        self._clock = clock
        self._pending: list[Settlement] = []
        self._replies: dict[Settlement, tuple[str, Message]] = {}
        self._idle: asyncio.Future[None] | None = None
        """Ends when there is something to settle."""
        self.error: str | None = None
        """Why the broker does not take what is settled again and again; None where it takes everything."""

    def add(self, settlement: Settlement, reply: tuple[str, Message] | None = None) -> None:
        """Settle this one soon; `reply` goes out first."""
        self._pending.append(settlement)
        if reply is not None:
            self._replies[settlement] = reply
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    @property
    def deliveries(self) -> Collection[RawDelivery]:
        """Those that wait to be settled, or are being settled."""
        return {settlement.delivery for settlement in self._pending}

    async def run(self) -> None:
        """Settle until cancelled. Cancellation leaves the rest to `flush`."""
        backoff = Backoff()
        while True:
            check_cancelled()
            if not self._pending:
                await self._wait()
            if await self._settle_batch():
                backoff.reset()
            else:
                check_cancelled()
                await sleep(self._clock, backoff.next())

    async def _wait(self) -> None:
        self._idle = asyncio.get_running_loop().create_future()
        try:
            await self._idle
        finally:
            self._idle = None

    async def flush(self, within: float) -> None:
        """One attempt at what is left, after `run` has ended. What takes longer is left to the broker to give back."""
        try:
            async with timeout(self._clock, within):
                while self._pending and await self._settle_batch():
                    pass
        except TimeoutError:
            logger.warning(
                "%d deliveries could not be settled within %g s. They are delivered again.",
                *(len(self._pending), within),
                extra={"unsettled": len(self._pending)},
            )

    async def _settle_batch(self) -> bool:
        """Settle what is there; False when the broker did not take all of it."""
        taken = self._pending[:BATCH]
        batch = self._wanted(taken)
        if self._replies and not await self._send(taken, batch):
            return False
        # What is cancelled midway stays pending: settling twice is a no-op.
        results = await self._try(batch) if batch else ()
        del self._pending[: len(taken)]  # others may have come meanwhile
        if results.count(DONE) == len(batch):
            self.error = None
            self._settled(batch, results)
            return True
        failed = {
            settlement: result.error
            for settlement, result in zip(batch, results, strict=True)
            if isinstance(result, SettleError) and not isinstance(result.error, LeaseLost)
        }
        self.error = next((str(error) for error in failed.values()), None)
        if failed:
            self._pending[:0] = failed
            _log_unsettled(list(failed.items()))
            results = [result for one, result in zip(batch, results, strict=True) if one not in failed]
            batch = [one for one in batch if one not in failed]
        self._settled(batch, results)
        return not failed

    async def _try(self, batch: Sequence[Settlement]) -> Sequence[Settled]:
        """What the broker says of each; an adapter may raise what no trying again has to heal (25)."""
        try:
            return await self._settle(batch)
        except MessagingError as error:
            if is_fatal(error):
                raise
            return [SettleError(error)] * len(batch)

    async def _send(self, taken: Sequence[Settlement], batch: Sequence[Settlement]) -> bool:
        """Send the replies of this batch; False when the broker was not reached: they are sent again, or given up
        with their deliveries. One that is too large for the broker is a failure, of which the requester is told.
        """
        waiting = [one for one in batch if one in self._replies]
        while waiting:
            try:
                errors = await self._reply([self._replies[one] for one in waiting])
            except MessagingError as failure:
                if is_fatal(failure):
                    raise
                self.error = str(failure)
                _log_unsettled([(one, failure) for one in waiting])
                return False
            refused: list[Settlement] = []
            for one, error in zip(waiting, errors, strict=True):
                address, message = self._replies.pop(one)
                told = too_large(message, error) if isinstance(error, MessageTooLarge) else None
                if error is not None:
                    _log_lost_reply(address, message, error, told=told is not None)
                if told is not None:
                    self._replies[one] = (address, told)
                    refused.append(one)
            waiting = refused
        for one in taken:
            self._replies.pop(one, None)
        return True


def _log_unsettled(failed: Sequence[tuple[Settlement, MessagingError]]) -> None:
    first, error = failed[0]
    logger.warning(
        "%d deliveries could not be settled: %s. They are settled again while they are ours.",
        len(failed),
        error,
        extra={"message_id": first.delivery.message.id, "unsettled": len(failed)},
    )


def _log_lost_reply(address: str, message: Message, error: MessagingError, *, told: bool) -> None:
    logger.warning(
        "The reply to request %s was not sent: %s. The requester %s.",
        message.correlation_id,
        error,
        "is told so" if told else "will time out",
        extra={"correlation_id": message.correlation_id, "reply_to": address},
    )
