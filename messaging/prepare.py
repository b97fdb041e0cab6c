"""From a payload to a message ready to send: encoding, key, partition, headers, limits.

Runs in the caller's task, so that one bad value fails one call, before anything is sent (semantics 20, 21).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from math import inf, nan
from typing import TYPE_CHECKING, Any

from messaging.adapter import Outgoing
from messaging.current import current_delivery
from messaging.delay import check_delay, due_after
from messaging.envelope import check_headers, check_text
from messaging.errors import InvalidMessage, MessageTooLarge
from messaging.ids import new_id
from messaging.message import Message, make_message, seconds_if_any
from messaging.partition import partitions_of_keys
from messaging.texts import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from messaging.adapter import Capabilities, TopicSpec
    from messaging.clock import Clock
    from messaging.codec import Codec
    from messaging.message import Duration, Key, Topic

SAME = 0.0005
"""Seconds in which messages may share one `time`: a tenth of what preparing and writing one costs is its own."""
_SINGLE = (str, bytes, bytearray, Mapping)
"""What can be iterated, and is one payload."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_LONGEST_CONTENT_TYPE = 255
_ATTRIBUTES = 512
"""Bytes: the attributes are short and of bounded length."""
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""
_TEXTS = ("type", "source", "correlation_id", "causation_id")
INHERITED = ("traceparent", "tracestate")
"""Headers that a message published by a handler takes from the message being handled (W3C Trace Context)."""


@dataclass(slots=True)
class Options:
    """What the caller of `publish` may say about one message. Nobody changes it: many calls share one."""

    key: Key | None = None
    headers: Mapping[str, str] | None = None
    id: str | None = None
    delay: Duration | None = None
    expires: Duration | datetime | None = None
    mandatory: bool = False
    reply_to: str | None = None
    correlation_id: str | None = None


NO_OPTIONS = Options()
"""What most calls say."""


@dataclass(slots=True)
class Preparation:
    """Makes messages for one bus."""

    clock: Clock
    source: str
    once: bool = False
    """Whether what is published may be sent again (`Outgoing.once`)."""
    _at: float = inf
    """`_now` as a number: seconds since the epoch."""
    _now: datetime = _NEVER
    """The latest time that was given to a message."""
    _turns: dict[str, Iterator[int]] = field(default_factory=dict[str, "Iterator[int]"])
    """By topic: what numbers the messages without a key, which take the partitions in turn."""

    def messages(self, topic: Topic[Any], payloads: Iterable[Any], options: Options) -> list[Message]:
        """Encode these. Raises InvalidMessage for a payload, key or header that cannot be carried."""
        headers = check_headers(options.headers) if options.headers else {}
        correlation_id, causation_id = options.correlation_id, None
        parent = current_delivery.get()
        if parent is not None:
            causation_id = parent.message.id
            correlation_id = correlation_id or parent.message.correlation_id or causation_id
            for name in INHERITED:
                if name in parent.message.headers:
                    headers.setdefault(name, parent.message.headers[name])
        at = self.clock.time()
        expires_at = not_before = None
        if options.expires is not None or options.delay is not None:
            now = datetime.fromtimestamp(at, UTC)  # exactly
            expires_at = None if options.expires is None else _expiry(options.expires, now)
            not_before = None if options.delay is None else due_after(options.delay, now)
        elif 0.0 <= at - self._at < SAME:
            now = self._now
        else:
            now = self._now = datetime.fromtimestamp(at, UTC)
            self._at = at
        given_id = None if options.id is None else _checked_id(options.id)
        given_key, key_of = options.key, topic.key
        name, source = topic.name, self.source
        messages: list[Message] = []
        for payload, (body, content_type) in _encoded(topic.codec, payloads):
            key = given_key if given_key is not None or key_of is None else key_of(payload)
            if key is not None and not (type(key) is str and key.isascii()):
                key = _checked_key(name, key)
            messages.append(
                make_message(
                    given_id or new_id(),
                    name,
                    body,
                    key,
                    headers.copy() if headers else {},
                    content_type,
                    name,
                    source,
                    now,
                    expires_at,
                    correlation_id,
                    causation_id,
                    not_before,
                )
            )
        return messages

    def outgoing(
        self, spec: TopicSpec, messages: Iterable[Message], options: Options, capabilities: Capabilities
    ) -> list[Outgoing]:
        """Choose the partition of each and check what the broker can do: size and delay."""
        most = capabilities.max_message_bytes
        partition_of = partitions_of_keys(spec.partitions)
        mandatory, reply_to = options.mandatory, options.reply_to
        marked = self.once and reply_to is None
        prepared: list[Outgoing] = []
        for message in messages:
            key = message.key
            partition = self._turn(spec, message) if key is None else partition_of[key]
            if (
                message.headers
                or len(message.body) + _ATTRIBUTES + _LONGEST_CHARACTER * len(key or "") > most
            ):
                _check_size(message, most)
            if message.not_before is not None:
                check_delay(message, spec, capabilities, self.clock.time())
            prepared.append(
                Outgoing(spec, message, partition, mandatory, reply_to, new_id() if marked else None)
            )
        return prepared

    def _turn(self, spec: TopicSpec, message: Message) -> int:
        """The next partition for a message without a key."""
        if spec.ordered:
            raise InvalidMessage(
                f"Message {message.id} for {spec.name} has no key, and the topic is ordered by key: "
                "give Topic(key=...) or publish(key=...)"
            )
        turn = self._turns.get(spec.name)
        if turn is None:
            turn = self._turns[spec.name] = count()
        return next(turn) % spec.partitions


def _encoded(codec: Codec[Any], payloads: Iterable[Any]) -> Iterable[tuple[Any, tuple[bytes, str]]]:
    """Each with its body and content type."""
    if isinstance(payloads, (list, tuple)):
        if len(payloads) == 1:
            (payload,) = payloads
            return ((payload, codec.encode(payload)),)
        return zip(payloads, codec.encode_all(payloads), strict=True)
    kind: type = type(payloads)
    if issubclass(kind, _SINGLE) or not issubclass(kind, Iterable):
        raise InvalidMessage(
            f"publish_many() takes several payloads, in a list for instance, not one {kind.__name__}"
        )
    # Each at its turn: a generator may change, and give again, what it gave before.
    return ((payload, codec.encode(payload)) for payload in payloads)


def corrected(former: Message, message: Message, most: int) -> Message:
    """The message as a program has changed it, with its texts and its key in their one form.

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
    texts: dict[str, Any] = {"content_type": None if kind is None else plain(kind)}
    for name in _TEXTS:
        texts[name] = value = getattr(message, name)
        if value is not None and value != getattr(former, name):
            check_text(value, f"{name} of message {message.id} of {message.topic}")
            texts[name] = plain(value)
    # What is equal may still be of another type.
    headers = former.headers if message.headers == former.headers else _checked_headers(message)
    key = former.key if message.key == former.key else _checked_key(message.topic, message.key)
    message = replace(
        message,
        **texts,
        key=key,
        headers=headers,
        time=_checked_time(message, "time"),
        expires_at=_checked_time(message, "expires_at"),
        not_before=_checked_time(message, "not_before"),
    )
    _check_size(message, most)
    return message


def passed_on(former: Mapping[str, Message], topic: str, message: Message, most: int) -> Message:
    """What publish middleware passes on; `former` are the messages that it was given, by id. Raises as `corrected`."""
    if not isinstance(message, Message):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(
            f"publish middleware passed on a {type(message).__name__} for topic {topic}; it takes a Message"
        )
    if message.topic != topic:
        raise InvalidMessage(
            f"publish middleware changed the topic of message {message.id} from {topic} to {message.topic}: "
            "publish to the other topic instead"
        )
    given = former.get(message.id)
    if message == given:
        return message
    if given is None:
        message = replace(message, id=_checked_id(message.id))
        given = Message(id=message.id, topic=topic, body=b"")
    return corrected(given, message, most)


def _checked_time(message: Message, name: str) -> datetime | None:
    """The time; without a zone it is UTC, as on the wire."""
    value: object = getattr(message, name)
    if value is None or isinstance(value, datetime):
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)
    raise InvalidMessage(
        f"{name} of message {message.id} of {message.topic} is a {type(value).__name__}; it must be a datetime or None"
    )


def _checked_headers(message: Message) -> Mapping[str, str]:
    if isinstance(message.headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        return check_headers(message.headers)
    raise InvalidMessage(
        f"headers of message {message.id} of {message.topic} is a {type(message.headers).__name__}; "
        "it must be a mapping"
    )


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
    size = len(message.body) + _ATTRIBUTES
    if key := message.key:
        size += _bytes(key)
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
    return plain(value)


def _checked_key(topic: str, key: Key | None) -> Key | None:
    """The key as every broker gives it back: bytes that are UTF-8 are a str, a member of an Enum is its text."""
    if key is None:
        return None
    if not isinstance(key, (str, bytes)):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(
            f"The key {key!r} for {topic} is a {type(key).__name__}; it must be a str or bytes"
        )
    try:
        if isinstance(key, str):
            key.encode()
            return plain(key)
        key = bytes(key)
        return key.decode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"The key {key!r} for {topic} cannot be encoded as UTF-8") from None
    except UnicodeDecodeError:
        return key


def _expiry(expires: Duration | datetime, now: datetime) -> datetime:
    """When it expires. A time of day without a zone may be hours ago: what nobody handles any more is dropped."""
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise InvalidMessage(
                f"expires={expires!r} has no time zone: give it one, as datetime.now(UTC) has, or a number of seconds"
            )
        return expires
    after = seconds_if_any(expires)
    try:
        return now + timedelta(seconds=nan if after is None else after)
    except (OverflowError, ValueError):
        raise InvalidMessage(
            f"expires={expires!r} is no time that can be reached: it takes seconds, a timedelta or a datetime"
        ) from None


def checked_timeout(given: Duration) -> float:
    """The seconds, if they can be waited. Raises InvalidMessage."""
    within = seconds_if_any(given)
    if within is None or not 0 < within < inf:
        raise InvalidMessage(
            f"timeout={given!r}: it takes a number of seconds greater than 0, or a timedelta"
        )
    return within
