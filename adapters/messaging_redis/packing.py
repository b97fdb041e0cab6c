"""A message as the command that adds it to a stream, packed for the wire (RESP) in one step.

Most of an entry is the same for all messages of a program: those parts are packed once. What has more than the usual
attributes is packed field by field. Both give the same bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from messaging.envelope import FORMAT_VERSION, REPLY_TO, SPEC_VERSION, usual, utc_text
from messaging_redis.entries import PREFIX, encode_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Message
    from messaging_redis.entries import Fields


def pack_addition(stream: str, message: Message, reply_to: str | None = None) -> bytes:
    """`XADD stream *` and the fields of the entry."""
    at_once = usual(message)
    if at_once is None:
        return _pack_each(stream, encode_entry(message, reply_to))
    time, key = at_once
    before, between, count = _unchanging(
        message.content_type or "", message.type or message.topic, message.source
    )
    id, at = message.id, utc_text(time)
    rest = f"{before}{len(id)}\r\n{id}\r\n{between}{len(at)}\r\n{at}\r\n"
    if key is not None:
        rest = f"{rest}{_KEY}{len(key)}\r\n{key}\r\n"
        count += 2
    if message.expires_at is not None:
        expires = message.expires_at.isoformat()
        rest = f"{rest}{_EXPIRES}{len(expires)}\r\n{expires}\r\n"
        count += 2
    correlation_id, causation_id = message.correlation_id, message.causation_id
    if correlation_id is not None or causation_id is not None or reply_to is not None:
        for name, value in (
            (_CORRELATION, correlation_id),
            (_CAUSATION, causation_id),
            (_REPLY_TO, reply_to),
        ):
            if value is not None:
                rest = f"{rest}{name}{len(value)}\r\n{value}\r\n"
                count += 2
    if not rest.isascii():  # lengths are bytes
        return _pack_each(stream, encode_entry(message, reply_to))
    body = message.body
    return b"".join((f"{_start(stream, count)}{len(body)}\r\n".encode(), body, rest.encode()))


@lru_cache(maxsize=256)
def _unchanging(content_type: str, kind: str, source: str | None) -> tuple[str, str, int]:
    """What is packed between body and id, between id and time, and how many parts the entry has with them."""
    first = ["content-type", content_type, f"{PREFIX}specversion", SPEC_VERSION]
    first += [f"{PREFIX}messagingformat", FORMAT_VERSION]
    second = [f"{PREFIX}type", kind]
    if source is not None:
        second += [f"{PREFIX}source", source]
    before, between = ("".join(map(_packed, parts)) for parts in (first, second))
    count = 2 + len(first) + 2 + len(second) + 2
    return f"\r\n{before}{_name(f'{PREFIX}id')}", f"{between}{_name(f'{PREFIX}time')}", count


@lru_cache(maxsize=1024)
def _start(stream: str, count: int) -> str:
    """All until the length of the body."""
    return f"*{count + 3}\r\n{_packed('XADD')}{_packed(stream)}{_packed('*')}{_name('body')}"


def _packed(part: str) -> str:
    return f"${len(part.encode())}\r\n{part}\r\n"


def _name(field: str) -> str:
    """The name of a field, and the beginning of its value."""
    return f"{_packed(field)}$"


_KEY, _EXPIRES, _CORRELATION, _CAUSATION = (
    _name(PREFIX + attribute) for attribute in ("partitionkey", "expirytime", "correlationid", "causationid")
)
_REPLY_TO = _name(REPLY_TO)


def _pack_each(stream: str, fields: Fields) -> bytes:
    parts: Sequence[bytes | str] = ("XADD", stream, "*", *fields)
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(packed)
