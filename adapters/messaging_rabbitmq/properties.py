"""Messages to and from AMQP: properties, headers, and what of a foreign message must never be sent on."""

from __future__ import annotations

import itertools
import json
import logging
import secrets
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from pamqp.commands import Basic
from pamqp.encode import field_table

from messaging.adapter import RawDelivery
from messaging.envelope import ATTEMPT, FAILURE, GUARD, decode, encode, recorded_attempt
from messaging.errors import InvalidMessage, MessageTooLarge
from messaging_rabbitmq.amqp import PERSISTENT, SHORT_STRING, TRANSIENT
from messaging_rabbitmq.frames import AROUND, BESIDE, Parcel, content, table_of
from messaging_rabbitmq.packing import PREFIX, usual_content
from messaging_rabbitmq.salvage import writable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiormq.abc import DeliveredMessage

    from messaging.message import Message

logger = logging.getLogger("messaging")

PARTITION = "messaging-partition"
"""On our own copies, which reach their queue by its name: the partition that the message was published to."""
CARRIED = "messaging-headers"
"""A JSON object of headers that AMQP, or RabbitMQ's own use of a name, would not carry as they are."""
DELIVERY_COUNT = "x-delivery-count"

MAX_NAME = 128
"""AMQP 0-9-1: field names have at most 128 characters; pamqp cuts longer ones in silence."""

_BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", DELIVERY_COUNT, "x-opt-")
_SENDERS = frozenset({"CC", "BCC"})
"""RabbitMQ routes a message to these too, and closes the channel when they are no array."""

_unique = secrets.token_hex(8)
_numbers = itertools.count(1)


def unique_id() -> str:
    """An AMQP message id that no other publish has: returned messages are told apart by it."""
    return f"{_unique}-{next(_numbers)}"


def packed(
    exchange: str,
    routing_key: str,
    message: Message,
    *,
    limit: int,
    table_limit: int,
    extra: Mapping[str, str] | None = None,
    reply_to: str | None = None,
    mandatory: bool = True,
    persistent: bool = True,
) -> Parcel:
    """A message of ours. Raises InvalidMessage or MessageTooLarge naming what does not fit."""
    kind, mode, message_id = message.content_type, PERSISTENT if persistent else TRANSIENT, unique_id()
    if kind is not None and len(kind) * 4 > SHORT_STRING and len(kind.encode()) > SHORT_STRING:
        raise InvalidMessage(f"the content type of message {message.id} has more than {SHORT_STRING} bytes")
    described = None if extra else usual_content(message, message_id, reply_to, mode)
    if (
        described is None or len(described) > table_limit or len(message.body) + len(described) > limit
    ):  # in the last cases perhaps: it is longer than its headers
        table = _table(message, extra, limit, table_limit)
        correlation_id, time = message.correlation_id, message.time
        described = content(
            table,
            content_type=kind,
            mode=mode,
            correlation_id=None if correlation_id is None else _short(correlation_id),
            reply_to=reply_to,
            message_id=message_id,
            time=time if time is not None and time.year > 1970 else None,
        )
    return Parcel(exchange, routing_key, described, message_id, message.body, mandatory)


def _table(message: Message, extra: Mapping[str, str] | None, limit: int, table_limit: int) -> bytes:
    """The headers of a message; raises MessageTooLarge."""
    headers = encode(message, prefix=PREFIX)
    if message.headers:
        headers = _carried(headers)
    if extra:
        headers.update(extra)
    table = table_of(headers)
    if len(message.body) + len(table) > limit:
        _check_size(message, len(table) - AROUND - BESIDE * len(headers), limit)
    if len(table) > table_limit:
        raise MessageTooLarge(
            f"the headers of message {message.id} of topic {message.topic} exceed the {table_limit} bytes "
            f"that one AMQP frame carries: put large values into the payload"
        )
    return table


def _check_size(message: Message, headers: int, limit: int) -> None:
    size = len(message.body) + headers
    if size > limit:
        raise MessageTooLarge(
            f"message {message.id} of topic {message.topic} has {size} bytes with its headers; at most {limit} "
            f"are allowed (option max_message_bytes). Put large content elsewhere and send a reference."
        )


def copy_properties(
    original: DeliveredMessage, delivery: RawDelivery, control: Mapping[str, str], *, table_limit: int
) -> Basic.Properties:
    """The properties of a copy of a received message, under new control headers.

    Dropped: what would steer the broker (CC, priority, expiration, user id) and what it wrote itself.
    """
    properties = original.header.properties
    headers: dict[str, Any] = {
        name: value
        for name, value in (properties.headers or {}).items()
        if not _is_ours(name) and not _is_brokers(name)
    }
    if f"{PREFIX}id" not in headers and "cloudEvents:id" not in headers:
        headers[f"{PREFIX}id"] = delivery.message.id
    carried = (properties.headers or {}).get(CARRIED)
    if carried is not None:
        headers[CARRIED] = carried
    headers[PARTITION] = str(delivery.partition)
    headers.update(control)
    return _with(properties, _encodable(headers, delivery.message.id, table_limit))


def foreign_properties(original: DeliveredMessage, key: str | None, *, table_limit: int) -> Basic.Properties:
    """The properties of a stranger's message that is sent on to its partition; `key` is what it was routed by."""
    properties = original.header.properties
    headers = {name: value for name, value in (properties.headers or {}).items() if not _is_brokers(name)}
    if key is not None:
        headers[f"{PREFIX}partitionkey"] = key
    if properties.message_id and f"{PREFIX}id" not in headers and "cloudEvents:id" not in headers:
        headers[f"{PREFIX}id"] = properties.message_id
    return _with(
        properties, _encodable(headers, properties.message_id or "of a foreign program", table_limit)
    )


def _with(properties: Basic.Properties, headers: dict[str, Any]) -> Basic.Properties:
    """What is kept of received properties, with these headers."""
    return Basic.Properties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=headers,
        delivery_mode=PERSISTENT,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=unique_id(),
        timestamp=properties.timestamp,
        message_type=properties.message_type,
        app_id=properties.app_id,
    )


def incoming(
    original: DeliveredMessage, *, topic: str, position: str, partitions: int, partition: int | None = None
) -> RawDelivery:
    """What the broker handed over. Never raises, whoever wrote it."""
    properties = original.header.properties
    headers: dict[str, Any] = properties.headers or {}
    by_name = not original.exchange
    """Only copies of ours, and what a stranger sends straight to the queue, come by the default exchange."""
    plain = {name: value for name, value in headers.items() if not _is_brokers(name)}
    plain.update(_uncarried(plain.pop(CARRIED, None)))
    stamp = properties.timestamp
    message = decode(
        plain,
        prefix=PREFIX,
        topic=topic,
        body=original.body,
        position=position,
        content_type=properties.content_type or None,
        message_id=properties.message_id or None,
        correlation_id=properties.correlation_id or None,
        time=stamp if isinstance(stamp, datetime) else None,
    )
    returned = _returned(original, headers)
    attempt = recorded_attempt(headers) if by_name else 1
    failure = headers.get(FAILURE) if by_name else None
    alone = by_name and headers.get(GUARD) == "alone"
    return RawDelivery(
        message=message,
        partition=_partition(original, headers, partitions) if partition is None else partition,
        position=position,
        attempt=attempt,
        deliveries=attempt + returned,
        returns=returned,
        guard="none" if not alone else "alone" if returned < 3 else "tripped",
        failure=failure if isinstance(failure, str) else None,
        reply_to=properties.reply_to or None,
        native=original,
    )


def control_headers(delivery: RawDelivery) -> dict[str, str]:
    """The control headers that keep what is recorded of a delivery."""
    control: dict[str, str] = {}
    if delivery.attempt > 1:
        control[ATTEMPT] = str(delivery.attempt)
    if delivery.failure is not None:
        control[FAILURE] = delivery.failure
    return control


def _returned(original: DeliveredMessage, headers: Mapping[str, Any]) -> int:
    """How often the message came back. A publisher can forge the header, but only the broker sets the flag."""
    if not original.redelivered:
        return 0
    count = headers.get(DELIVERY_COUNT)
    return count if isinstance(count, int) and 0 < count <= 1_000_000 else 1


def _partition(original: DeliveredMessage, headers: Mapping[str, Any], partitions: int) -> int:
    written: Any = original.routing_key if original.exchange else headers.get(PARTITION)
    if isinstance(written, str) and written.isascii() and written.isdigit() and len(written) < 6:
        number = int(written)
        if number < partitions:
            return number
    return 0


def _is_ours(name: str) -> bool:
    return name.startswith("messaging-")


def _is_brokers(name: str) -> bool:
    return name in _SENDERS or name.startswith(_BROKERS_OWN)


def _carried(headers: dict[str, str]) -> dict[str, str]:
    """Headers under names that RabbitMQ would read itself, or that are too long, go into one that it does not."""
    wrapped = {name: value for name, value in headers.items() if _is_carried(name)}
    if not wrapped:
        return headers
    headers = {name: value for name, value in headers.items() if name not in wrapped}
    headers[CARRIED] = json.dumps(wrapped)
    return headers


@lru_cache(maxsize=1024)
def _is_carried(name: str) -> bool:
    return _is_brokers(name) or len(name.encode()) > MAX_NAME


def _uncarried(value: Any) -> dict[str, str]:
    if not isinstance(value, str):
        return {}
    try:
        wrapped: object = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(wrapped, dict):
        return {}
    pairs = cast("dict[str, Any]", wrapped)
    return {name: text for name, text in pairs.items() if isinstance(text, str)}


def _encodable(headers: dict[str, Any], message_id: str, table_limit: int) -> dict[str, Any]:
    """What AMQP can carry in one frame: a foreign value of a kind that cannot be written again becomes text."""
    try:
        encoded = field_table(headers)
    except Exception:
        headers = writable(headers)
        encoded = field_table(headers)
    if len(encoded) > table_limit and FAILURE in headers:
        logger.warning(
            "The failure record of message %s is left out of its copy: it does not fit into one AMQP frame",
            message_id,
            extra={"message_id": message_id},
        )
        del headers[FAILURE]
        encoded = field_table(headers)
    if len(encoded) > table_limit:
        raise MessageTooLarge(f"a copy of message {message_id} does not fit into one AMQP header frame")
    return headers


def _short(value: str | None) -> str | None:
    """A short string of AMQP, or nothing: the attribute carries the value in full."""
    return value if value is not None and len(value.encode()) <= SHORT_STRING else None
