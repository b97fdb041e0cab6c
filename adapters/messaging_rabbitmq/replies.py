"""Request and reply: an exclusive queue for each inbox, gone with its connection.

Direct reply-to would bind requests and replies to one channel; an exclusive queue works across the two connections
and needs no declaration that RabbitMQ 4 deprecates.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from typing import TYPE_CHECKING

from messaging.adapter import ReplyInbox
from messaging.errors import Closed, ConnectionFailed, InvalidMessage, MessagingError, PublishError
from messaging_rabbitmq.arrivals import callback_of, take_arrivals
from messaging_rabbitmq.connection import CLOSE_TIMEOUT, abandon, close_channel, translated, when_closed
from messaging_rabbitmq.properties import incoming, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from messaging.message import Message
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.session import Session

_LANE = "reply"
"""Inboxes are queues of one node, which make nobody wait."""
_UNIQUE = re.compile(r"[0-9a-f]{32}")


def is_reply_address(session: Session, address: str) -> bool:
    """Whether an inbox of ours can have this address: we publish nowhere else (19).

    Not even to direct reply-to: a forged token there makes RabbitMQ 3.10 close the whole connection.
    """
    prefix = session.names.reply("0")[:-1]
    return address.startswith(prefix) and _UNIQUE.fullmatch(address[len(prefix) :]) is not None


async def send_replies(
    session: Session, replies: Sequence[tuple[str, Message]]
) -> Sequence[PublishError | None]:
    """See `Adapter.reply`."""
    results: list[PublishError | None] = [None] * len(replies)
    parcels: list[Parcel] = []
    limit = session.settings.max_message_bytes
    sent: list[int] = []
    for index, (address, message) in enumerate(replies):
        if not is_reply_address(session, address):
            results[index] = InvalidMessage(
                f"the reply to {message.correlation_id} was not sent: {address[:100]!r} is no address of a reply inbox"
            )
            continue
        try:
            # An inbox outlives no connection, so its replies need no disk.
            parcel = packed(
                "",
                address,
                message,
                limit=limit,
                table_limit=session.consuming.table_limit,
                mandatory=False,
                persistent=False,
            )
        except PublishError as error:
            results[index] = error
            continue
        parcels.append(parcel)
        sent.append(index)
    for index, fate in zip(sent, await session.sender.send(parcels, _LANE), strict=True):
        if isinstance(fate, PublishError):
            results[index] = fate
    return results


class RabbitMQInbox(ReplyInbox):
    """An exclusive queue of this connection; replies come unacknowledged."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: AbstractChannel | None = None
        self._waiting: deque[DeliveredMessage] = deque()
        self._changed = asyncio.Event()
        self._lost = False
        self._closed = False
        self._consumer_tag = ""
        self.address = ""

    async def open(self) -> None:
        """Declare a queue of a new name: replies to an older one are lost with it."""
        session = self._session
        channel = await session.consuming.channel(buffer=1024)
        address = session.names.reply(secrets.token_hex(16))
        opened = False
        try:
            with translated("opening a reply inbox", session.settings.address):
                async with asyncio.timeout(session.settings.operation_timeout):
                    await channel.queue_declare(address, exclusive=True, auto_delete=True)
                    when_closed(channel, lambda: self._gone(channel))
                    channel.on_consumer_cancel_callbacks.add(lambda _: self._gone(channel))
                    self._channel = channel
                    take_arrivals(channel, self._put)
                    answer = await channel.basic_consume(address, callback_of(self._put), no_ack=True)
                    self._consumer_tag = str(answer.consumer_tag)
            opened = True
        finally:
            if not opened:
                self._channel = None
                abandon(channel)
        self.address = address

    def _put(self, message: DeliveredMessage) -> None:
        self._waiting.append(message)
        self._changed.set()

    def _gone(self, channel: AbstractChannel) -> None:
        if self._channel is channel:
            self._channel = None
            self._lost = True
            self._changed.set()

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        if self._closed:
            raise Closed("this reply inbox is closed")
        if self._channel is None and not self._lost:
            await self.open()
        deadline = asyncio.get_running_loop().time() + wait
        while not self._waiting:
            if self._closed:
                raise Closed("this reply inbox is closed")
            if self._lost:
                self._lost = False
                raise ConnectionFailed(
                    f"the reply inbox at RabbitMQ {self._session.settings.address} was lost: replies sent meanwhile "
                    f"do not arrive"
                )
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return ()
        return [self._decoded(self._waiting.popleft()) for _ in range(min(limit, len(self._waiting)))]

    def _decoded(self, original: DeliveredMessage) -> Message:
        return incoming(original, topic="", position=f"reply/{original.delivery_tag}", partitions=1).message

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        channel, self._channel = self._channel, None
        if channel is not None:
            await _leave(self._session, channel, self._consumer_tag)


async def _leave(session: Session, channel: AbstractChannel, consumer_tag: str) -> None:
    """The queue is deleted with its last consumer."""
    try:
        with translated("closing a reply inbox", session.settings.address):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await channel.basic_cancel(consumer_tag)
    except MessagingError:
        return  # the queue goes with the connection
    finally:
        await close_channel(channel)
