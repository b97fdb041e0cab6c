"""Messages to and from SQS and SNS: a body of text, and one attribute of ASCII JSON with everything else.

More than ten attributes would make SNS discard a raw delivery, so all headers share one. Both services take XML 1.0
text only and SNS may lose other text in silence: such a body travels as base64 and says so. Everything is checked
here, before it is sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from json.encoder import encode_basestring_ascii as _quoted
from string import ascii_letters, digits, punctuation
from typing import TYPE_CHECKING, Any, cast

from messaging.adapter import SUSPECT_AFTER, Lease, RawDelivery
from messaging.delay import CLOCKS
from messaging.envelope import (
    ATTEMPT,
    FAILURE,
    FORMAT_VERSION,
    NOT_BEFORE,
    REPLY_TO,
    SPEC_VERSION,
    decode,
    encode,
    recorded_attempt,
    recorded_seconds,
    text,
    usual,
    utc_text,
)
from messaging.partition import partition_of
from messaging_sqs.settings import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from messaging.adapter import GroupSpec
    from messaging.message import Key, Message

PREFIX = "ce_"
ATTRIBUTE = "messaging"
CONTENT_TYPE = "messaging-content-type"
ENCODING = "messaging-encoding"
ORIGIN = "messaging-origin"
"""Of a dead letter: the message of the group's queue that died. Two of one origin are one, stored twice by a crash."""
DELAY = "messaging-delay"
"""Of a copy: not before so many seconds after the service got it. A time of day would be that of the writer's clock."""
RETURNS = "messaging-returns"
"""Of a copy that was made instead of a release: how often the message had come back, as far as it counts (3).

More than SUSPECT_AFTER would not change what is thought of it, and was not written by us.
"""
BASE64 = "base64"
DEFLATE = "deflate"
"""Compressed, then base64: of a copy that does not fit otherwise."""
EMPTY = "empty"
NOTHING = "-"
"""What stands for a body without a byte, which the services refuse."""
LARGEST = MIB
"""Amazon SQS quotas, "Message size"."""
ROOM = KIB
"""What the control headers of a copy may add to a message."""
LONGEST_DELAY = 365 * 86_400.0
"""Of a publish or a retry, seconds; several steps make one."""
LONGEST_WAIT = LONGEST_DELAY + 86_400.0
"""A time before which nothing may run that is further away than this was not written by us."""
FENCE_STEP = 10_000
"""More than the times that the service hands over one message."""

SYSTEM_ATTRIBUTES = (
    "ApproximateReceiveCount",
    "ApproximateFirstReceiveTimestamp",
    "SentTimestamp",
    "MessageGroupId",
    "SequenceNumber",
)

_NATIVE_CONTENT_TYPES = ("content-type", "contenttype", "content_type")
_SIMPLE = bytes((*b"\t\n", *range(0x20, 0x7F)))
"""Of ASCII, what XML keeps as it is: nearly all there is in most bodies, and told apart in one step."""
_TEXT = re.compile("[\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_OVERHEAD = len(ATTRIBUTE) + len("String")
_GROUP_ID = frozenset(ascii_letters + digits + punctuation)
_HASHED = "sha256:"
_unique = secrets.token_hex(8)
_numbers = count(1)


def _renew() -> None:
    """A forked process counts on from here as its parent does: SQS would drop its messages as duplicates."""
    global _unique  # noqa: PLW0603  one for each process, drawn anew in a fork
    _unique = secrets.token_hex(8)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@dataclass(frozen=True, slots=True)
class Entry:
    """A message as it travels; `size` is what the services count, in bytes."""

    body: str
    attribute: str
    size: int

    def to_queue(self, **more: Any) -> dict[str, Any]:
        return {"MessageBody": self.body, "MessageAttributes": self._attributes(), **more}

    def to_topic(self, **more: Any) -> dict[str, Any]:
        return {"Message": self.body, "MessageAttributes": self._attributes(), **more}

    def _attributes(self) -> dict[str, Any]:
        return {ATTRIBUTE: {"DataType": "String", "StringValue": self.attribute}}


def pack(
    message: Message,
    control: Mapping[str, str] | None = None,
    *,
    reply_to: str | None = None,
    compressed: bool = False,
) -> Entry:
    """The message with these control headers."""
    more: dict[str, str] = {}
    if message.content_type is not None:
        more[CONTENT_TYPE] = message.content_type
    if reply_to is not None:
        more[REPLY_TO] = reply_to
    if control:
        more.update(control)
    body, length = (None, 0) if compressed else _as_text(message.body)
    if not message.body:
        body, length = NOTHING, len(NOTHING)
        more[ENCODING] = EMPTY
    elif body is None:
        body = b64encode(zlib.compress(message.body) if compressed else message.body).decode()
        length = len(body)
        more[ENCODING] = DEFLATE if compressed else BASE64
    attribute = _attribute(message, more)
    return Entry(body, attribute, length + _OVERHEAD + len(attribute))


def _as_text(body: bytes) -> tuple[str | None, int]:
    """The body as text that arrives as it was sent, if it is such; a carriage return is lost by XML."""
    if body.isascii() and not body.translate(None, _SIMPLE):
        return body.decode(), len(body)
    try:
        written = body.decode()
    except UnicodeDecodeError:
        return None, 0
    if not written or not (written.isprintable() or _TEXT.fullmatch(written)):
        return None, 0
    return written, len(body)


def _attribute(message: Message, more: Mapping[str, str]) -> str:
    """The JSON of the message's headers and these; most have the usual attributes, written here at once."""
    at_once = usual(message)
    rare = (message.expires_at, message.correlation_id, message.causation_id)
    if at_once is None or rare != (None, None, None):
        headers = encode(message, prefix=PREFIX)
        if message.type is None:
            del headers[PREFIX + "type"]
        return f"{{{_fields({**headers, **more})}}}"
    time, key = at_once
    kind = None if message.type is None else message.type or message.topic
    written = f'{_BEFORE_ID}{_quoted(message.id)}{_after_id(kind, message.source)}{utc_text(time)}"'
    if key is not None:
        written = f"{written}{_BEFORE_KEY}{_quoted(key)}"
    return f"{written},{_fields(more)}}}" if more else f"{written}}}"


def _fields(headers: Mapping[str, str]) -> str:
    return ",".join([f"{_quoted(name)}:{_quoted(value)}" for name, value in headers.items()])


_BEFORE_ID = (
    f'{{"{PREFIX}specversion":"{SPEC_VERSION}","{PREFIX}messagingformat":"{FORMAT_VERSION}","{PREFIX}id":'
)
_BEFORE_KEY = f',"{PREFIX}partitionkey":'


@lru_cache(maxsize=256)
def _after_id(kind: str | None, source: str | None) -> str:
    """What a program writes alike into all messages of a topic."""
    kept = {f"{PREFIX}type": kind, f"{PREFIX}source": source}
    fields = _fields({name: value for name, value in kept.items() if value is not None})
    return f',{fields},"{PREFIX}time":"' if fields else f',"{PREFIX}time":"'


def unique() -> str:
    """A deduplication id, or a message group, that nothing else has."""
    return f"{_unique}-{next(_numbers)}"


def message_group(key: Key | None) -> str:
    """The message group of a key: letters, digits and punctuation, at most 128, different for different keys."""
    if key is None:
        return unique()
    if (
        isinstance(key, str)
        and 0 < len(key) <= 128
        and _GROUP_ID.issuperset(key)
        and not key.startswith(_HASHED)
    ):
        return key
    return _HASHED + hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


@dataclass(slots=True)
class Token:
    """What belongs to a received message: where it is, and what was already done about it."""

    message_id: str
    handle: str
    group_id: str | None
    count: int
    due: float
    """Not before this time of the service's clock; 0 for most."""
    received: float
    """When it came, in monotonic seconds: SQS lends it for 12 hours from then."""
    origin: str
    """The message that it is a dead letter of; else itself."""
    uncounted: int = 0
    """How much of `count` are clean releases that were recorded."""
    too_large: bool = False
    """The service refused a copy of it for its size."""
    doubtful: bool = False
    """A copy of it may be stored, as its answer was lost: another would be one message more."""
    copied: bool = False
    """Its copy is stored: only its removal is left."""
    done: bool = False


def unpack(raw: dict[str, Any], group: GroupSpec, lease: Lease, now: float = 0.0) -> RawDelivery:
    """What a queue handed over. Never raises, whoever wrote it. `now`: the service's time, or nothing is due later."""
    system: dict[str, str] = raw.get("Attributes") or {}
    headers, content_type, ours = _headers(raw.get("MessageAttributes") or {})
    received = _number(system.get("ApproximateReceiveCount"), 1)
    group_id = system.get("MessageGroupId")
    position = str(raw["MessageId"])
    message = decode(
        headers,
        prefix=PREFIX,
        topic=group.topic.name,
        body=_body(str(raw.get("Body", "")), headers),
        position=position,
        content_type=content_type,
        key=group_id if group.ordered and not ours else None,
    )
    attempt = recorded_attempt(headers)
    failure = headers.get(FAILURE)
    reply_to = headers.get(REPLY_TO)
    sequence = _number(system.get("SequenceNumber") or system.get("SentTimestamp"), 0)
    return RawDelivery(
        message=message,
        partition=0 if message.key is None else partition_of(message.key, group.topic.partitions),
        position=position,
        attempt=attempt,
        deliveries=attempt - 1 + received,
        returns=min(_number(headers.get(RETURNS), 0), SUSPECT_AFTER) + received - 1,
        failure=failure if isinstance(failure, str) else None,
        reply_to=reply_to if isinstance(reply_to, str) else None,
        fence=sequence * FENCE_STEP + received,
        lease=lease,
        native=raw,
        token=Token(
            message_id=position,
            handle=raw["ReceiptHandle"],
            group_id=group_id,
            count=received,
            due=0.0 if group.ordered else _due(headers, message.not_before, raw, now),
            received=time.monotonic(),
            origin=text(headers.get(ORIGIN)) or position,
        ),
    )


def _headers(attributes: dict[str, Any]) -> tuple[dict[str, Any], str | None, bool]:
    """All headers, the content type, and whether our attribute was there."""
    headers: dict[str, Any] = {}
    content_type: str | None = None
    for name, value in attributes.items():
        if name == ATTRIBUTE:
            continue
        shown = value.get("StringValue", value.get("BinaryValue"))
        if name.lower() in _NATIVE_CONTENT_TYPES:
            content_type = text(shown)
        elif not name.startswith("messaging-"):
            headers[name] = shown
    ours = attributes.get(ATTRIBUTE)
    if ours is None:
        return headers, content_type, False
    written = text(ours.get("StringValue", ours.get("BinaryValue")))
    try:
        wrapped: object = json.loads(written)
    except (ValueError, RecursionError):
        wrapped = None
    if not isinstance(wrapped, dict):
        headers[ATTRIBUTE] = written
        return headers, content_type, False
    headers.update(cast("dict[str, Any]", wrapped))
    told = headers.get(CONTENT_TYPE)
    return headers, text(told) if told is not None else content_type, True


def _body(written: str, headers: Mapping[str, Any]) -> bytes:
    encoding = headers.get(ENCODING)
    if encoding == EMPTY:
        return b""
    if encoding in (BASE64, DEFLATE):
        try:
            body = b64decode(written, validate=True)
            return body if encoding == BASE64 else _inflated(body)
        except (ValueError, zlib.error):
            pass  # written by another program: what is there is the body
    return written.encode("utf-8", "replace")


def _inflated(body: bytes) -> bytes:
    """Bounded by what a message can have been: a forged one must not fill the memory. Raises zlib.error."""
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(body, LARGEST)
    if not inflater.eof:
        raise zlib.error("cut, or larger than a message can be")
    return inflated


def milliseconds(raw: dict[str, Any], attribute: str) -> float:
    """A time of the service's clock, in seconds since the epoch; 0 where it tells none."""
    system: dict[str, str] = raw.get("Attributes") or {}
    return _number(system.get(attribute), 0) / 1000


def _due(headers: Mapping[str, Any], not_before: datetime | None, raw: dict[str, Any], now: float) -> float:
    """When it may run: what our last copy says, else the publish delay; 0 for what nobody of us can have written."""
    if DELAY in headers:
        delay = recorded_seconds(headers[DELAY])
        sent = min(milliseconds(raw, "SentTimestamp"), now)
        return sent + delay if 0 < delay <= LONGEST_DELAY else 0.0
    if NOT_BEFORE in headers:
        due = recorded_seconds(headers[NOT_BEFORE])
        return due if due - now <= LONGEST_WAIT else 0.0
    due = 0.0 if not_before is None else not_before.timestamp()
    return due if due - now <= LONGEST_DELAY + CLOCKS else 0.0


def _number(value: object, otherwise: int) -> int:
    try:
        return max(int(cast("Any", value)), 0)
    except (TypeError, ValueError, OverflowError):  # JSON of others may hold Infinity
        return otherwise


def control_headers(delivery: RawDelivery) -> dict[str, str]:
    """The control headers that keep what is recorded of a delivery."""
    control: dict[str, str] = {}
    if delivery.attempt > 1:
        control[ATTEMPT] = str(delivery.attempt)
    if delivery.failure is not None:
        control[FAILURE] = delivery.failure
    if delivery.reply_to is not None:
        control[REPLY_TO] = delivery.reply_to
    return control
