"""Request and reply: a standard queue for each inbox, deleted with it; what processes left behind is swept."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from typing import TYPE_CHECKING, Any

from messaging.adapter import GroupSpec, Lease, ReplyInbox, TopicSpec
from messaging.errors import (
    Closed,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    MessagingError,
    PublishError,
)
from messaging_sqs import copies
from messaging_sqs.batches import in_batches
from messaging_sqs.connection import Absent
from messaging_sqs.entries import LARGEST, ROOM, Entry, pack, unpack
from messaging_sqs.names import queue_name
from messaging_sqs.polling import Polls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_sqs.connection import Connection
    from messaging_sqs.topology import TopologyKeeper

logger = logging.getLogger("messaging")

RETENTION = 60
"""Seconds: the least that SQS allows."""
LEASE = 30
ALIVE = "messaging-alive"
"""A tag of each inbox: when its process was last seen, in seconds since the epoch."""
BEAT = 300.0
ORPHANED_AFTER = 3 * BEAT
_SWEPT_AT_ONCE = 100
"""AWS allows some 30 calls a second about tags for an account."""
_POLLERS = 2
_BUFFER = 1000
"""Replies that may wait for whoever reads them."""


async def send_replies(
    connection: Connection, topology: TopologyKeeper, replies: Sequence[tuple[str, Message]]
) -> Sequence[PublishError | None]:
    """See `Adapter.reply`."""
    results: list[PublishError | None] = [None] * len(replies)
    by_address: dict[str, list[tuple[int, Entry]]] = {}
    most = min(connection.settings.max_message_bytes, LARGEST - ROOM)
    for index, (address, message) in enumerate(replies):
        if not topology.names.reply_pattern.fullmatch(address):
            results[index] = InvalidMessage(
                f"the reply to {message.correlation_id} was not sent: {address[:100]!r} is no address of a reply inbox"
            )
            continue
        entry = pack(message)
        if entry.size > most:
            results[index] = MessageTooLarge(
                f"the reply to {message.correlation_id} has {entry.size} bytes; at most {most} fit"
            )
            continue
        by_address.setdefault(address, []).append((index, entry))

    async def send(address: str, parcels: Sequence[tuple[int, Entry]]) -> None:
        try:
            url = await connection.likely_url(address)
        except Absent:
            return
        errors = await copies.store(connection, url, [(entry, {}) for _, entry in parcels])
        for (index, _), error in zip(parcels, errors, strict=True):
            # An inbox that is gone wants no reply.
            if error is not None and not isinstance(error, Absent):
                what = f"the reply to {replies[index][1].correlation_id} was not sent"
                results[index] = copies.unstored(what, error)

    await asyncio.gather(*(send(address, parcels) for address, parcels in by_address.items()))
    return results


class SQSInbox(ReplyInbox):
    """A queue of this process. Replies are removed when they have been read."""

    def __init__(self, connection: Connection, topology: TopologyKeeper) -> None:
        self._connection = connection
        self._topology = topology
        self.address = ""
        self._url = ""
        self._waiting: list[Message] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._polls = Polls(
            connection, number=_POLLERS, lease=LEASE, take=self._take, changed=self._changed.set
        )
        self._group = GroupSpec(TopicSpec("replies", partitions=1), "replies")
        self._closed = False

    async def open(self) -> None:
        """Create the queue, look after it, and sweep those of processes that are gone."""
        await self._create()
        self._own(self._beat())
        self._own(sweep(self._connection, self._topology, self.address))

    async def _create(self) -> None:
        """The name is new, so that nothing sent to an older inbox arrives here."""
        self.address = self._topology.names.reply(secrets.token_hex(16))
        self._url = await self._topology.queues.create(
            self.address, _alive(self._connection), retention=RETENTION
        )

    def _own(self, work: Any) -> None:
        task = asyncio.create_task(work, name="messaging-sqs-inbox")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.info("Looking after reply queue %s failed: %s", self.address, error)

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """See `ReplyInbox.receive`."""
        until = time.monotonic() + wait
        while True:
            if self._closed:
                raise Closed("this inbox is closed")
            if self._waiting:
                replies, self._waiting = self._waiting[:limit], self._waiting[limit:]
                self._poll()
                return replies
            if self._polls.failure is not None:
                await self._reopen()
            self._poll()
            self._changed.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                return ()

    def _poll(self) -> None:
        self._polls.start(self._url, _BUFFER - len(self._waiting) - self._polls.requested)

    async def _reopen(self) -> None:
        """The queue keeps what came meanwhile; one that is gone is made anew, and what was sent to it is lost."""
        error, self._polls.failure = self._polls.failure, None
        assert error is not None
        if isinstance(error, Absent):
            await self._create()
            raise ConnectionFailed(
                f"the reply queue was deleted, and its replies with it: {error}"
            ) from error
        raise error

    async def _take(self, messages: Sequence[dict[str, Any]], came: float) -> None:
        lease = Lease(came)
        self._waiting += [unpack(raw, self._group, lease).message for raw in messages]
        entries = [{"ReceiptHandle": raw["ReceiptHandle"]} for raw in messages]
        self._own(self._remove(entries))

    async def _remove(self, entries: Sequence[dict[str, Any]]) -> None:
        # One that stays is gone with its retention, and reaches nobody twice: its request is answered.
        await in_batches(self._connection, "sqs", "delete_message_batch", entries, QueueUrl=self._url)

    async def _beat(self) -> None:
        """Say that the queue is alive, more often where that failed: others delete what is silent for long."""
        wait = BEAT
        while True:
            await asyncio.sleep(wait)
            wait = BEAT
            try:
                await self._connection.call(
                    "sqs", "tag_queue", QueueUrl=self._url, Tags=_alive(self._connection)
                )
            except MessagingError as error:
                wait = BEAT / 10
                logger.warning(
                    "Marking reply queue %s as alive failed, trying again: %s", self.address, error
                )

    async def close(self) -> None:
        """See `ReplyInbox.close`. A poll that is under way ends by itself: nothing of it is wanted."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await self._polls.abandon()
        await self._topology.queues.delete(self._url)


async def sweep(connection: Connection, topology: TopologyKeeper, own: str) -> None:
    """Delete the reply queues of processes that have shown no life for long. Without the permission, nothing.

    Of many, each sweep looks at a choice by lot: so each orphan is found, however many live beside it.
    """
    try:
        urls = [
            url
            for url in await topology.queues.named_like(topology.names.replies)
            if (name := queue_name(url)) != own and topology.names.reply_pattern.fullmatch(name)
        ]
        for url in random.sample(urls, min(len(urls), _SWEPT_AT_ONCE)):
            await _sweep_one(connection, topology, url)
    except ConfigurationError as error:
        logger.debug("Reply queues of processes that are gone are not swept: %s", error)


async def _sweep_one(connection: Connection, topology: TopologyKeeper, url: str) -> None:
    try:
        answer = await connection.call("sqs", "list_queue_tags", QueueUrl=url)
    except Absent:
        return  # another process swept it, or its own deleted it
    tags: dict[str, str] = answer.get("Tags") or {}
    seen = tags.get(ALIVE, "")
    if seen.isdecimal() and connection.time.now() - int(seen) > ORPHANED_AFTER:
        await topology.queues.delete(url)
        logger.info("Deleted reply queue %s, whose process is gone", queue_name(url))


def _alive(connection: Connection) -> dict[str, str]:
    """The tag of a queue whose process lives, by the service's clock: who has another time must not sweep it."""
    return {ALIVE: str(int(connection.time.now()))}
