"""The properties of a message of ours, as its content header carries them, in one step.

Most of them are the same for all messages of a program: those parts are packed once. What has more than the usual
attributes is left to `properties.packed`, field by field. Both give the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from messaging.envelope import FORMAT_VERSION, SPEC_VERSION, usual, utc_text
from messaging_rabbitmq.amqp import (
    CONTENT_TYPE,
    CORRELATION,
    FLAGS,
    HEADERS,
    LONG,
    LONG_LONG,
    MESSAGE_ID,
    MODE,
    REPLY_TO,
    TIME,
)

if TYPE_CHECKING:
    from messaging.message import Message

PREFIX = "cloudEvents_"
_FIRST_YEAR = 1971
"""A timestamp of AMQP has no sign."""


class _Counts(dict[int, str]):
    """Lengths as one ASCII character, which is also the last byte of a longer number; any other is no ASCII."""

    def __missing__(self, length: int) -> str:
        return "\x80"


_COUNT = _Counts((length, chr(length)) for length in range(128))


def usual_content(message: Message, message_id: str, reply_to: str | None, mode: int) -> bytes | None:
    """Flags and fields; None for a message that is not such a one."""
    at_once = usual(message)
    if at_once is None or at_once[0].year < _FIRST_YEAR:
        return None
    time, key = at_once
    flags, native = 0, ""
    id, at, correlation_id = message.id, utc_text(time), message.correlation_id
    before, between = _unchanging(message.type or message.topic, message.source)
    table = f"{before}{_COUNT[len(id)]}{id}{between}{_COUNT[len(at)]}{at}"
    if key is not None:
        table = f"{table}{_KEY}{_COUNT[len(key)]}{key}"
    if message.expires_at is not None:
        expires = message.expires_at.isoformat()
        table = f"{table}{_EXPIRES}{_COUNT[len(expires)]}{expires}"
    if correlation_id is not None:
        table = f"{table}{_CORRELATION}{_COUNT[len(correlation_id)]}{correlation_id}"
        if correlation_id:
            flags = CORRELATION
            native = f"{_COUNT[len(correlation_id)]}{correlation_id}"
    if message.causation_id is not None:
        table = f"{table}{_CAUSATION}{_COUNT[len(message.causation_id)]}{message.causation_id}"
    if reply_to:
        flags |= REPLY_TO
        native = f"{native}{_COUNT[len(reply_to)]}{reply_to}"
    start = _start(flags, message.content_type)
    described = f"{table}{chr(mode)}{native}{_COUNT[len(message_id)]}{message_id}"
    if start is None or not described.isascii():
        return None
    return b"".join((start, LONG.pack(len(table)), described.encode(), _seconds(time)))


def _seconds(time: datetime) -> bytes:
    """A timestamp of AMQP: most are that of the message before."""
    former, packed = _latest[0]
    if time is not former:
        packed = LONG_LONG.pack(int(time.timestamp()))
        _latest[0] = time, packed
    return packed


_latest = [(datetime(1970, 1, 1, tzinfo=UTC), LONG_LONG.pack(0))]


@lru_cache(maxsize=256)
def _start(flags: int, content_type: str | None) -> bytes | None:
    """All before the table. None for a content type that is too long for this, or no ASCII."""
    flags |= HEADERS | MODE | MESSAGE_ID | TIME
    if not content_type:
        return FLAGS.pack(flags)
    written = f"{_COUNT[len(content_type)]}{content_type}"
    return FLAGS.pack(flags | CONTENT_TYPE) + written.encode() if written.isascii() else None


@lru_cache(maxsize=256)
def _unchanging(kind: str, source: str | None) -> tuple[str, str]:
    """What stands in the table before the id, and between it and the time."""
    before = f"{_field('specversion', SPEC_VERSION)}{_field('messagingformat', FORMAT_VERSION)}{_name('id')}"
    between = _field("type", kind)
    if source is not None:
        between += _field("source", source)
    return before, between + _name("time")


def _field(attribute: str, value: str) -> str:
    return f"{_name(attribute)}{_COUNT[len(value)]}{value}"


def _name(attribute: str) -> str:
    """The name of a field of a table, the kind of its value, and its length but for the last byte."""
    name = f"{PREFIX}{attribute}"
    return f"{_COUNT[len(name)]}{name}S\0\0\0"


_KEY, _EXPIRES, _CORRELATION, _CAUSATION = map(
    _name, ("partitionkey", "expirytime", "correlationid", "causationid")
)
