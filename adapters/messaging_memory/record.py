"""One stored message, as a wire would carry it: what no wire can carry does not survive here either.

The log keeps rows: plain tuples of texts and bytes. The garbage collector stops looking at those, so that a long log
costs it nothing, and every hand-over makes a message of its own: what one handler does to its headers, no other sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from messaging.envelope import CONTROL, decode, encode, text
from messaging.message import make_message

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._shared: Shared | None = None
        self._bound: int | None = None

    def row(
        self, message: Message, stored_at: float, reply_to: str | None, maximum: float
    ) -> tuple[Row, int]:
        """What is kept of the message, and its size in bytes: exact where it may be above `maximum`."""
        shared = _shared(message)
        if self._shared is None or shared != self._shared:
            self._shared, self._bound = shared, _shared_bound(shared)
        shared = self._shared
        own = None if self._bound is None else _own_bound(message)
        body, headers = message.body, message.headers
        if self._bound is None or own is None:
            encoded = encode(message, prefix=PREFIX)
            return (stored_at, body, message.content_type, reply_to, encoded), _size(body, encoded)
        size = len(body) + self._bound + own
        if size > maximum:
            size = _size(body, encode(message, prefix=PREFIX))
        kept = tuple(headers.items()) if headers else ()
        key: Any = message.key  # of what survives it is no bytes
        return (stored_at, body, shared, reply_to, message.id, key, kept, message.time), size


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


def surviving(message: Message) -> int | None:
    """A bound of the bytes of its attributes, if the message comes out of `decode(encode(...))` as it went in.

    None where that is not certain: with a key of bytes, with text that is not ASCII, with a header of ours; and with
    what is rare, a publish delay.
    """
    shared, own = _shared_bound(_shared(message)), _own_bound(message)
    return None if shared is None or own is None else shared + own


_shared = cast(
    "Callable[[Message], Shared]",
    attrgetter("content_type", "type", "source", "expires_at", "correlation_id", "causation_id"),
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


def _own_bound(message: Message) -> int | None:
    own, key, headers, time = message.id, message.key, message.headers, message.time
    if not own or not own.isascii() or message.not_before is not None:
        return None
    if time is not None and time.tzinfo is not UTC:
        return None
    length = len(own)
    if key is not None:
        if isinstance(key, bytes) or not key.isascii():
            return None
        length += len(key)
    if headers:
        for name, value in headers.items():
            if name.startswith(_OURS) or not name.isascii() or not value.isascii():
                return None
            length += len(name) + len(value)
    return length
