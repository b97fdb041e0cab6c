"""From a payload to a message ready to send: encoding, key, partition, headers, limits.

Runs in the caller's task, so that one bad value fails one call, before anything is sent (semantics 20, 21).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from messaging.adapter import Outgoing
from messaging.binding import current_delivery
from messaging.envelope import check_headers
from messaging.errors import InvalidMessage, MessageTooLarge
from messaging.ids import new_id
from messaging.message import Message, seconds
from messaging.partition import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from messaging.adapter import TopicSpec
    from messaging.clock import Clock
    from messaging.message import Duration, Key, Topic

_LONGEST_CONTENT_TYPE = 255
INHERITED = ("traceparent", "tracestate")
"""Headers that a message published by a handler takes from the message being handled (W3C Trace Context)."""


@dataclass(slots=True, kw_only=True)
class Options:
    """What the caller of `publish` may say about one message."""

    key: Key | None = None
    headers: Mapping[str, str] | None = None
    id: str | None = None
    expires: Duration | datetime | None = None
    mandatory: bool = False
    reply_to: str | None = None
    correlation_id: str | None = None


@dataclass(slots=True)
class Preparation:
    """Makes messages for one bus."""

    clock: Clock
    source: str
    _turns: dict[str, Iterator[int]] = field(default_factory=dict[str, "Iterator[int]"])

    def message(self, topic: Topic[Any], payload: Any, options: Options) -> Message:
        """Encode. Raises InvalidMessage for a payload, key or header that cannot be carried."""
        body, content_type = topic.codec.encode(payload)
        key = (
            options.key if options.key is not None else topic.key(payload) if topic.key is not None else None
        )
        headers = check_headers(options.headers) if options.headers else {}
        correlation_id, causation_id = options.correlation_id, None
        parent = current_delivery.get()
        if parent is not None:
            causation_id = parent.message.id
            correlation_id = correlation_id or parent.message.correlation_id or causation_id
            for name in INHERITED:
                if name in parent.message.headers:
                    headers.setdefault(name, parent.message.headers[name])
        now = datetime.fromtimestamp(self.clock.time(), UTC)
        return Message(
            id=_checked_id(options.id) if options.id is not None else new_id(),
            topic=topic.name,
            body=body,
            key=_checked_key(topic.name, key),
            headers=headers,
            content_type=content_type,
            type=topic.name,
            source=self.source,
            time=now,
            expires_at=_expiry(options.expires, now),
            correlation_id=correlation_id,
            causation_id=causation_id,
        )

    def outgoing(self, spec: TopicSpec, message: Message, options: Options, most: int) -> Outgoing:
        """Choose the partition and check the bounds: `most` bytes in all."""
        if message.key is not None:
            partition = partition_of(message.key, spec.partitions)
        elif spec.ordered:
            raise InvalidMessage(
                f"Message {message.id} for {spec.name} has no key, and the topic is ordered by key: "
                "give Topic(key=...) or publish(key=...)"
            )
        else:
            turn = self._turns.get(spec.name)
            if turn is None:
                turn = self._turns[spec.name] = count()
            partition = next(turn) % spec.partitions
        _check_size(message, most)
        return Outgoing(spec, message, partition, options.mandatory, options.reply_to)


def corrected(former: Message, message: Message, most: int) -> Message:
    """The message as a program has changed it, with its key in its one form.

    Raises InvalidMessage for a change that no broker carries, MessageTooLarge beyond `most` bytes. What was not
    changed is let through: another program may have sent it.
    """
    if not isinstance(message.body, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(
            f"The body of message {message.id} of {message.topic} is a {type(message.body).__name__}; it must be bytes"
        )
    kind = message.content_type
    if kind != former.content_type and not _is_content_type(kind):
        raise InvalidMessage(f"{kind!r} is no content type for message {message.id} of {message.topic}")
    if message.headers is not former.headers:
        check_headers(message.headers)
    key = message.key if message.key == former.key else _checked_key(message.topic, message.key)
    message = replace(message, key=key)
    _check_size(message, most)
    return message


def _is_content_type(value: object) -> bool:
    return value is None or (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_CONTENT_TYPE
        and value.isascii()
        and value.isprintable()
    )


def _check_size(message: Message, most: int) -> None:
    size = _size(message)
    if size > most:
        raise MessageTooLarge(
            f"Message {message.id} for {message.topic} has {size} bytes with its headers; the broker takes {most}. "
            "Store the content elsewhere and publish a reference to it"
        )


def _size(message: Message) -> int:
    size = len(message.body) + 512  # the attributes are short and of bounded length
    if message.key:
        size += _bytes(message.key)
    if message.headers:
        size += sum(_bytes(name) + _bytes(value) for name, value in message.headers.items())
    return size


def _bytes(text: Key) -> int:
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode())


def _checked_id(value: str) -> str:
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(f"The message id {value!r} is a {type(value).__name__}; it must be a str")
    if not value or len(value) > 255 or not value.isprintable():
        raise InvalidMessage(f"{value!r} is no message id: 1 to 255 printable characters")
    return value


def _checked_key(topic: str, key: Key | None) -> Key | None:
    """The key as every broker gives it back: bytes that are UTF-8 are a str."""
    if key is None:
        return None
    if not isinstance(key, (str, bytes)):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(
            f"The key {key!r} for {topic} is a {type(key).__name__}; it must be a str or bytes"
        )
    try:
        if isinstance(key, str):
            key.encode()
            return key
        return key.decode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"The key {key!r} for {topic} cannot be encoded as UTF-8") from None
    except UnicodeDecodeError:
        return key


def _expiry(expires: Duration | datetime | None, now: datetime) -> datetime | None:
    """When it expires; a datetime without a zone is UTC, as on the wire."""
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return expires if expires.tzinfo is not None else expires.replace(tzinfo=UTC)
    try:
        return now + timedelta(seconds=seconds(expires))
    except (OverflowError, ValueError, TypeError):
        raise InvalidMessage(f"expires={expires!r} is no time that can be reached") from None
