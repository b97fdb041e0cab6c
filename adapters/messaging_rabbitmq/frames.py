"""Messages as frames: what pamqp would write, in a small part of the time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, cast

from pamqp.commands import Basic
from pamqp.frame import marshal

from messaging_rabbitmq.amqp import (
    APP,
    BASIC,
    BODY,
    CONTENT,
    CONTENT_TYPE,
    CORRELATION,
    ENCODING,
    END,
    FLAGS,
    HEADER,
    HEADERS,
    LONG,
    LONG_LONG,
    MESSAGE_ID,
    MODE,
    REPLY_TO,
    TEXT,
    TIME,
    TYPE,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_HEADER = Struct(">BHIHHQ")
"""A frame and the content in it, as both begin."""
_NEXT = Struct(">BBHI")
"""The end of a frame, and the head of the next."""
_LAST = bytes((END,))
AROUND = 4
"""Bytes of a table beside its fields."""
USUAL_FRAME = 128 * 1024
"""RabbitMQ's own `frame_max`, which is kept where it sets none: 0 is no limit."""
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
        properties.unmarshal(FLAGS.unpack_from(self.content)[0], self.content[FLAGS.size :])
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
            _HEADER.pack(HEADER, number, len(content) + CONTENT.size, BASIC, 0, size),
            content,
        )
        if 0 < size < largest:
            pieces += (_NEXT.pack(END, BODY, number, size), body)
        else:
            for start in range(0, size, largest):
                part = body[start : start + largest]
                pieces += (_NEXT.pack(END, BODY, number, len(part)), part)
        pieces.append(_LAST)
    return b"".join(pieces)


@lru_cache(maxsize=1024)
def _method(number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), number)


def content_of(properties: Basic.Properties) -> bytes:
    """Flags and fields, as pamqp would marshal them, for headers that are all text; else by pamqp."""
    headers = properties.headers
    if headers and not all(type(value) is str for value in headers.values()):
        return properties.marshal()
    return content(
        table_of(cast("dict[str, str]", headers)) if headers else b"",
        content_type=properties.content_type,
        encoding=properties.content_encoding,
        mode=properties.delivery_mode,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        time=properties.timestamp,
        kind=properties.message_type,
        app=properties.app_id,
    )


def content(
    table: bytes,
    *,
    mode: int | None,
    message_id: str | None,
    content_type: str | None = None,
    encoding: str | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    time: datetime | None = None,
    kind: str | None = None,
    app: str | None = None,
) -> bytes:
    """Flags and fields of these; `table` has the headers."""
    flags = 0
    fields: list[bytes] = [b""]
    if content_type:
        flags |= CONTENT_TYPE
        fields.append(_name_of(content_type))
    if encoding:
        flags |= ENCODING
        fields.append(_short(encoding))
    if table:
        flags |= HEADERS
        fields.append(table)
    if mode is not None:
        flags |= MODE
        fields.append(bytes((mode,)))
    if correlation_id:
        flags |= CORRELATION
        fields.append(_short(correlation_id))
    if reply_to:
        flags |= REPLY_TO
        fields.append(_short(reply_to))
    if message_id:
        flags |= MESSAGE_ID
        fields.append(_short(message_id))
    if time is not None:
        flags |= TIME
        fields.append(LONG_LONG.pack(int(time.timestamp())))
    if kind:
        flags |= TYPE
        fields.append(_short(kind))
    if app:
        flags |= APP
        fields.append(_short(app))
    fields[0] = FLAGS.pack(flags)
    return b"".join(fields)


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
            LONG.pack(len(encoded)),
            encoded,
        )
    pieces[0] = LONG.pack(sum(map(len, pieces)))
    return b"".join(pieces)


@lru_cache(maxsize=64)
def _name_of(content_type: str) -> bytes:
    return _short(content_type)


def _field_name(name: str) -> bytes:
    return _short(name) + TEXT


@lru_cache(maxsize=512)
def _name(name: str) -> bytes:
    return _field_name(name)
