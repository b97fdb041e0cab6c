"""Frames of foreign messages that aiormq reads itself, written anew where pamqp refuses them (19).

aiormq ends the connection for such a frame, and the message would come again to end the next. So it gets what can be
read of it: names and properties with their bytes written out, or without those that cannot be.
"""

from __future__ import annotations

from typing import Final

from pamqp.frame import unmarshal

from messaging_rabbitmq.amqp import (
    CONTENT,
    DELIVER,
    END,
    FRAME,
    GET_OK,
    HEADER,
    LONG,
    METHOD,
    RETURN,
    SHORT_STRING,
    TAG,
)
from messaging_rabbitmq.salvage import readable, text_of, writable

_NAME: Final = 0
_FIELDS: Final = {
    DELIVER: (_NAME, TAG.size, _NAME, _NAME),
    GET_OK: (TAG.size, _NAME, _NAME, LONG.size),
    RETURN: (2, _NAME, _NAME, _NAME),
}
"""Of each method that tells of a message: names, and the bytes of all else."""


def mended(kind: int, channel: int, data: bytes, start: int, end: int) -> bytes | None:
    """The frame to take instead of `data[start:end]`; None where pamqp reads it, or nothing can be read of it."""
    begun = start + FRAME.size
    if kind != HEADER and not (kind == METHOD and data[begun : begun + 4] in _FIELDS):
        return None
    if _is_read(data[start:end]):
        return None
    payload = data[begun : end - 1]
    if kind == METHOD:
        return _frame(METHOD, channel, _named(payload))
    if len(payload) < CONTENT.size:
        return None
    beginning, properties = payload[: CONTENT.size], readable(payload[CONTENT.size :])
    properties.headers = writable(properties.headers or {}) or None
    anew = _frame(HEADER, channel, beginning + properties.marshal())
    if not _is_read(anew):  # what could just be read, nested as it is, may go one level too deep now
        properties.headers = None
        anew = _frame(HEADER, channel, beginning + properties.marshal())
    return anew


def _is_read(frame: bytes) -> bool:
    try:
        unmarshal(frame)
    except Exception:  # whoever wrote it: RecursionError of nested tables, OverflowError of times
        return False
    return True


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return FRAME.pack(kind, channel, len(payload)) + payload + bytes((END,))


def _named(payload: bytes) -> bytes:
    """The method with names that are text. Only the broker writes methods: they are whole."""
    pieces, at = [payload[:4]], 4
    for size in _FIELDS[payload[:4]]:
        if size == _NAME:
            end = at + 1 + payload[at]
            pieces.append(_text(payload[at + 1 : end]))
        else:
            end = at + size
            pieces.append(payload[at:end])
        at = end
    return b"".join(pieces)


def _text(name: bytes) -> bytes:
    text = text_of(name).encode()[:SHORT_STRING].decode(errors="ignore").encode()
    return bytes((len(text),)) + text
