"""Replies: a stream per inbox, read by position. Reading removes nothing that is not yet here, so nothing is lost.

Every write sets the stream's time to live anew: what nobody fetches goes away by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from messaging.adapter import ReplyInbox
from messaging.errors import (
    Closed,
    ConnectionFailed,
    InvalidMessage,
    MessagingError,
    PublishError,
    PublishUncertain,
)
from messaging_redis.connection import Interrupted, code_of, translate
from messaging_redis.consumer import stream_pairs
from messaging_redis.entries import decode_entry, encode_entry, exceeds, too_large
from messaging_redis.keys import reply_key, reply_pattern
from messaging_redis.packing import pack_addition
from messaging_redis.topology import as_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_redis.connection import Connection
    from messaging_redis.line import Argument, Command

_MOST_REPLIES = 256


class RedisReplies:
    """Sends replies, and makes inboxes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ours = reply_pattern(connection.settings)

    async def inbox(self) -> RedisInbox:
        """A new inbox; its stream begins with the first reply."""
        return RedisInbox(self._connection, reply_key(self._connection.settings, uuid4().hex))

    async def send(self, replies: Sequence[tuple[str, Message]]) -> list[PublishError | None]:
        """One result per reply. Only addresses of our own form are written to (19)."""
        results: list[PublishError | None] = [None] * len(replies)
        by_shard: dict[str, list[int]] = {}
        for at, (address, message) in enumerate(replies):
            if self._ours.fullmatch(address) is None:
                results[at] = InvalidMessage(
                    f"reply {message.id}: no inbox of ours has the address {address[:200]!r}; nothing was sent"
                )
                continue
            by_shard.setdefault(self._connection.shard(address), []).append(at)
        for places in by_shard.values():
            for start in range(0, len(places), _MOST_REPLIES):
                await self._send(places[start : start + _MOST_REPLIES], replies, results)
        return results

    async def _send(
        self,
        places: Sequence[int],
        replies: Sequence[tuple[str, Message]],
        results: list[PublishError | None],
    ) -> None:
        alive = int(self._connection.settings.reply_ttl * 1000)
        most = self._connection.settings.max_message_bytes
        commands: list[Command] = []
        sent: list[int] = []
        for at in places:
            address, message = replies[at]
            packed = pack_addition(address, message)
            # The whole command is longer than its entry.
            if len(packed) > most and (size := exceeds(encode_entry(message), most)):
                results[at] = too_large(f"the reply to {message.correlation_id}", size, most)
                continue
            commands += (packed, ("PEXPIRE", address, alive))
            sent.append(at)
        if not sent:
            return
        answers: list[Any]
        try:
            answers = await self._connection.exchange(replies[sent[0]][0], commands)
        except MessagingError as error:
            answers = [error] * len(commands)
        for at, stored, expires in zip(sent, answers[::2], answers[1::2], strict=True):
            refused = stored if isinstance(stored, Exception) else expires
            if isinstance(refused, Exception):
                unsure = refused is not stored or isinstance(refused, Interrupted)
                kind = PublishUncertain if unsure else PublishError
                address, message = replies[at]
                results[at] = kind(f"reply {message.id} to {address}: {translate(refused, 'XADD')}")


class RedisInbox(ReplyInbox):
    """The replies to this process."""

    def __init__(self, connection: Connection, address: str) -> None:
        self._connection = connection
        self.address = address
        self._last = "0-0"
        self._fetched: list[str] = []
        self._closed = False

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """See `ReplyInbox.receive`. A cancelled read loses nothing: the next one begins where the last answer ended."""
        if self._closed:
            raise Closed("this reply inbox is closed")
        block = max(1, int(wait * 1000))
        command: list[Argument] = [
            "XREAD",
            "COUNT",
            limit,
            "BLOCK",
            block,
            "STREAMS",
            self.address,
            self._last,
        ]
        # What was fetched before is removed with the next fetch.
        removal: list[Command] = [["XDEL", self.address, *self._fetched]] if self._fetched else []
        *_, reply = await self._connection.exchange(self.address, (*removal, command), wait=wait)
        self._fetched = []
        if isinstance(reply, Exception):
            raise translate(reply, "XREAD")
        messages: list[Message] = []
        for _, entries in stream_pairs(reply):
            for raw_id, fields in entries:
                self._last = raw_id.decode()
                self._fetched.append(self._last)
                messages.append(decode_entry(fields, topic="", position=f"0/{self._last}")[0])
        if not messages:
            await self._check_position()
        return messages

    async def _check_position(self) -> None:
        """A server that was flushed, or lost its latest writes, may give smaller ids: they would never be read."""
        (reply,) = await self._connection.exchange(self.address, (("XINFO", "STREAM", self.address),))
        if isinstance(reply, Exception):
            if code_of(reply) == "ERR" or "no such key" in str(reply):
                return
            raise translate(reply, "XINFO STREAM")
        latest = as_dict(reply)["last-generated-id"].decode()
        if _parts(latest) < _parts(self._last):
            self._last = "0-0"
            raise ConnectionFailed(
                "Redis has lost the replies it had: those that were sent meanwhile may be missing"
            )

    async def close(self) -> None:
        """See `ReplyInbox.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._connection.call(self.address, "DEL", self.address)
        except MessagingError:
            # The stream's time to live removes it.
            return


def _parts(id: str) -> tuple[int, int]:
    milliseconds, _, sequence = id.partition("-")
    return int(milliseconds), int(sequence or 0)
