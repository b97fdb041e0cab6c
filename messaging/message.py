"""The vocabulary: messages, deliveries, topics, endpoints and the four outcomes of a handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, Generic, TypeAlias

from typing_extensions import TypeForm, TypeVar

from messaging.codec import Codec
from messaging.errors import ConfigurationError
from messaging.names import check_topic
from messaging.texts import reason_of

T = TypeVar("T", default=Any)
Q = TypeVar("Q", default=Any)
R = TypeVar("R", default=Any)

Key: TypeAlias = str | bytes
Duration: TypeAlias = float | timedelta

DEFAULT_PARTITIONS = 8

_TEXTS = (str, bytes, bytearray)
"""`float` reads numbers in them: an outcome may have one, for a handler must not fail by it; a call is told."""


def seconds(duration: Duration) -> float:
    """A duration in seconds, from a number of seconds or a timedelta."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def seconds_if_any(given: Duration) -> float | None:
    """The same for what untyped code may give: None for what is no duration, as no text is, or beyond every number."""
    try:
        return None if issubclass(type(given), _TEXTS) else seconds(given)
    except (TypeError, ValueError, OverflowError):
        return None


def checked_seconds(given: Duration, argument: str) -> float:
    """The same for an argument of the program's set-up. Raises ConfigurationError naming it."""
    told = seconds_if_any(given)
    if told is None:
        raise ConfigurationError(f"{argument} is {given!r}; it takes a number of seconds, or a timedelta")
    return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What travels: the body's bytes and the attributes that every broker carries unchanged.

    `id` never changes, not on retries, dead letters or redrives. A key whose bytes are UTF-8 is a `str`. `time` is when
    it was published, to half a millisecond.
    """

    id: str
    topic: str
    body: bytes
    key: Key | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content_type: str | None = None
    type: str | None = None
    source: str | None = None
    time: datetime | None = None
    expires_at: datetime | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    not_before: datetime | None = None
    """No group handles it earlier: the publish delay. Without meaning on an ordered topic (5)."""


class _Draft:
    """A Message in the making: its attributes are set directly, then it becomes one.

    A frozen dataclass sets each attribute by a call, which costs five times as much, on the path of every message. A
    function that fills it takes a fifth less than its own `__init__` would.
    """

    __slots__ = tuple(Message.__slots__)


def make_message(
    id: str,
    topic: str,
    body: bytes,
    key: Key | None,
    headers: Mapping[str, str],
    content_type: str | None,
    type: str | None,
    source: str | None,
    time: datetime | None,
    expires_at: datetime | None,
    correlation_id: str | None,
    causation_id: str | None,
    not_before: datetime | None = None,
) -> Message:
    """A Message from its attributes, by position; only the last may be left out."""
    draft: Any = _Draft()
    draft.id = id
    draft.topic = topic
    draft.body = body
    draft.key = key
    draft.headers = headers
    draft.content_type = content_type
    draft.type = type
    draft.source = source
    draft.time = time
    draft.expires_at = expires_at
    draft.correlation_id = correlation_id
    draft.causation_id = causation_id
    draft.not_before = not_before
    draft.__class__ = Message
    return draft  # type: ignore[no-any-return]  # what it is now


def _blank_message() -> Message:
    return Message(id="", topic="", body=b"", time=datetime.now(UTC))


@dataclass(slots=True)
class Delivery(Generic[T]):
    """One hand-over of a message to a handler.

    `attempt` is 1 plus the recorded failures; `deliveries` is the broker's own count, or an upper bound of it;
    `fence` grows with every change of the partition's owner, so that effects can be fenced. `headers` is this
    delivery's own copy: changing it changes no retry and no dead letter.
    """

    payload: T
    message: Message = field(default_factory=_blank_message)
    headers: dict[str, str] = field(default_factory=dict[str, str])
    key: Key | None = None
    group: str = ""
    attempt: int = 1
    deliveries: int = 1
    partition: int = 0
    position: str = ""
    fence: int = 0
    native: Any = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's confirmation of one published message.

    `position` is where the broker keeps it, as it says that itself, an entry id or an offset for instance; None where
    it says nothing.
    """

    id: str
    partition: int = 0
    position: str | None = None


class _ReceiptDraft:
    """A Receipt in the making; see `_Draft`."""

    __slots__ = tuple(Receipt.__slots__)


def make_receipt(id: str, partition: int, position: str | None) -> Receipt:
    """A Receipt from all its attributes, by position."""
    draft: Any = _ReceiptDraft()
    draft.id = id
    draft.partition = partition
    draft.position = position
    draft.__class__ = Receipt
    return draft  # type: ignore[no-any-return]  # what it is now


@dataclass(frozen=True, slots=True)
class Ack:
    """Handled. `reply` is what a responder answers."""

    reply: Any = None


@dataclass(frozen=True, slots=True)
class Release:
    """Given back unhandled, after `after` seconds: not a failure, never counted.

    Raises ValueError for what is no finite number of seconds from 0.
    """

    after: Duration | None = None

    def __post_init__(self) -> None:
        try:
            after = 0.0 if self.after is None else seconds(self.after)
        except (TypeError, ValueError, OverflowError):
            after = inf
        if not 0 <= after < inf:
            raise ValueError(f"Release(after={self.after!r}): it takes a finite number of seconds, 0 or more")


class Retry(Exception):
    """A failure: handled again after `after` (seconds, or a timedelta), or after the retry policy's delay. Returned or
    raised.

    The reason is a text; an exception given in its place is shown as `Type: message`.
    """

    reason: str = ""
    after: Duration | None = None

    def __init__(self, reason: str | BaseException = "", *, after: Duration | None = None) -> None:
        super().__init__(reason)
        self.reason = reason_of(reason)
        self.after = after


class Reject(Exception):
    """Never to be handled again: it becomes a dead letter with this reason. Returned or raised.

    The reason is a text; an exception given in its place is shown as `Type: message`.
    """

    reason: str = ""
    cause: str = "rejected"

    def __init__(self, reason: str | BaseException = "", *, cause: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason_of(reason)
        self.cause = cause


class Unbegun(Reject):
    """The end of a message that no handler got with this delivery: no attempt began, and none is counted."""


Outcome: TypeAlias = Ack | Release | Retry | Reject
OUTCOMES = (Ack, Release, Retry, Reject)
Handler: TypeAlias = Callable[[Delivery[Any]], Awaitable[Outcome]]
Middleware: TypeAlias = Callable[[Handler], Handler]


class Topic(Generic[T]):
    """A named stream of payloads of one type.

    `key` gives a payload's key; with `ordered=True` a group handles the messages of one key in publish order, one
    at a time, and publishing without a key raises. `partitions` is what the topic is created with; a topic that
    exists with another count raises at start. `retention` bounds, in seconds or as a timedelta, what is kept for a
    group that does not read. `content_type` is what is written with each payload: JSON unless given, octets for bytes.
    `native` names an existing place of the broker to publish to: it is verified, never created.

    Raises ConfigurationError for an illegal name, for a `key` that is no function, for a retention that is no duration,
    and for a union whose members cannot be told apart.
    """

    __slots__ = ("codec", "key", "name", "native", "ordered", "partitions", "retention")

    def __init__(
        self,
        name: str,
        type: TypeForm[T] = Any,
        *,
        key: Callable[[T], Key | None] | None = None,
        ordered: bool = False,
        partitions: int = DEFAULT_PARTITIONS,
        retention: Duration | None = None,
        content_type: str | None = None,
        native: str | None = None,
    ) -> None:
        self.name = check_topic(name)
        self.codec: Codec[T] = Codec(type, content_type=content_type)
        if key is not None and not callable(key):
            raise ConfigurationError(
                f"key of topic {name} is {key!r}; it takes a function from payload to key, as "
                f"`lambda order: order.customer`"
            )
        self.key = key
        self.ordered = ordered
        self.partitions = partitions
        self.retention = (
            None if retention is None else checked_seconds(retention, f"The retention of topic {self.name}")
        )
        self.native = native

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


class Endpoint(Generic[Q, R]):
    """A question that some group answers: a topic of requests, and the type of the reply.

    `key` gives a request's key; requests are answered without order. Raises as `Topic` does.
    """

    __slots__ = ("reply_codec", "topic")

    def __init__(
        self,
        name: str,
        request: TypeForm[Q],
        reply: TypeForm[R],
        *,
        key: Callable[[Q], Key | None] | None = None,
    ) -> None:
        self.topic: Topic[Q] = Topic(name, request, key=key)
        self.reply_codec: Codec[R] = Codec(reply)

    @property
    def name(self) -> str:
        return self.topic.name

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"
