"""Reading a queue of dead letters without consuming it: what is read is hidden while the reading is open.

SQS promises no order; so parts of the queue are read ahead and sorted by when they were sent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from messaging.errors import MessagingError
from messaging.shielded import shielded
from messaging_sqs.batches import MOST, in_batches
from messaging_sqs.entries import SYSTEM_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from messaging_sqs.connection import Connection

PART = 1000
"""Messages that are read ahead and sorted."""
PART_BYTES = 16 * 1024 * 1024
AT_FIRST = 30
"""Seconds after which what a reader that died soon had hidden is there again."""
HIDDEN = 120
"""The same of one that read for longer: to hide very much again takes its time."""


class Reading:
    """Up to `number` messages of a queue, each once."""

    def __init__(self, connection: Connection, url: str, number: int) -> None:
        self._connection = connection
        self._url = url
        self._left = number
        self.unseen = 0
        """How many of them the service did not hand over."""
        self._seen: set[str] = set()
        self._seconds = AT_FIRST
        self._hidden: dict[str, None] = {}
        """Handles of what goes back at the end, in the order it came."""
        self._receiving: asyncio.Task[Sequence[dict[str, Any]]] | None = None
        self._keeping = asyncio.create_task(self._keep_hidden(), name="messaging-sqs-browse")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """The oldest first, within what is read ahead."""
        while self._left > 0:
            part = await self._part()
            if not part:
                return
            for message in part:
                yield message

    async def _part(self) -> list[dict[str, Any]]:
        part: list[dict[str, Any]] = []
        size = 0
        while self._left > 0 and len(part) < PART and size < PART_BYTES:
            received = await self._receive(min(MOST, self._left))
            if not received:
                self.unseen, self._left = self._left, 0
                break
            for message in received:
                if message["MessageId"] not in self._seen:
                    self._seen.add(message["MessageId"])
                    self._left -= 1
                    size += len(message["Body"])
                    part.append(message)
        return sorted(part, key=_when_sent)

    async def _receive(self, number: int) -> Sequence[dict[str, Any]]:
        """A receive that was begun is ended, or what it hid would stay hidden."""
        self._receiving = asyncio.create_task(self._ask(number))
        received = await shielded(self._receiving)
        self._receiving = None
        return received

    async def _ask(self, number: int) -> Sequence[dict[str, Any]]:
        answer = await self._connection.call(
            "sqs",
            "receive_message",
            QueueUrl=self._url,
            MaxNumberOfMessages=number,
            # On AWS a receive that does not wait asks some servers only.
            WaitTimeSeconds=1 if self._connection.is_aws else 0,
            VisibilityTimeout=self._seconds,
            MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
            MessageAttributeNames=("All",),
        )
        received: Sequence[dict[str, Any]] = answer.get("Messages") or ()
        self._hidden.update(dict.fromkeys(message["ReceiptHandle"] for message in received))
        return received

    def removed(self, handles: Sequence[str]) -> None:
        """These do not go back."""
        for handle in handles:
            self._hidden.pop(handle, None)

    def holds(self, handle: str) -> bool:
        return handle in self._hidden

    async def _keep_hidden(self) -> None:
        times = 0
        while True:
            # Twice: what was being received the first time was hidden for the shorter time.
            await asyncio.sleep((AT_FIRST if times < 2 else HIDDEN) / 3)
            self._seconds = HIDDEN
            with suppress(MessagingError):  # the next one comes while they are still hidden
                times += await self._hide(HIDDEN)

    async def _hide(self, seconds: int) -> bool:
        """Whether all are hidden for so long from now on."""
        entries = [{"ReceiptHandle": handle, "VisibilityTimeout": seconds} for handle in self._hidden]
        fates = await in_batches(
            self._connection, "sqs", "change_message_visibility_batch", entries, QueueUrl=self._url
        )
        return not any(isinstance(fate, MessagingError) for fate in fates)

    async def end(self) -> None:
        """Everything that was not removed goes back."""
        self._keeping.cancel()
        await asyncio.wait((self._keeping,))
        if self._receiving is not None:
            await asyncio.wait((self._receiving,))
        await self._hide(0)
        self._hidden.clear()


def _when_sent(message: dict[str, Any]) -> tuple[int, int]:
    system = message.get("Attributes", {})
    return int(system.get("SentTimestamp", 0)), int(system.get("SequenceNumber", 0))
