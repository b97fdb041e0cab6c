"""A message's attributes to and from a broker's headers: CloudEvents 1.0 in binary mode, and plain headers.

What comes in is never trusted: `decode` takes whatever headers another program wrote, and no header from the
wire has control over us (19). Attributes of CloudEvents that we do not know stay in `Message.headers` under
their names on the wire, so that a copy of a foreign message loses nothing.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from messaging.errors import InvalidMessage
from messaging.message import Key, Message, make_message
from messaging.texts import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ATTEMPT = "messaging-attempt"
FAILURE = "messaging-failure"
REPLY_TO = "messaging-reply-to"
NOT_BEFORE = "messaging-not-before"
"""Of a copy that waits in one group's ladder; a publish delay is the attribute `notbefore`, for all groups."""
GUARD = "messaging-guard"

CONTROL = "messaging-"
RESERVED = (CONTROL, "ce_", "ce-", "cloudEvents_", "cloudEvents:")
"""No header of a user may start like one of these, in any case of letters."""

SPEC_VERSION = "1.0"
FORMAT_VERSION = "1"
"""Of the wire as a whole. A reader accepts its own and the one before."""

MAX_HEADER_NAME = 200
MAX_HEADERS = 64 * 1024
MAX_ATTEMPT = 10_000

_RESERVED_LOWER = tuple(prefix.lower() for prefix in RESERVED)
_ATTRIBUTES = frozenset(
    {
        "id",
        "source",
        "type",
        "time",
        "specversion",
        "partitionkey",
        "partitionkeybase64",
        "expirytime",
        "notbefore",
        "correlationid",
        "causationid",
        "messagingformat",
    }
)


@lru_cache(maxsize=64)
def _names(prefix: str) -> dict[str, str]:
    """The attributes by their names on the wire."""
    # The AMQP binding of CloudEvents writes `cloudEvents:`, or `cloudEvents_` where a colon is forbidden.
    prefixes = ("cloudEvents:", prefix) if prefix == "cloudEvents_" else (prefix,)
    return {written + attribute: attribute for written in prefixes for attribute in _ATTRIBUTES}


class _Written(NamedTuple):
    """The attributes' names on the wire."""

    specversion: str
    messagingformat: str
    id: str
    type: str
    source: str
    time: str
    partitionkey: str
    partitionkeybase64: str
    expirytime: str
    notbefore: str
    correlationid: str
    causationid: str


@lru_cache(maxsize=64)
def _written(prefix: str) -> _Written:
    return _Written(*(prefix + attribute for attribute in _Written._fields))


def encode(message: Message, *, prefix: str) -> dict[str, str]:
    """The headers of a message: its attributes, each with `prefix`, and its plain headers.

    Without body, content type and control headers, which the adapter adds where it needs them.
    """
    names = _written(prefix)
    headers = dict(message.headers)
    headers[names.specversion] = SPEC_VERSION
    headers[names.messagingformat] = FORMAT_VERSION
    headers[names.id] = message.id
    headers[names.type] = message.type or message.topic
    if message.source is not None:
        headers[names.source] = message.source
    if message.time is not None:
        headers[names.time] = _format_time(message.time)
    if (key := message.key) is not None:
        if isinstance(key, str) or isinstance(key := readable_key(key), str):
            headers[names.partitionkey] = key
        else:
            headers[names.partitionkeybase64] = b64encode(key).decode()
    if message.expires_at is not None:
        headers[names.expirytime] = _format_time(message.expires_at)
    if message.not_before is not None:
        headers[names.notbefore] = _format_time(message.not_before)
    if message.correlation_id is not None:
        headers[names.correlationid] = message.correlation_id
    if message.causation_id is not None:
        headers[names.causationid] = message.causation_id
    return headers


def usual(message: Message) -> tuple[datetime, str | None] | None:
    """Time and key of a message that an adapter may write without `encode`; None for any other.

    Most are such: times in UTC, no key or a text, and of the rest at most `id`, `topic`, `body`, `content_type`,
    `type`, `source`, `expires_at`, `correlation_id` and `causation_id`, which the adapter must all write.
    """
    time, key, expires = message.time, message.key, message.expires_at
    if (
        time is None
        or time.tzinfo is not UTC
        or message.headers
        or isinstance(key, bytes)
        or (expires is not None and expires.tzinfo is not UTC)
        or message.not_before is not None
    ):
        return None
    return time, key


def decode(
    headers: Mapping[Any, Any],
    *,
    prefix: str,
    topic: str,
    body: bytes,
    position: str,
    content_type: str | None = None,
    message_id: str | None = None,
    correlation_id: str | None = None,
    key: Key | None = None,
    time: datetime | None = None,
) -> Message:
    """The message that these headers describe. Never raises, whoever wrote them.

    `message_id`, `correlation_id`, `key` and `time` are the broker's native properties: they count where the
    attribute is absent or unreadable. A message without any id takes its position for one. Control headers
    and known attributes are left out of `Message.headers`; values that are no text become text.
    """
    known = _names(prefix)
    attributes: dict[str, str] = {}
    plain: dict[str, str] = {}
    for raw_name, raw in headers.items():
        value = raw if type(raw) is str and raw.isascii() else text(raw)
        attribute = known.get(raw_name)
        if attribute is None:
            name = raw_name if type(raw_name) is str and raw_name.isascii() else text(raw_name)
            attribute = known.get(name)
            if attribute is None:
                if not name.startswith(CONTROL):
                    plain[name] = value
                continue
        attributes[attribute] = value
    get = attributes.get
    written = get("time")
    expires = get("expirytime")
    not_before = get("notbefore")
    return make_message(
        get("id") or text(message_id or "") or position,
        topic,
        body,
        _decode_key(attributes, key),
        plain,
        None if content_type is None else text(content_type),
        get("type"),
        get("source"),
        time if written is None else parse_time(written) or time,
        None if expires is None else parse_time(expires),
        get("correlationid") or (None if correlation_id is None else text(correlation_id)),
        get("causationid"),
        None if not_before is None else parse_time(not_before),
    )


class Plain:
    """The short way to read a message of ours without headers of the program: from its headers as bytes.

    Most messages are such, and `decode` looks at each header twice. `names` makes a header's name on the wire of what
    the program calls it; `more` are the names of headers that may stand beside the attributes.
    """

    def __init__(self, prefix: str, names: Callable[[str], Any], more: Collection[Any]) -> None:
        written = _written(prefix)
        self.attributes: tuple[Any, ...] = tuple(
            names(name)
            for name in (
                written.id,
                written.type,
                written.source,
                written.time,
                written.partitionkey,
                written.expirytime,
                written.correlationid,
                written.causationid,
            )
        )
        beside = (written.specversion, written.messagingformat)
        self.known = frozenset((*self.attributes, *map(names, beside), *more))

    def decode(
        self, headers: Mapping[Any, bytes | None], *, topic: str, body: bytes, content_type: str | None
    ) -> Message | None:
        """As `decode` reads it; None for a message that is not such a one."""
        if not self.known.issuperset(headers):
            return None
        return self.compose(topic, body, content_type, *map(headers.get, self.attributes))

    @staticmethod
    def compose(
        topic: str,
        body: bytes,
        content_type: str | None,
        id: bytes | None,
        kind: bytes | None,
        source: bytes | None,
        time: bytes | None,
        key: bytes | None,
        expires: bytes | None,
        correlation: bytes | None,
        causation: bytes | None,
    ) -> Message | None:
        """As `decode`, of the values of `attributes`."""
        if not id or time is None:
            return None
        try:
            at = parse_time(time.decode())
            if at is None:
                return None
            return make_message(
                id.decode(),
                topic,
                body,
                None if key is None else key.decode(),
                {},
                content_type,
                None if kind is None else kind.decode(),
                None if source is None else source.decode(),
                at,
                None if expires is None else parse_time(expires.decode()),
                (correlation.decode() or None) if correlation is not None else None,
                None if causation is None else causation.decode(),
            )
        except UnicodeDecodeError:
            return None


def _decode_key(attributes: dict[str, str], native: Key | None) -> Key | None:
    key = attributes.get("partitionkey")
    if key is not None:
        return key
    encoded = attributes.get("partitionkeybase64")
    if encoded is not None:
        try:
            return readable_key(b64decode(encoded, validate=True))
        except ValueError:
            pass  # written by another program: the native key counts
    if native is None:
        return None
    return readable_key(native) if isinstance(native, bytes) else text(native)


def readable_key(key: Key) -> Key:
    """The key as a str where its bytes are UTF-8, else the bytes: one key has one form everywhere."""
    if isinstance(key, str):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def recorded_attempt(headers: Mapping[Any, Any]) -> int:
    """The attempt that the control header records, within 1 and 10 000; 1 where it is absent or no number."""
    value = headers.get(ATTEMPT)
    if value is None:
        return 1
    try:
        return min(max(int(value), 1), MAX_ATTEMPT)
    except (TypeError, ValueError, OverflowError):
        return 1


def recorded_seconds(value: object) -> float:
    """A number of seconds that a control header records; 0 for what is none, or has no end."""
    try:
        seconds = float(cast("Any", value))
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return seconds if isfinite(seconds) else 0.0


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of the headers, if every broker carries them unchanged.

    Names have 1 to 200 bytes of UTF-8 and none of the reserved prefixes; names and values are text without
    NUL and lone surrogates; all together have at most 64 KiB. Raises InvalidMessage naming the header.
    """
    if not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise InvalidMessage(f"headers is a {type(headers).__name__}; it must be a mapping of text to text")
    checked: dict[str, str] = {}
    total = 0
    for name, value in headers.items():
        name_bytes = check_text(name, f"header name {_short(name)}")
        value_bytes = check_text(value, f"value of header {_short(name)}")
        if not name:
            raise InvalidMessage("a header has an empty name: give it one, or leave the header out")
        if name_bytes > MAX_HEADER_NAME:
            raise InvalidMessage(
                f"header name {_short(name)} has {name_bytes} bytes; at most {MAX_HEADER_NAME} fit"
            )
        if name.lower().startswith(_RESERVED_LOWER):
            raise InvalidMessage(
                f"header {_short(name)} has a reserved prefix ({', '.join(RESERVED)}): choose another name"
            )
        total += name_bytes + value_bytes
        if total > MAX_HEADERS:
            raise InvalidMessage(
                f"the headers exceed {MAX_HEADERS} bytes at {_short(name)}: put large values into the payload"
            )
        checked[plain(name)] = plain(value)
    return checked


def check_text(value: object, what: str) -> int:
    """The number of UTF-8 bytes. Raises InvalidMessage, naming `what`, for what not every broker carries as a text."""
    if not isinstance(value, str):
        raise InvalidMessage(f"{what} is no str but {type(value).__name__}: convert it")
    if "\0" in value:
        raise InvalidMessage(f"{what} holds a NUL character, which not every broker carries")
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidMessage(f"{what} holds a lone surrogate, which is no text in UTF-8") from None


def _short(name: object) -> str:
    shown = repr(name)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def text(value: Any) -> str:
    """Any header value as text that UTF-8 can carry."""
    try:
        if isinstance(value, str):
            shown = value
        elif isinstance(value, bytes | bytearray):
            return bytes(value).decode("utf-8", "replace")
        elif value is None:
            return ""
        elif isinstance(value, datetime):
            return value.isoformat()
        else:
            shown = str(value)
        return shown if shown.isascii() else shown.encode("utf-8", "replace").decode()
    except (
        Exception
    ):  # a foreign object's own conversion failed: its header is unreadable, the message is not
        return ""


def parse_time(written: str) -> datetime | None:
    """The time, with a zone (UTC where none is written); None where it is no time of RFC 3339."""
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def utc_text(time: datetime) -> str:
    """`isoformat` of a time in UTC, for less than half: most are of the same second as the one before, or that time."""
    former, text = _latest[0]
    if time is former:
        return text
    second, written = _latest_second[0]
    since = time - second
    if since.seconds or since.days:
        second = time.replace(microsecond=0)
        written = second.isoformat()[:19]
        _latest_second[0] = second, written
    fraction = time.microsecond
    text = f"{written}.{str(1_000_000 + fraction)[1:]}+00:00" if fraction else f"{written}+00:00"
    _latest[0] = time, text
    return text


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_latest = [(_EPOCH, "1970-01-01T00:00:00+00:00")]
_latest_second = [(_EPOCH, "1970-01-01T00:00:00")]


def _format_time(time: datetime) -> str:
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC).isoformat()
    try:
        return time.astimezone(UTC).isoformat()
    except OverflowError:  # within a day of the first or last year
        return time.isoformat()
