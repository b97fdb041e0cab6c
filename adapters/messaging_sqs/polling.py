"""Polls: receives that wait at the service, in threads of their own.

A poll is never cut off: the service would hide what it hands to nobody. The result of one that nobody waits for any
more is given back by the thread that got it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.errors import MessagingError
from messaging_sqs.batches import MOST
from messaging_sqs.entries import SYSTEM_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from messaging_sqs.connection import Connection

logger = logging.getLogger("messaging")

Taker: TypeAlias = "Callable[[Sequence[dict[str, Any]], float], Awaitable[None]]"

_SHARE_OF_IDLE = 0.25
"""A poll waits no longer than this part of the time that the queue was empty: who has just had work leaves quickly."""
_SHARE_OF_LEASE = 6
"""A poll waits no longer than this fraction of the lease: so long it may be unknown when its messages were lent."""
_LATE = 0.5
"""Seconds after the end of its wait by which a poll's answer is here, if this process was not standing still."""
_LEAVE_MARGIN = 2.0


class Polls:
    """The polls of one queue. `take` gets what one brings, and when it came; `changed` is called after each."""

    def __init__(
        self,
        connection: Connection,
        *,
        number: int,
        lease: int,
        take: Taker,
        changed: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._number = number
        self._lease = lease
        self._take = take
        self._changed = changed
        self._threads = connection.poll_threads(number)
        self._running: set[asyncio.Task[None]] = set()
        self._worked = time.monotonic()
        self._wanted = 1
        self._abandoned = False
        self.requested = 0
        """What the polls under way may bring."""
        self.failure: MessagingError | None = None
        """Why the last one failed; taken by whoever raises it."""

    def start(self, url: str, room: int) -> None:
        """Ask for up to `room` messages more than what was asked for: one poll, or several while there is work."""
        while room > 0 and len(self._running) < self._wanted and self.failure is None:
            number = min(MOST, room)
            room -= number
            self.requested += number
            task = asyncio.create_task(self._poll(url, number), name="messaging-sqs-poll")
            self._running.add(task)
            task.add_done_callback(partial(self._ended, number))

    async def abandon(self) -> None:
        """Wait for nothing: the threads give back what the polls bring."""
        self._abandoned = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._connection.release(self._threads)

    async def close(self) -> None:
        """Wait for what is under way; what it brings still goes to `take`. Bounded; a second call is a no-op."""
        if self._running:
            bound = self._connection.settings.poll_wait + _LEAVE_MARGIN
            try:
                await asyncio.wait(self._running, timeout=bound)
            except asyncio.CancelledError:
                await self.abandon()
                raise
        await self.abandon()

    async def _poll(self, url: str, number: int) -> None:
        sent = time.monotonic()
        longest = min(self._connection.settings.poll_wait, self._lease // _SHARE_OF_LEASE)
        wait = max(1, min(longest, int((sent - self._worked) * _SHARE_OF_IDLE)))
        try:
            messages, came = await self._connection.poll(
                self._threads,
                lambda: self._abandoned,
                QueueUrl=url,
                MaxNumberOfMessages=number,
                WaitTimeSeconds=wait,
                VisibilityTimeout=self._lease,
                MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
                MessageAttributeNames=("All",),
            )
            if messages:
                self._worked = came
                if came > sent + wait + _LATE:
                    came = sent  # the process was frozen: the messages may have been lent at once
                self._wanted = self._number
                await self._take(messages, came)
            else:
                self._wanted = 1
        except MessagingError as error:
            self.failure = error
        except Exception as error:
            # Nobody awaits a poll: unsaid, what it took would vanish for a lease, again and again, with green health.
            logger.exception("What a poll of %s brought was not read, by a defect", url)
            self.failure = self._connection.translated(error, "reading what ReceiveMessage brought")

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.requested -= number
        self._changed()  # last: whoever hears of it may start the next one
