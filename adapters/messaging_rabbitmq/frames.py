"""Messages as frames: what pamqp would write, in a small part of the time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, cast

from pamqp.commands import Basic
from pamqp.frame import marshal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

# AMQP 0-9-1, 4.2.3 and 4.2.6: frames and content headers.
_HEADER = Struct(">BHIHHQ")
_NEXT = Struct(">BBHI")
"""The end of a frame, and the head of the next."""
_FLAGS = Struct(">H")
_LONG = Struct(">I")
_TIMESTAMP = Struct(">Q")
_HEADER_FRAME, _BODY_FRAME = 2, 3
_END = 0xCE
_LAST = bytes((_END,))
_PERSISTENT, _TRANSIENT = b"\x02", b"\x01"
_BASIC = 60
_CONTENT_TYPE, _ENCODING, _HEADERS, _MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_CORRELATION, _REPLY_TO, _MESSAGE_ID, _TIME = 1 << 10, 1 << 9, 1 << 7, 1 << 6
_TYPE, _APP = 1 << 5, 1 << 3
AROUND = 4
"""Bytes of a table beside its fields."""
USUAL_FRAME = 128 * 1024
"""RabbitMQ's own `frame_max`, which is kept where it sets none: 0 is no limit."""
AROUND_FRAME = 8
"""Bytes of a frame beside its payload."""
_OTHER_PROPERTIES = 2048
"""Bytes of a header frame beside its table, at most: seven short strings and some numbers."""
BESIDE = 6
"""Bytes of a field beside its name and its value."""


@dataclass(slots=True, eq=False)
class Parcel:
    """One message as it is handed to the broker."""

    exchange: str
    routing_key: str
    content: bytes
    """Its properties: flags and fields, as a content header carries them."""
    message_id: str
    body: bytes
    mandatory: bool = True

    @property
    def properties(self) -> Basic.Properties:
        """The same, as pamqp has them."""
        properties = Basic.Properties()
        properties.unmarshal(_FLAGS.unpack_from(self.content)[0], self.content[_FLAGS.size :])
        return properties


def table_limit(frame_max: int) -> int:
    """Bytes of a message's headers on a connection with this limit: properties are one frame, which is never split."""
    return min(frame_max or USUAL_FRAME, USUAL_FRAME) - _OTHER_PROPERTIES


def parcel_of(exchange: str, routing_key: str, properties: Basic.Properties, body: bytes) -> Parcel:
    """The parcel of a message with these properties, among them its id."""
    return Parcel(exchange, routing_key, content_of(properties), properties.message_id or "", body)


def marshalled(number: int, largest: int, parcels: Sequence[Parcel]) -> bytes:
    """All of these, published on the channel with this number, in body frames of less than `largest` bytes."""
    pieces: list[bytes] = []
    for parcel in parcels:
        body, content = parcel.body, parcel.content
        size = len(body)
        pieces += (
            _method(number, parcel.exchange, parcel.routing_key, parcel.mandatory),
            _HEADER.pack(_HEADER_FRAME, number, len(content) + 12, _BASIC, 0, size),
            content,
        )
        if 0 < size < largest:
            pieces += (_NEXT.pack(_END, _BODY_FRAME, number, size), body)
        else:
            for start in range(0, size, largest):
                part = body[start : start + largest]
                pieces += (_NEXT.pack(_END, _BODY_FRAME, number, len(part)), part)
        pieces.append(_LAST)
    return b"".join(pieces)


@lru_cache(maxsize=1024)
def _method(number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), number)


def content_of(properties: Basic.Properties) -> bytes:
    """Flags and fields, as pamqp would marshal them, for headers that are all text; else by pamqp."""
    flags = 0
    fields: list[bytes] = []
    if properties.content_type:
        flags |= _CONTENT_TYPE
        fields.append(_short(properties.content_type))
    if properties.content_encoding:
        flags |= _ENCODING
        fields.append(_short(properties.content_encoding))
    if properties.headers:
        flags |= _HEADERS
        if not all(type(value) is str for value in properties.headers.values()):
            return properties.marshal()
        fields.append(table_of(cast("dict[str, str]", properties.headers)))
    if properties.delivery_mode is not None:
        flags |= _MODE
        fields.append(bytes((properties.delivery_mode,)))
    if properties.correlation_id:
        flags |= _CORRELATION
        fields.append(_short(properties.correlation_id))
    if properties.reply_to:
        flags |= _REPLY_TO
        fields.append(_short(properties.reply_to))
    if properties.message_id:
        flags |= _MESSAGE_ID
        fields.append(_short(properties.message_id))
    if properties.timestamp is not None:
        flags |= _TIME
        fields.append(_TIMESTAMP.pack(max(0, int(properties.timestamp.timestamp()))))
    if properties.message_type:
        flags |= _TYPE
        fields.append(_short(properties.message_type))
    if properties.app_id:
        flags |= _APP
        fields.append(_short(properties.app_id))
    return _FLAGS.pack(flags) + b"".join(fields)


def content(
    table: bytes,
    *,
    content_type: str | None,
    persistent: bool,
    correlation_id: str | None,
    reply_to: str | None,
    message_id: str,
    time: datetime | None,
) -> bytes:
    """The same of a message of ours; `table` has its headers."""
    flags = _HEADERS | _MODE | _MESSAGE_ID
    kind = correlation = address = stamp = b""
    if content_type:
        flags |= _CONTENT_TYPE
        kind = _name_of(content_type)
    if correlation_id:
        flags |= _CORRELATION
        correlation = _short(correlation_id)
    if reply_to:
        flags |= _REPLY_TO
        address = _short(reply_to)
    if time is not None:
        flags |= _TIME
        stamp = _TIMESTAMP.pack(int(time.timestamp()))
    mode = _PERSISTENT if persistent else _TRANSIENT
    return b"".join((_FLAGS.pack(flags), kind, table, mode, correlation, address, _short(message_id), stamp))


def _short(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(1, "big") + encoded


def table_of(headers: Mapping[str, str]) -> bytes:
    """The field table of these."""
    pieces: list[bytes] = [b""]
    for name, value in headers.items():
        encoded = value.encode()
        pieces += (
            _name(name) if len(name) < 40 else _field_name(name),
            _LONG.pack(len(encoded)),
            encoded,
        )
    pieces[0] = _LONG.pack(sum(map(len, pieces)))
    return b"".join(pieces)


@lru_cache(maxsize=64)
def _name_of(content_type: str) -> bytes:
    return _short(content_type)


def _field_name(name: str) -> bytes:
    return _short(name) + b"S"


@lru_cache(maxsize=512)
def _name(name: str) -> bytes:
    return _field_name(name)
