"""Properties that pamqp refuses to read, as far as they can be read (19).

RabbitMQ checks no property that a foreign program sends: times beyond the calendar, texts that are not UTF-8, tables
without end. None may cost more than itself, so each field that cannot be read is left out, and the message goes on.
"""

from __future__ import annotations

import logging
from struct import error
from typing import Any, Final

from pamqp import encode
from pamqp.commands import Basic
from pamqp.decode import embedded_value, field_table, timestamp

from messaging_rabbitmq.amqp import FLAGS, LONG, SHORT_STRING

logger = logging.getLogger("messaging")

_TOLD = 10
"""Names that a log record has at most."""
# AMQP 0-9-1, 4.2.5.5, and RabbitMQ's errata.
_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"lLdT", 8),
    **dict.fromkeys(b"V\0", 0),
}
"""Bytes of a value by its kind; all others begin with their size."""
_SIZED: Final = frozenset(b"SAFx")


def text_of(written: bytes) -> str:
    """A text, whatever it is: bytes that are not UTF-8 are written out, so that what differs stays different."""
    return written.decode(errors="backslashreplace")


def readable(data: bytes) -> Basic.Properties:
    """Of these flags and fields, all that can be read. Raises nothing; what is left out is logged."""
    properties = Basic.Properties()
    lost: list[str] = []
    try:
        _read(data, properties, lost)
    except Exception:
        lost.append("all that follows")
    logger.warning(
        "Properties of message %s, which another program published to RabbitMQ, cannot be read and are left out or "
        "shown changed: %s",
        properties.message_id or "without an id",
        ", ".join(lost[:_TOLD]) or "their end",
        extra={"message_id": properties.message_id},
    )
    return properties


def writable(headers: dict[str, Any]) -> dict[str, Any]:
    """These, of which values of a kind that cannot be written again become text."""
    return {name: _writable(name, value) for name, value in headers.items()}


def _writable(name: str, value: Any) -> Any:
    try:
        encode.field_table({name: value})
    except Exception:
        return str(value)
    return value


def _read(data: bytes, properties: Basic.Properties, lost: list[str]) -> None:
    flags: int = FLAGS.unpack_from(data)[0]
    more, at = flags, FLAGS.size
    while more & 1:
        more = FLAGS.unpack_from(data, at)[0]
        at += FLAGS.size
    for name, flag in Basic.Properties.flags.items():
        if not flags & flag:
            continue
        value: Any = None
        if name == "headers":
            end = at + 4 + LONG.unpack_from(data, at)[0]
            value = _table(data[at:end], lost)
        elif name == "timestamp":
            end = at + 8
            value = _time(data[at:end], lost)
        elif name in ("delivery_mode", "priority"):
            end = at + 1
            value = data[at]
        else:
            end = at + 1 + data[at]
            value = _short(data[at + 1 : end], name, lost)
        if end > len(data):
            raise IndexError(name)
        if value is not None:
            setattr(properties, name, value)
        at = end


def _short(written: bytes, name: str, lost: list[str]) -> str | None:
    """None where it could not be written again."""
    value = text_of(written)
    if not _is_text(written):
        lost.append(name)
        if len(value.encode()) > SHORT_STRING:
            return None
    return value


def _is_text(written: bytes) -> bool:
    try:
        written.decode()
    except UnicodeDecodeError:
        return False
    return True


def _time(written: bytes, lost: list[str]) -> Any:
    try:
        return timestamp(written)[1]
    except Exception:
        lost.append("timestamp")
        return None


def _table(written: bytes, lost: list[str]) -> dict[str, Any]:
    try:
        return field_table(written)[1]
    except Exception:
        headers: dict[str, Any] = {}
        try:
            _read_table(written, headers, lost)
        except (IndexError, error):
            lost.append("all headers that follow")
        return headers


def _read_table(written: bytes, headers: dict[str, Any], lost: list[str]) -> None:
    at = 4
    while at < len(written):
        end = at + 1 + written[at]
        name = written[at + 1 : end]
        kind = written[end]
        size = 4 + LONG.unpack_from(written, end + 1)[0] if kind in _SIZED else _SIZES.get(kind)
        if size is None or end + 1 + size > len(written):
            raise IndexError(at)
        at = end + 1 + size
        try:
            headers[name.decode()] = embedded_value(written[end:at])[1]
        except Exception:
            lost.append(f"header {text_of(name)}")
