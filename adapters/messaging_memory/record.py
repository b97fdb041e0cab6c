"""One stored message, as a wire would carry it: what no wire can carry does not survive here either.

The log keeps rows: plain tuples of texts and bytes. The garbage collector stops looking at those, so that a long log
costs it nothing, and every hand-over makes a message of its own: what one handler does to its headers, no other sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.envelope import CONTROL, decode, encode, text
from messaging.message import make_message

if TYPE_CHECKING:
    from messaging.message import Message

PREFIX = "ce_"
"""Of the CloudEvents attributes among the stored headers."""

ATTRIBUTE_NAMES = 512
"""More bytes than the names of all attributes, their times and their versions have."""

_OURS = (PREFIX, CONTROL)

Text: TypeAlias = str | None
Carried: TypeAlias = tuple[float, bytes, Text, Text, Mapping[str, Any]]
"""When it was stored (`Clock.time` seconds), body, content type, reply address, and headers as on a wire."""
Intact: TypeAlias = tuple[
    float,
    bytes,
    Text,
    Text,
    str,
    Text,
    tuple[tuple[str, str], ...],
    Text,
    Text,
    datetime | None,
    datetime | None,
    Text,
    Text,
]
"""The same, then the attributes of a message that a wire carries unchanged: id, key, headers, type, source, time,
expiry, correlation and causation. It is encoded only when somebody asks for `Record.headers`."""
Row: TypeAlias = Carried | Intact


def row_of(message: Message, stored_at: float, reply_to: str | None, maximum: float) -> tuple[Row, int]:
    """What is kept of the message, and its size in bytes: exact where it may be above `maximum`."""
    body = message.body
    bound = surviving(message)
    if bound is None:
        encoded = encode(message, prefix=PREFIX)
        return (stored_at, body, message.content_type, reply_to, encoded), _size(body, encoded)
    size = len(body) + bound
    if size > maximum:
        size = _size(body, encode(message, prefix=PREFIX))
    headers = message.headers
    return (
        stored_at,
        body,
        message.content_type,
        reply_to,
        message.id,
        message.key,  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  what survives has no key of bytes
        tuple(headers.items()) if headers else (),
        message.type,
        message.source,
        message.time,
        message.expires_at,
        message.correlation_id,
        message.causation_id,
    ), size


def _size(body: bytes, headers: Mapping[str, Any]) -> int:
    return len(body) + sum(len(f"{name}{value}".encode()) for name, value in headers.items())


class Record:
    """A row in somebody's hands: with its place, or with what became of it since."""

    __slots__ = ("offset", "partition", "position", "row", "sequence")

    def __init__(self, row: Row, partition: int, offset: int = -1) -> None:
        self.row = row
        self.partition = partition
        self.offset = offset
        self.position = f"{partition}-{offset}"
        self.sequence = 0
        """0 in the log; above it for a message that was redriven behind the log's message `offset`."""

    @property
    def stored_at(self) -> float:
        return self.row[0]

    @property
    def reply_to(self) -> str | None:
        return self.row[3]

    @property
    def headers(self) -> Mapping[str, Any]:
        """As on a wire: attributes and plain headers."""
        row = self.row
        return row[4] if len(row) == 5 else encode(self.message(""), prefix=PREFIX)

    @property
    def key(self) -> str | None:
        """One text for each key; None without a key."""
        row = self.row
        if len(row) != 5:
            return row[5]
        key = row[4].get(PREFIX + "partitionkey", row[4].get(PREFIX + "partitionkeybase64"))
        return None if key is None else text(key)

    def message(self, topic: str) -> Message:
        """A new message for one hand-over."""
        row = self.row
        if len(row) != 5:
            _, body, content, _, id, key, headers, type, source, time, expires, correlation, causation = row
            plain = dict(headers) if headers else {}
            return make_message(
                id, topic, body, key, plain, content, type, source, time, expires, correlation, causation
            )
        _, body, content_type, _, encoded = row
        return decode(
            encoded,
            prefix=PREFIX,
            topic=topic,
            body=body,
            position=self.position,
            content_type=content_type,
        )


def surviving(message: Message) -> int | None:
    """A bound of the bytes of its attributes, if the message comes out of `decode(encode(...))` as it went in.

    None where that is not certain: with a key of bytes, with text that is not ASCII, with a header of ours; and with
    what is rare, a publish delay.
    """
    shared = _shared(message.type, message.source, message.content_type)
    key, time, expires_at = message.key, message.time, message.expires_at
    own = message.id
    if (
        shared is None
        or not own
        or isinstance(key, bytes)
        or message.not_before is not None
        or (time is not None and time.tzinfo is not UTC)
        or (expires_at is not None and expires_at.tzinfo is not UTC)
        or message.correlation_id == ""
        or message.causation_id == ""
    ):
        return None
    own = f"{own}{key}{message.correlation_id}{message.causation_id}"
    if not own.isascii():
        return None
    length = shared + len(own)
    for name, value in message.headers.items():
        if name.startswith(_OURS) or not name.isascii() or not value.isascii():
            return None
        length += len(name) + len(value)
    return length


@lru_cache(maxsize=256)
def _shared(type: str | None, source: str | None, content_type: str | None) -> int | None:
    """The same for the attributes that a program's messages share."""
    attributes = f"{type}{source}{content_type}"
    if not type or source == "" or not attributes.isascii():
        return None
    return len(attributes) + ATTRIBUTE_NAMES
