"""Handing a batch of messages to aiormq: marshalled here and queued as one write.

aiormq's `basic_publish` costs a task, a lock and a marshalling of every frame for each message. The batch below does
the same steps once, on attributes of the channel that aiormq shows without underscore. They are no promise of
aiormq's, so a version that this was not made for gets the public call for each message instead.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from importlib.metadata import version
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

from aiormq.abc import ChannelFrame
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel

    from messaging_rabbitmq.properties import Parcel

MADE_FOR = "7."
"""Versions of aiormq whose channel is known here."""
KNOWN = (
    "confirmations",
    "delivery_tag",
    "lock",
    "max_content_size",
    "message_id_delivery_tag",
    "number",
    "write_queue",
)

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


@lru_cache(maxsize=1)
def is_known_version() -> bool:
    """Whether the installed aiormq is one that this was made for."""
    return version("aiormq").startswith(MADE_FOR)


async def hand_over(channel: AbstractChannel, parcels: Sequence[Parcel]) -> Sequence[asyncio.Future[Any]]:
    """Queue all for the socket, in order; a future for each, done when the broker has confirmed it.

    The futures fail as aiormq's `basic_publish` does, and with the channel: see `fail_unconfirmed`. They must not be
    cancelled. Raises aiormq's exceptions when nothing was queued; cancelled before that, nothing was queued either.
    """
    if is_known_version() and all(hasattr(channel, name) for name in KNOWN):
        return await _hand_over_batch(channel, parcels)
    return [_publish(channel, parcel) for parcel in parcels]


def fail_unconfirmed(channel: AbstractChannel, error: Exception) -> None:
    """The channel is gone: what it has not confirmed never will be."""
    confirmations: dict[int, asyncio.Future[Any]] = getattr(channel, "confirmations", {})
    for future in list(confirmations.values()):
        if not future.done():
            future.set_exception(error)
            future.exception()  # aiormq's place holders for returned messages are waited for by nobody


async def _hand_over_batch(shown: Any, parcels: Sequence[Parcel]) -> Sequence[asyncio.Future[Any]]:
    channel = shown
    create_future = asyncio.get_running_loop().create_future
    number: int = channel.number
    pieces: list[bytes] = []
    for parcel in parcels:
        _add_frames(pieces, number, channel.max_content_size, parcel)
    frame = ChannelFrame(payload=b"".join(pieces), should_close=False)
    futures: list[asyncio.Future[Any]] = []
    async with channel.lock:
        confirmations: dict[int, asyncio.Future[Any]] = channel.confirmations
        tags: dict[str, int] = channel.message_id_delivery_tag
        first: int = channel.delivery_tag + 1
        for tag, parcel in enumerate(parcels, first):
            future = create_future()
            futures.append(future)
            confirmations[tag] = future
            tags[cast("str", parcel.properties.message_id)] = tag
        channel.delivery_tag += len(parcels)
        try:
            await channel.write_queue.put(frame)
        except BaseException:
            # The broker has seen none of it: its sequence numbers are free again.
            channel.delivery_tag -= len(parcels)
            for tag, parcel in enumerate(parcels, first):
                confirmations.pop(tag, None)
                tags.pop(cast("str", parcel.properties.message_id), None)
            raise
    return futures


def forget(channel: AbstractChannel, parcels: Sequence[Parcel]) -> None:
    """These are confirmed: their message ids need not be kept to find returned ones."""
    tags: dict[str, int] = getattr(channel, "message_id_delivery_tag", {})
    for parcel in parcels:
        tags.pop(cast("str", parcel.properties.message_id), None)


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


def _publish(channel: AbstractChannel, parcel: Parcel) -> asyncio.Future[Any]:
    # The abstract class does not show `wait`, which all channels have.
    publish = cast("Any", channel).basic_publish
    task: asyncio.Task[Any] = asyncio.ensure_future(
        publish(
            parcel.body,
            exchange=parcel.exchange,
            routing_key=parcel.routing_key,
            properties=parcel.properties,
            mandatory=parcel.mandatory,
            wait=False,
        )
    )
    return task
