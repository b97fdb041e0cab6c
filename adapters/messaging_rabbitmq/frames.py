"""Messages as frames: what pamqp would write, in a small part of the time."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_rabbitmq.properties import Parcel

# AMQP 0-9-1, 4.2.3 and 4.2.6: frames and content headers.
_FRAME = Struct(">BHI")
_HEADER = Struct(">BHIHHQH")
_LONG = Struct(">I")
_TIMESTAMP = Struct(">Q")
_HEADER_FRAME, _BODY_FRAME = 2, 3
_END = b"\xce"
_BASIC = 60
_CONTENT_TYPE, _ENCODING, _HEADERS, _MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_CORRELATION, _REPLY_TO, _MESSAGE_ID, _TIME = 1 << 10, 1 << 9, 1 << 7, 1 << 6
_TYPE, _APP = 1 << 5, 1 << 3


def marshalled(number: int, largest: int, parcels: Sequence[Parcel]) -> bytes:
    """All of these, published on the channel with this number, in body frames of less than `largest` bytes."""
    pieces: list[bytes] = []
    for parcel in parcels:
        _add_frames(pieces, number, largest, parcel)
    return b"".join(pieces)


def _add_frames(pieces: list[bytes], number: int, largest: int, parcel: Parcel) -> None:
    body = parcel.body
    pieces.append(_method(number, parcel.exchange, parcel.routing_key, parcel.mandatory))
    pieces.append(header_frame(number, parcel.properties, len(body)))
    if body and len(body) < largest:
        pieces += (_FRAME.pack(_BODY_FRAME, number, len(body)), body, _END)
        return
    for start in range(0, len(body), largest):
        part = body[start : start + largest]
        pieces += (_FRAME.pack(_BODY_FRAME, number, len(part)), part, _END)


@lru_cache(maxsize=1024)
def _method(number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), number)


def header_frame(number: int, properties: Basic.Properties, body_size: int) -> bytes:
    """The content header frame, as pamqp would marshal it, for headers that are all text; else by pamqp."""
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
        table = _table(properties.headers)
        if table is None:
            return marshal(ContentHeader(body_size=body_size, properties=properties), number)
        fields.append(table)
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
    payload = b"".join(fields)
    start = _HEADER.pack(_HEADER_FRAME, number, len(payload) + 14, _BASIC, 0, body_size, flags)
    return start + payload + _END


def _short(value: str) -> bytes:
    encoded = value.encode()
    return bytes((len(encoded),)) + encoded


def _table(headers: dict[str, Any]) -> bytes | None:
    """A field table of texts; None where a value is anything else."""
    pieces: list[bytes] = []
    for name, value in headers.items():
        if type(value) is not str:
            return None
        pieces.append(_name(name) if len(name) < 40 else _field_name(name))
        encoded = value.encode()
        pieces += (_LONG.pack(len(encoded)), encoded)
    table = b"".join(pieces)
    return _LONG.pack(len(table)) + table


def _field_name(name: str) -> bytes:
    return _short(name) + b"S"


@lru_cache(maxsize=512)
def _name(name: str) -> bytes:
    return _field_name(name)
