"""Request and reply: one topic for all inboxes of a namespace; an inbox reads one partition and takes what is its own.

An address is a partition and a token; replies carry the token. Nothing is acknowledged, and what nobody fetches goes by
the topic's short retention. When somebody deletes the topic, it is left alone for a while, then made anew (18).
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from math import inf
from typing import TYPE_CHECKING, Any

from messaging.adapter import ReplyInbox
from messaging.backoff import LEFT_ALONE
from messaging.envelope import REPLY_TO
from messaging.errors import (
    Closed,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    PublishError,
    TopicNotFound,
)
from messaging_kafka import library
from messaging_kafka.brokers import BY_BROKER, KEPT_BY_AGE, NewTopic
from messaging_kafka.fetching import Fetcher
from messaging_kafka.library import Place
from messaging_kafka.records import Parcel, parcel, read
from messaging_kafka.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_kafka.session import Session

logger = logging.getLogger("messaging")

KEPT_FOR = 3600.0
_ADDRESS = re.compile(r"([0-9]{1,4})/([0-9a-f]{32})")


class KafkaReplies:
    """Sends replies, and makes inboxes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._topic = session.names.replies
        self._partitions = 0
        """Of the topic; 0 where it was not seen yet, or was missed."""
        self._missed = -inf
        """When the topic, which had been there, was missed, in monotonic seconds."""

    async def _ready(self) -> int:
        """The partitions of the reply topic, which is made when it is first needed.

        Raises TopicNotFound where it is absent and nothing may be made, or not yet; ConnectionFailed.
        """
        if not self._partitions:
            brokers = self._session.brokers
            if not (there := await brokers.partitions([self._topic])):
                await self._make()
                there = await brokers.partitions([self._topic])
            self._partitions = there.get(self._topic, 0)
        return self._partitions

    async def _make(self) -> None:
        settings = self._session.settings
        if not self._session.topology.creates:
            raise TopicNotFound(
                f"requests need the topic {self._topic}, which Kafka at {settings.address} does not have, and the "
                f"topology setting forbids making it: create it with {settings.reply_partitions} partitions and "
                f"retention.ms={int(KEPT_FOR * 1000)}, or let one requester declare its topology"
            )
        left = self._missed + LEFT_ALONE - time.monotonic()
        if left > 0:
            raise TopicNotFound(
                f"topic {self._topic}, which requests need, was deleted on Kafka at {settings.address}: it is made "
                f"anew in {left:.1f} s"
            )
        config = {
            **KEPT_BY_AGE,
            **BY_BROKER,
            "retention.ms": str(int(KEPT_FOR * 1000)),
            "max.message.bytes": str(settings.max_message_bytes + 64 * 1024),
        }
        made = await self._session.brokers.create([NewTopic(self._topic, settings.reply_partitions, config)])
        if made and self._missed > -inf:
            logger.warning(
                "Topic %s was deleted on Kafka and is made anew: replies that were in it are lost",
                self._topic,
                extra={"topic": self._topic},
            )

    def missed(self) -> None:
        """The topic is not where it was: look for it before it is used again."""
        if self._partitions:
            self._partitions, self._missed = 0, time.monotonic()

    async def inbox(self) -> KafkaInbox:
        """A new inbox, ready to receive."""
        return KafkaInbox(self._session, self, await self.source())

    async def source(self) -> Source:
        """Any partition, from its end on. Raises TopicNotFound as long as there is no topic."""
        partitions = await self._ready()
        place = Place(self._topic, secrets.randbelow(max(1, partitions)))
        try:
            end = (await self._session.brokers.offsets({place: library.LATEST}))[place]
        except TopicNotFound:
            self.missed()
            raise
        return Source(place, end)

    async def send(self, replies: Sequence[tuple[str, Message]]) -> list[PublishError | None]:
        """One result per reply. Only addresses of our own form are written to (19)."""
        results: list[PublishError | None] = [None] * len(replies)
        parcels: list[Parcel] = []
        sent: list[int] = []
        matches = [_ADDRESS.fullmatch(address) for address, _ in replies]
        highest = max((int(match[1]) for match in matches if match is not None), default=0)
        try:
            if highest >= await self._ready():
                self.missed()  # made anew by others, it may have more
            partitions = await self._ready()
        except TopicNotFound as error:
            return [error] * len(replies)
        for at, ((address, message), match) in enumerate(zip(replies, matches, strict=True)):
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
                if isinstance(fate, TopicNotFound):
                    self.missed()
        return results


class KafkaInbox(ReplyInbox):
    """One partition of the reply topic, read from where it ended when the inbox was made."""

    def __init__(self, session: Session, replies: KafkaReplies, source: Source) -> None:
        self._session = session
        self._replies = replies
        self._wake = asyncio.Event()
        self._fetcher = Fetcher(session.brokers, f"replies {secrets.token_hex(4)}", self._wake.set)
        self._lost = False
        self._closed = False
        self._begin(source)

    def _begin(self, source: Source) -> None:
        self._token = secrets.token_hex(16)
        self.address = f"{source.place.partition}/{self._token}"
        self._source = source
        self._fetcher.add([source])

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """See `ReplyInbox.receive`. After a lost connection it goes on where it was; in a new topic it begins anew."""
        if self._closed:
            raise Closed("this reply inbox is closed")
        until = time.monotonic() + wait
        if self._lost:
            await self._begin_anew()
        self._fetcher.retry()
        while True:
            self._wake.clear()
            if (first := self._source.broken) is not None:
                self._source.rewind(first)
            with self._session.link.translated(f"reading replies from {self._source.place.topic}"):
                records = self._source.read(limit)
            found = [self._message(one) for one in records if self._ours(one)]
            self._fetcher.hungry()
            if found:
                return found
            if self._closed:
                raise Closed("this reply inbox is closed")
            if isinstance(self._fetcher.error, TopicNotFound):
                self._lose()
                raise ConnectionFailed(
                    f"{self._fetcher.error}; replies that were sent do not arrive"
                ) from self._fetcher.error
            if self._fetcher.error is not None:
                raise self._fetcher.error
            if self._source.waiting:
                continue
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                return ()

    def _lose(self) -> None:
        self._lost = True
        self._replies.missed()
        self._fetcher.remove([self._source.place])

    async def _begin_anew(self) -> None:
        """Raises ConnectionFailed as long as there is no topic: somebody may make it, if it is not for us to do so."""
        try:
            source = await self._replies.source()
        except TopicNotFound as error:
            raise ConnectionFailed(str(error)) from error
        self._begin(source)
        self._lost = False

    def _ours(self, record: Any) -> bool:
        return any(name == REPLY_TO and value == self._token.encode() for name, value in record.headers)

    def _message(self, record: Any) -> Message:
        return read(record, topic="", partition=self._source.place.partition, ours=True).message

    async def close(self) -> None:
        """See `ReplyInbox.close`."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        await self._fetcher.close()
