"""Messages as they come from the broker: what pamqp and aiormq make of their frames, in a small part of the time.

What is rare, or not as it should be, is left to pamqp; of properties that pamqp cannot read, what can be read is kept
(19). Only what no broker sends goes on to aiormq, which ends the connection.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from struct import Struct, error
from typing import TYPE_CHECKING, Any, cast

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from messaging_rabbitmq.amqp import (
    ACK,
    BASIC,
    BODY,
    CONTENT,
    CONTENT_TYPE,
    CORRELATION,
    DELIVER,
    ENCODING,
    END,
    FLAGS,
    HEADER,
    HEADERS,
    LONG,
    LONG_LONG,
    MESSAGE_ID,
    METHOD,
    MODE,
    NACK,
    REJECT,
    REPLY_TO,
    TAG,
    TEXT,
    TIME,
)
from messaging_rabbitmq.connection import is_known, wire_of
from messaging_rabbitmq.salvage import readable, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiormq.abc import AbstractChannel, ConsumerCallback

    from messaging_rabbitmq.wire import Wire

_READ_HERE = CONTENT_TYPE | ENCODING | HEADERS | MODE | CORRELATION | REPLY_TO | MESSAGE_ID | TIME
_SETTLE = Struct(">BHI4sQBB")
"""A whole frame: its head, a method, a delivery tag and flags, the end mark."""
_SETTLED_SIZE = 13
_REQUEUE = 2
_TEXT = ord(TEXT)
_TIME_IN_SECONDS = 0xFFFFFFFF
"""Beyond that, pamqp takes a timestamp for milliseconds."""


def take_arrivals(channel: AbstractChannel, arrived: Callable[[DeliveredMessage], None]) -> Arrivals | None:
    """Give what this channel delivers to `arrived`, instead of a task to the consumer that aiormq knows.

    None with a version of aiormq that this was not made for.
    """
    if not is_known(channel):
        return None
    wire, number = wire_of(channel), cast("Any", channel).number
    arrivals = Arrivals(channel, number, wire, arrived)
    wire.tap(number, arrivals)
    return arrivals


def callback_of(arrived: Callable[[DeliveredMessage], None]) -> ConsumerCallback:
    """The same, as aiormq has it."""

    async def take(message: DeliveredMessage) -> None:
        arrived(message)

    return take


class Arrivals:
    """Takes the deliveries of one channel, whole, and gives each on as it comes; and settles them.

    All that is settled here goes out in one order: an acknowledgement of all before a tag must not overtake the
    return of one of them.
    """

    def __init__(
        self,
        channel: AbstractChannel,
        number: int,
        wire: Wire,
        arrived: Callable[[DeliveredMessage], None],
    ) -> None:
        self.closed = False
        self._number = number
        self._wire = wire
        self._channel = channel
        self._arrived = arrived
        self._delivery: Basic.Deliver | None = None
        """Of the message whose content is to come."""
        self._header: ContentHeader | None = None
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """See `Tap`."""
        if kind == METHOD:
            if data[start : start + 4] != DELIVER:
                return False
            self._delivery = delivery(data, start)
            return self._delivery is not None
        if self._delivery is None:
            return False  # what was asked for by basic.get
        if kind == HEADER:
            self._header = header = content_header(data, start, end)
            if header is None:
                self._delivery = None
                return False
            self._missing = header.body_size
            if not self._missing:
                self._give_on(b"")
        elif kind == BODY and self._header is not None:
            self._missing -= end - start
            if self._missing > 0:
                self._parts.append(data[start:end])
            elif self._parts:
                self._give_on(b"".join((*self._parts, data[start:end])))
            else:
                self._give_on(data[start:end])
        else:
            return False
        return True

    def acknowledge(self, settled: Iterable[tuple[int, bool]]) -> None:
        """By tags, each alone or with all before it. Raises ChannelInvalidStateError when the channel is gone."""
        self._send(b"".join(self._frame(ACK, tag, int(multiple)) for tag, multiple in settled))

    def give_back(self, tag: int, *, requeue: bool) -> None:
        """To the queue (basic.nack), or to its dead-letter exchange (basic.reject). Raises as `acknowledge`."""
        self._send(self._frame(NACK, tag, _REQUEUE) if requeue else self._frame(REJECT, tag, 0))

    def _frame(self, method: bytes, tag: int, flags: int) -> bytes:
        return _SETTLE.pack(METHOD, self._number, _SETTLED_SIZE, method, tag, flags, END)

    def _send(self, frames: bytes) -> None:
        if self.closed or self._channel.is_closed or not self._wire.write(frames):
            raise ChannelInvalidStateError("closed")

    def _give_on(self, body: bytes) -> None:
        delivery, header = self._delivery, self._header
        self._delivery = self._header = None
        self._parts.clear()
        assert delivery is not None
        assert header is not None
        self._arrived(DeliveredMessage(delivery, header, body, self._channel))


def delivery(data: bytes, start: int) -> Basic.Deliver | None:
    """The method Basic.Deliver; None where it is none."""
    method = Basic.Deliver.__new__(Basic.Deliver)  # what came is not checked for names that may not be sent
    try:
        at = start + 5 + data[start + 4]
        method.consumer_tag = text_of(data[start + 5 : at])
        method.delivery_tag, redelivered = TAG.unpack_from(data, at)
        method.redelivered = bool(redelivered & 1)
        end = at + 10 + data[at + 9]
        method.exchange = text_of(data[at + 10 : end])
        method.routing_key = text_of(data[end + 1 : end + 1 + data[end]])
    except (IndexError, error):
        return None
    return method


def content_header(data: bytes, start: int, end: int) -> ContentHeader | None:
    """The content header in `data[start:end]`, with what can be read of its properties; None where it is none."""
    if end - start < CONTENT.size + FLAGS.size:
        return None
    try:
        properties = _properties(data, start + CONTENT.size, end)
    except (ValueError, IndexError, error):  # pamqp is asked before anything is left out
        properties = None
    if properties is None:
        header = ContentHeader()
        try:
            header.unmarshal(data[start:end])
        except Exception:  # whoever wrote it: RecursionError of nested tables, OverflowError of times
            properties = readable(data[start + CONTENT.size : end])
        else:
            return header
    header = ContentHeader(0, CONTENT.unpack_from(data, start)[2], properties)
    header.class_id = BASIC  # type: ignore[assignment]  # pamqp declares what it has before it reads one
    return header


def _properties(data: bytes, start: int, end: int) -> Basic.Properties | None:
    """None where pamqp has to read them."""
    flags: int = FLAGS.unpack_from(data, start)[0]
    if flags & ~_READ_HERE:
        return None
    properties = Basic.Properties()
    at = start + FLAGS.size
    if flags & CONTENT_TYPE:
        properties.content_type, at = _short(data, at)
    if flags & ENCODING:
        properties.content_encoding, at = _short(data, at)
    if flags & HEADERS:
        headers = _texts(data, at)
        if headers is None:
            return None
        properties.headers = headers
        at += 4 + LONG.unpack_from(data, at)[0]
    if flags & MODE:
        properties.delivery_mode = data[at]
        at += 1
    if flags & CORRELATION:
        properties.correlation_id, at = _short(data, at)
    if flags & REPLY_TO:
        properties.reply_to, at = _short(data, at)
    if flags & MESSAGE_ID:
        properties.message_id, at = _short(data, at)
    if flags & TIME:
        (seconds,) = LONG_LONG.unpack_from(data, at)
        if seconds > _TIME_IN_SECONDS:
            return None
        properties.timestamp = _moment(seconds)
        at += 8
    return properties if at == end else None


def _texts(data: bytes, at: int) -> dict[str, Any] | None:
    """The field table there, if all its values are texts."""
    headers: dict[str, Any] = {}
    stop = at + 4 + LONG.unpack_from(data, at)[0]
    at += 4
    while at < stop:
        name_end = at + 1 + data[at]
        if data[name_end] != _TEXT:
            return None
        value = name_end + 5
        value_end = value + LONG.unpack_from(data, name_end + 1)[0]
        try:
            headers[data[at + 1 : name_end].decode()] = data[value:value_end].decode()
        except UnicodeDecodeError:
            return None
        at = value_end
    return headers if at == stop else None


def _short(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end].decode(), end


@lru_cache(maxsize=64)
def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
