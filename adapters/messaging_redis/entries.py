"""A message as an entry of a stream, and back.

An entry of ours has the fields `body`, `content-type` (empty: none), then one field per attribute and header. Field
names may repeat: the first `body` is the body. An entry of another program that has no `body` is taken as it is: one
field is the body, several fields are a JSON object of texts.

A copy (retry, dead letter, redrive) holds the original's fields packed in one field, `_entry`, with what we know about
it beside: only entries of our own retry and redrive streams are believed (2, 19).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.envelope import MAX_ATTEMPT, REPLY_TO, Plain, decode, encode
from messaging.errors import MessageTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.message import Message

PREFIX = "ce_"
Fields: TypeAlias = "list[bytes | str]"

_REPLY_TO = REPLY_TO.encode()
_BESIDE = (b"body", b"content-type", _REPLY_TO)
_PLAIN = Plain(PREFIX, str.encode, _BESIDE)
_WANTED = (*_BESIDE, *_PLAIN.attributes)
_KNOWN_FIELDS: dict[tuple[bytes, ...], Callable[[Sequence[Any]], Sequence[Any]]] = {}
"""How entries with these names of fields are read: those of one program all have the same."""
_MOST_KNOWN = 64


@dataclass(slots=True)
class Token:
    """Where a delivery is on the broker."""

    source: str
    """`m3`: partition 3; `r3`: the redrive stream of partition 3; `t`: the retry stream of the group."""
    stream: str
    id: str
    marked: bool = False
    """The mark of the crash guard is stored for it."""
    settled: bool = False

    @property
    def field(self) -> str:
        """The name of this entry in hashes."""
        return f"{self.source}/{self.id}"


def encode_entry(message: Message, reply_to: str | None = None) -> Fields:
    """The fields of an entry, name and value in turn."""
    fields: Fields = ["body", message.body, "content-type", message.content_type or ""]
    fields.extend(chain.from_iterable(encode(message, prefix=PREFIX).items()))
    if reply_to is not None:
        fields += (REPLY_TO, reply_to)
    return fields


def exceeds(fields: Fields, most: int) -> int:
    """Bytes of all names and values where they are more than `most`, else 0."""
    if 4 * sum(map(len, fields)) <= most:  # no character has more bytes
        return 0
    size = sum(
        len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode()) for part in fields
    )
    return size if size > most else 0


def too_large(told: str, size: int, most: int) -> MessageTooLarge:
    """Why an entry of this size, `told` by this name, is not stored."""
    return MessageTooLarge(
        f"{told} has {size} bytes with its headers; at most {most} fit (option max_message_bytes of the Redis adapter)"
    )


def decode_entry(fields: Sequence[bytes], *, topic: str, position: str) -> tuple[Message, str | None]:
    """The message, and the address that waits for a reply. Never raises, whoever wrote the entry."""
    names = tuple(fields[::2])
    values_of = _KNOWN_FIELDS.get(names) or _values_of(names)
    if values_of is not None and 2 * len(names) == len(fields):
        own, kind, address, *attributes = values_of((None, *fields))
        content_type = None if kind is None else kind.decode("utf-8", "replace") or None
        message = _PLAIN.compose(topic, own, content_type, *attributes)
        if message is not None:
            return message, None if address is None else address.decode("utf-8", "replace")
    return _decode_any(fields, topic, position)


def _values_of(names: tuple[bytes, ...]) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """Takes the values that we know out of None and the fields, for an entry of ours without headers of a program."""
    if b"body" not in names or len(set(names)) < len(names) or not _PLAIN.known.issuperset(names):
        return None
    places = {name: 2 * at + 2 for at, name in enumerate(names)}
    values_of = itemgetter(*(places.get(name, 0) for name in _WANTED))
    if len(_KNOWN_FIELDS) < _MOST_KNOWN:
        _KNOWN_FIELDS[names] = values_of
    return values_of


def _decode_any(fields: Sequence[bytes], topic: str, position: str) -> tuple[Message, str | None]:
    headers: dict[str, str] = {}
    body: bytes | None = None
    content_type: str | None = None
    reply_to: str | None = None
    pairs = iter(fields)
    for name, value in zip(pairs, pairs, strict=False):
        if name == b"body" and body is None:
            body = value
        elif name == b"content-type" and content_type is None:
            content_type = value.decode("utf-8", "replace")
        elif name == _REPLY_TO:
            reply_to = value.decode("utf-8", "replace")
        else:
            headers[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    if body is None:
        body, content_type, headers = _foreign_body(headers, fields, content_type)
    message = decode(
        headers,
        prefix=PREFIX,
        topic=topic,
        body=body,
        position=position,
        content_type=content_type or None,
        time=None if f"{PREFIX}time" in headers else entry_time(position),
    )
    return message, reply_to


def _foreign_body(
    headers: dict[str, str], fields: Sequence[bytes], content_type: str | None
) -> tuple[bytes, str | None, dict[str, str]]:
    attributes = {name: value for name, value in headers.items() if name.startswith((PREFIX, "messaging-"))}
    rest = {name: value for name, value in headers.items() if name not in attributes}
    if not rest:
        return b"", content_type, headers
    if len(rest) == 1:
        (name,) = rest
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        return values.get(name.encode(), b""), content_type, attributes
    return json.dumps(rest, ensure_ascii=False).encode(), content_type or "application/json", attributes


def entry_time(position: str) -> datetime | None:
    """When the server stored the entry: the first part of its id, in milliseconds."""
    try:
        return datetime.fromtimestamp(int(position.rpartition("/")[2].partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def pack(fields: Fields) -> bytes:
    """All fields as one value: each part's length, a colon, the part. The scripts write the same."""
    parts: list[bytes] = []
    for part in fields:
        raw = part if isinstance(part, bytes) else part.encode()
        parts += (b"%d:" % len(raw), raw)
    return b"".join(parts)


def unpack(packed: bytes) -> list[bytes]:
    """The fields of a packed entry; what is damaged is left out."""
    fields: list[bytes] = []
    start = 0
    while start < len(packed):
        colon = packed.find(b":", start, start + 12)
        if colon < 0 or not packed[start:colon].isdigit():
            break
        end = colon + 1 + int(packed[start:colon])
        fields.append(packed[colon + 1 : end])
        start = end
    return fields


@dataclass(slots=True)
class Copy:
    """A copied entry: the original's fields and what was recorded beside them."""

    fields: list[bytes]
    origin: str
    """The original's position."""
    failures: int = 0
    failure: str | None = None
    returns: int = 0
    deliveries: int = 0

    @property
    def partition(self) -> int:
        """The partition that the original was in."""
        return _number(self.origin.partition("/")[0].encode(), 1 << 31)


def decode_copy(fields: Sequence[bytes], id: str) -> Copy:
    """Read a copy, tolerant of anything: at worst it counts as a first delivery."""
    parts = dict(zip(fields[::2], fields[1::2], strict=False))
    failure = parts.get(b"_failure", b"").decode("utf-8", "replace")
    return Copy(
        fields=unpack(parts.get(b"_entry", b"")),
        origin=parts.get(b"_origin", b"").decode("utf-8", "replace") or f"0/{id}",
        failures=_number(parts.get(b"_attempt"), MAX_ATTEMPT),
        failure=failure or None,
        returns=_number(parts.get(b"_returns"), MAX_ATTEMPT),
        deliveries=_number(parts.get(b"_deliveries"), 1 << 31),
    )


def encode_copy(
    fields: Fields, *, origin: str, failures: int = 0, failure: str | None = None, returns: int = 0
) -> Fields:
    """The fields of a copy that is made here; the scripts make the others."""
    return [
        "_entry",
        pack(fields),
        "_origin",
        origin,
        "_attempt",
        str(failures),
        "_failure",
        failure or "",
        "_returns",
        str(returns),
        "_deliveries",
        "0",
    ]


def _number(value: bytes | None, most: int) -> int:
    try:
        return min(max(int(value or 0), 0), most)
    except ValueError:
        return 0
