"""One stored message, as a wire would carry it: what no wire can carry does not survive here either.

The log keeps rows: plain tuples of texts and bytes. The garbage collector stops looking at those, so that a long log
costs it nothing, and every hand-over makes a message of its own: what one handler does to its headers, no other sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
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
Shared: TypeAlias = tuple[Text, Text, Text, datetime | None, Text, Text]
"""What most messages of a program have in common: content type, type, source, expiry, correlation, causation."""
Intact: TypeAlias = tuple[float, bytes, Shared, Text, str, Text, tuple[tuple[str, str], ...], datetime | None]
"""The same of a message that a wire carries unchanged, with id, key, headers and time in place of the encoded headers.
It is encoded only when somebody asks for `Record.headers`."""
Row: TypeAlias = Carried | Intact


class Packing:
    """Makes the rows of messages: what they have in common is looked at once, and kept once."""

    __slots__ = ("_bound", "_shared")

    def __init__(self) -> None:
        self._shared: Shared = (None, None, None, None, None, None)
        self._bound: int | None = None

    def row(
        self, message: Message, stored_at: float, reply_to: str | None, maximum: float
    ) -> tuple[Row, int]:
        """What is kept of the message, and its size in bytes: exact where it may be above `maximum`.

        It is kept as it is where it comes out of `decode(encode(...))` as it went in. That is not certain with a key of
        bytes, with text that is not ASCII, with a header of ours; and with what is rare, a publish delay.
        """
        shared: Shared = (
            message.content_type,
            message.type,
            message.source,
            message.expires_at,
            message.correlation_id,
            message.causation_id,
        )
        if shared != self._shared:
            self._shared, self._bound = shared, _shared_bound(shared)
        bound = self._bound
        id, key, headers, time, body = message.id, message.key, message.headers, message.time, message.body
        if (
            bound is None
            or not id
            or not id.isascii()
            or (key is not None and not (type(key) is str and key.isascii()))
            or (time is not None and time.tzinfo is not UTC)
            or message.not_before is not None
            or (headers and not _plain(headers))
        ):
            encoded = encode(message, prefix=PREFIX)
            return (stored_at, body, message.content_type, reply_to, encoded), _size(body, encoded)
        size = len(body) + bound + len(id)
        if key:
            size += len(key)
        kept: tuple[tuple[str, str], ...] = ()
        if headers:
            kept = tuple(headers.items())
            size += sum(len(name) + len(value) for name, value in kept)
        if size > maximum:
            size = _size(body, encode(message, prefix=PREFIX))
        return (stored_at, body, self._shared, reply_to, id, key, kept, time), size


def row_of(message: Message, stored_at: float, reply_to: str | None, maximum: float) -> tuple[Row, int]:
    """The row of a single message: see `Packing.row`."""
    return Packing().row(message, stored_at, reply_to, maximum)


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
        return row[4] if len(row) == 5 else encode(message_of(row, "", self.position), prefix=PREFIX)

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
        return message_of(self.row, topic, self.position)


def message_of(row: Row, topic: str, position: str) -> Message:
    """A new message for one hand-over."""
    if len(row) != 5:
        _, body, shared, _, id, key, headers, time = row
        content_type, type, source, expires, correlation, causation = shared
        own = dict(headers) if headers else {}
        return make_message(
            id, topic, body, key, own, content_type, type, source, time, expires, correlation, causation
        )
    _, body, content_type, _, encoded = row
    return decode(
        encoded, prefix=PREFIX, topic=topic, body=body, position=position, content_type=content_type
    )


def _shared_bound(shared: Shared) -> int | None:
    content_type, type, source, expires_at, correlation_id, causation_id = shared
    attributes = f"{type}{source}{content_type}{correlation_id}{causation_id}"
    if (
        not type
        or "" in {source, correlation_id, causation_id}
        or not attributes.isascii()
        or (expires_at is not None and expires_at.tzinfo is not UTC)
    ):
        return None
    return len(attributes) + ATTRIBUTE_NAMES


def _plain(headers: Mapping[str, str]) -> bool:
    return all(
        name.isascii() and value.isascii() and not name.startswith(_OURS) for name, value in headers.items()
    )
