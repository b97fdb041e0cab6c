"""Request and reply: one topic for all inboxes of a namespace; an inbox reads one partition and takes what is its own.

An address is a partition and a token; replies carry the token. Nothing is acknowledged, and what nobody fetches goes by
the topic's short retention.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from messaging.adapter import ReplyInbox
from messaging.envelope import REPLY_TO
from messaging.errors import Closed, InvalidMessage, MessageTooLarge, PublishError, TopicNotFound
from messaging_kafka import library
from messaging_kafka.brokers import BY_BROKER, KEPT_BY_AGE, NewTopic
from messaging_kafka.fetching import Fetcher, Source
from messaging_kafka.library import Place
from messaging_kafka.records import Parcel, parcel, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_kafka.session import Session

KEPT_FOR = 3600.0
_ADDRESS = re.compile(r"([0-9]{1,4})/([0-9a-f]{32})")


class KafkaReplies:
    """Sends replies, and makes inboxes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._topic = session.names.replies
        self._partitions = 0

    async def _ready(self) -> int:
        """The partitions of the reply topic, which is made when it is first needed.

        Raises TopicNotFound where it is absent and nothing may be made, ConnectionFailed.
        """
        if not self._partitions:
            settings, brokers = self._session.settings, self._session.brokers
            there = await brokers.partitions([self._topic])
            if self._topic not in there and not self._session.topology.creates:
                raise TopicNotFound(
                    f"requests need the topic {self._topic}, which Kafka at {settings.address} does not have, and the "
                    f"topology setting forbids making it: create it with {settings.reply_partitions} partitions and "
                    f"retention.ms={int(KEPT_FOR * 1000)}, or let one requester declare its topology"
                )
            if self._topic not in there:
                config = {
                    **KEPT_BY_AGE,
                    **BY_BROKER,
                    "retention.ms": str(int(KEPT_FOR * 1000)),
                    "max.message.bytes": str(settings.max_message_bytes + 64 * 1024),
                }
                await brokers.create([NewTopic(self._topic, settings.reply_partitions, config)])
                there = await brokers.partitions([self._topic])
            self._partitions = there.get(self._topic, 0)
        return self._partitions

    async def inbox(self) -> KafkaInbox:
        """A new inbox, ready to receive: it begins at the end of its partition."""
        partitions = await self._ready()
        place = Place(self._topic, secrets.randbelow(max(1, partitions)))
        end = (await self._session.brokers.offsets({place: library.LATEST}))[place]
        return KafkaInbox(self._session, place, end)

    async def send(self, replies: Sequence[tuple[str, Message]]) -> list[PublishError | None]:
        """One result per reply. Only addresses of our own form are written to (19)."""
        results: list[PublishError | None] = [None] * len(replies)
        parcels: list[Parcel] = []
        sent: list[int] = []
        try:
            partitions = await self._ready()
        except TopicNotFound as error:
            return [error] * len(replies)
        for at, (address, message) in enumerate(replies):
            match = _ADDRESS.fullmatch(address)
            if match is None or int(match[1]) >= partitions:
                results[at] = InvalidMessage(
                    f"the reply to {message.correlation_id} was not sent: {address[:100]!r} is no address of a reply "
                    f"inbox"
                )
                continue
            packed = parcel(message, self._topic, int(match[1]), control={REPLY_TO: match[2]})
            if packed.size > self._session.settings.max_message_bytes:
                results[at] = MessageTooLarge(
                    f"the reply to {message.correlation_id} was not sent: it has {packed.size} bytes, at most "
                    f"{self._session.settings.max_message_bytes} fit"
                )
                continue
            parcels.append(packed)
            sent.append(at)
        for at, fate in zip(sent, await self._session.writer.write(parcels), strict=True):
            if isinstance(fate, PublishError):
                results[at] = fate
        return results


class KafkaInbox(ReplyInbox):
    """One partition of the reply topic, read from where it ended when the inbox was made."""

    def __init__(self, session: Session, place: Place, position: int) -> None:
        self._token = secrets.token_hex(16)
        self.address = f"{place.partition}/{self._token}"
        self._place = place
        self._session = session
        self._wake = asyncio.Event()
        self._fetcher = Fetcher(session.brokers, f"replies {self._token[:8]}", self._wake.set)
        self._source = Source(place, position)
        self._fetcher.add([self._source])
        self._closed = False

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """See `ReplyInbox.receive`. After a lost connection it goes on where it was."""
        if self._closed:
            raise Closed("this reply inbox is closed")
        until = time.monotonic() + wait
        self._fetcher.retry()
        while True:
            self._wake.clear()
            if (first := self._source.broken) is not None:
                self._source.rewind(first)
            with self._session.link.translated(f"reading replies from {self._place.topic}"):
                records = self._source.read(limit)
            found = [self._message(one) for one in records if self._ours(one)]
            self._fetcher.hungry()
            if found:
                return found
            if self._closed:
                raise Closed("this reply inbox is closed")
            if self._fetcher.error is not None:
                raise self._fetcher.error
            if self._source.waiting:
                continue
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                return ()

    def _ours(self, record: Any) -> bool:
        return any(name == REPLY_TO and value == self._token.encode() for name, value in record.headers)

    def _message(self, record: Any) -> Message:
        return read(record, topic="", partition=self._place.partition, ours=True).message

    async def close(self) -> None:
        """See `ReplyInbox.close`."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        await self._fetcher.close()
