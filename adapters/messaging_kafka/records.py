"""A message as a Kafka record, and back; and copies of records: delayed, dead, redriven.

The body is the value, the key is the key, all else are headers as the CloudEvents binding for Kafka writes them. A copy
keeps the headers of the original and adds what we know about it. Our control headers are believed only on topics of our
own: what another program writes into a group's topic has no control (19).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.envelope import (
    ATTEMPT,
    CONTROL,
    FAILURE,
    FORMAT_VERSION,
    NOT_BEFORE,
    REPLY_TO,
    SPEC_VERSION,
    Plain,
    decode,
    encode,
    recorded_attempt,
    recorded_seconds,
    usual,
    utc_text,
)
from messaging_kafka.library import BatchBuilder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging.adapter import RawDelivery
    from messaging.message import Message

PREFIX = "ce_"
CONTENT_TYPE = "content-type"
ORIGIN = "messaging-origin"
"""Where the original of a copy is: its position."""
WAIT = "messaging-wait"
"""What is left of the delay of a copy when it is written, in seconds."""
RECORD_OVERHEAD = 512
"""Bytes of a batch around one record, with room to spare."""
COPY_ROOM = 256 * 1024
"""Bytes that a copy may be larger than its original: failure record and control headers."""

_ID, _TIME, _KEY, _EXPIRES, _CORRELATION, _CAUSATION = (
    PREFIX + name for name in ("id", "time", "partitionkey", "expirytime", "correlationid", "causationid")
)
_PLAIN = Plain(PREFIX, str, (CONTENT_TYPE, REPLY_TO))

Headers: TypeAlias = "list[tuple[str, bytes]]"


@dataclass(slots=True)
class Parcel:
    """What is written to Kafka."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes of a batch that holds this alone, uncompressed."""
        return int(BatchBuilder.estimate_size_in_bytes(self.key, self.value, self.headers)) + RECORD_OVERHEAD


def encode_headers(message: Message, control: Mapping[str, str] | None = None) -> Headers:
    """The headers of a message of ours. The first `content-type` is the message's own, whatever headers it has."""
    at_once = usual(message)
    if at_once is None:
        headers = _encode_each(message)
    else:
        time, key = at_once
        before, between = _unchanging(message.content_type, message.type or message.topic, message.source)
        headers = [*before, (_ID, message.id.encode()), *between, (_TIME, utc_text(time).encode())]
        if key is not None:
            headers.append((_KEY, key.encode()))
        if message.expires_at is not None:
            headers.append((_EXPIRES, message.expires_at.isoformat().encode()))
        if message.correlation_id is not None:
            headers.append((_CORRELATION, message.correlation_id.encode()))
        if message.causation_id is not None:
            headers.append((_CAUSATION, message.causation_id.encode()))
    if control:
        headers += [(name, value.encode()) for name, value in control.items()]
    return headers


def _encode_each(message: Message) -> Headers:
    headers: Headers = []
    if message.content_type is not None or CONTENT_TYPE in message.headers:
        headers.append((CONTENT_TYPE, (message.content_type or "").encode()))
    headers += [(name, value.encode()) for name, value in encode(message, prefix=PREFIX).items()]
    return headers


@lru_cache(maxsize=256)
def _unchanging(content_type: str | None, kind: str, source: str | None) -> tuple[Headers, Headers]:
    """What many messages have alike: the headers before the id, and those between it and the time."""
    before = [] if content_type is None else [(CONTENT_TYPE, content_type.encode())]
    before += [
        (PREFIX + "specversion", SPEC_VERSION.encode()),
        (PREFIX + "messagingformat", FORMAT_VERSION.encode()),
    ]
    between = [(PREFIX + "type", kind.encode())]
    if source is not None:
        between.append((PREFIX + "source", source.encode()))
    return before, between


def encode_key(message: Message) -> bytes | None:
    """The key as Kafka has it: another program's partitioner must find the same bytes."""
    return message.key.encode() if isinstance(message.key, str) else message.key


def parcel(
    message: Message,
    topic: str,
    partition: int,
    *,
    reply_to: str | None = None,
    control: Mapping[str, str] | None = None,
) -> Parcel:
    """A message on its way to a partition."""
    if reply_to is not None:
        control = {**(control or {}), REPLY_TO: reply_to}
    return Parcel(topic, partition, encode_key(message), message.body, encode_headers(message, control))


def copy(
    record: Any, delivery: RawDelivery, topic: str, partition: int, control: Mapping[str, str]
) -> Parcel:
    """A copy of a received record with other control headers. It keeps the id and time that it was given here."""
    message = delivery.message
    given = {PREFIX + "id": message.id}
    if message.time is not None:
        given[PREFIX + "time"] = message.time.isoformat()
    headers: Headers = [
        (name, value if value is not None else b"")
        for name, value in record.headers
        if not name.startswith(CONTROL)
    ]
    present = {name for name, _ in headers}
    headers += [(name, value.encode()) for name, value in given.items() if name not in present]
    known = {ORIGIN: delivery.position, **control}
    if delivery.reply_to is not None:
        known[REPLY_TO] = delivery.reply_to
    headers += [(name, value.encode()) for name, value in known.items()]
    return Parcel(topic, partition, record.key, record.value or b"", headers)


@dataclass(slots=True)
class Received:
    """A record that was read: the message and what stands beside it."""

    message: Message
    reply_to: str | None
    control: dict[str, str]

    @property
    def attempt(self) -> int:
        return recorded_attempt(self.control)

    @property
    def failure(self) -> str | None:
        return self.control.get(FAILURE)

    @property
    def origin(self) -> str | None:
        """The position of the original, of a copy."""
        return self.control.get(ORIGIN)

    @property
    def not_before(self) -> float:
        """When a delayed copy is due by its writer's clock, seconds since the epoch; 0 for at once."""
        return self._seconds(NOT_BEFORE)

    @property
    def wait(self) -> float | None:
        """What was left of its delay when it was written, in seconds; None of copies of earlier versions."""
        return self._seconds(WAIT) if WAIT in self.control else None

    def _seconds(self, name: str) -> float:
        seconds = recorded_seconds(self.control.get(name))
        return seconds if 0 <= seconds < 1e11 else 0.0


def read(record: Any, *, topic: str, partition: int, ours: bool) -> Received:
    """The message of a record. Never raises, whoever wrote it. `ours`: it is a copy that we wrote."""
    values = dict(record.headers)
    if not ours and len(values) == len(record.headers) and (record.key is None or _KEY in values):
        kind, address = values.get(CONTENT_TYPE), values.get(REPLY_TO)
        own = _PLAIN.decode(
            values,
            topic=topic,
            body=record.value or b"",
            content_type=None if kind is None else kind.decode("utf-8", "replace") or None,
        )
        if own is not None:
            return Received(own, None if address is None else address.decode("utf-8", "replace"), {})
    headers: dict[str, str] = {}
    control: dict[str, str] = {}
    content_type: str | None = None
    typed = False
    for name, raw in record.headers:
        value = b"" if raw is None else raw
        text = value.decode("utf-8", "replace")
        if name == CONTENT_TYPE and not typed:
            content_type, typed = text or None, True
        elif name.startswith(CONTROL):
            control[name] = text
        else:
            headers[name] = text
    message = decode(
        headers,
        prefix=PREFIX,
        topic=topic,
        body=record.value or b"",
        position=(control.get(ORIGIN) if ours else None) or f"{partition}/{record.offset}",
        content_type=content_type,
        key=record.key,
        time=None if PREFIX + "time" in headers else _time(record.timestamp),
    )
    return Received(message, control.get(REPLY_TO), control if ours else {})


def attempts(attempt: int, failure: str | None) -> dict[str, str]:
    """The control headers of a copy with recorded failures."""
    control = {ATTEMPT: str(attempt)}
    if failure is not None:
        control[FAILURE] = failure
    return control


def _time(milliseconds: int | None) -> datetime | None:
    if milliseconds is None or milliseconds < 0:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
