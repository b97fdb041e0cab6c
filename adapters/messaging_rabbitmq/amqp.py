"""AMQP 0-9-1 in bytes: what frames, methods and content headers consist of (4.2.3, 4.2.6)."""

from __future__ import annotations

from struct import Struct
from typing import Final

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME: Final = Struct(">BHI")
"""Kind, channel and size; then the payload and an end mark."""
END = 0xCE
AROUND_FRAME = 8
"""Bytes of a frame beside its payload."""

CLOSE, CLOSE_OK = b"\x00\x14\x00\x28", b"\x00\x14\x00\x29"
"""Of a channel. So a method's payload begins."""
DELIVER, GET_OK, RETURN = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x47", b"\x00\x3c\x00\x32"
ACK, NACK, REJECT = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78", b"\x00\x3c\x00\x5a"
TAG: Final = Struct(">QB")
"""A delivery tag, and flags."""

BASIC = 60
"""The class of all content."""
CONTENT: Final = Struct(">HHQ")
"""Class, weight, and the size of the body; then the properties, which are flags and fields."""
FLAGS: Final = Struct(">H")
CONTENT_TYPE, ENCODING, HEADERS, MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
CORRELATION, REPLY_TO, MESSAGE_ID, TIME = 1 << 10, 1 << 9, 1 << 7, 1 << 6
TYPE, APP = 1 << 5, 1 << 3
TRANSIENT, PERSISTENT = 1, 2
"""Modes of delivery."""

LONG: Final = Struct(">I")
LONG_LONG: Final = Struct(">Q")
TEXT = b"S"
"""The kind of a field of a table whose value is a text."""
SHORT_STRING = 255
"""Bytes of a short string, at most."""
