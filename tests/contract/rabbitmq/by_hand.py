"""What other programs can write and pamqp would refuse to."""

from aiormq.abc import AbstractChannel, ChannelFrame

MICROSECONDS = (1_700_000_000_000_000).to_bytes(8, "big")
"""A timestamp beyond the calendar."""


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def long(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def nested(depth: int) -> bytes:
    """A table in a table, and so on."""
    table = b""
    for _ in range(depth):
        table = b"\x01kF" + long(table)
    return long(table)


def frame(kind: int, number: int, payload: bytes) -> bytes:
    return bytes((kind,)) + number.to_bytes(2, "big") + long(payload) + b"\xce"


def header(number: int, size: int, flags: int, fields: bytes) -> bytes:
    """The content header of a body of this size, with these properties."""
    payload = b"\x00\x3c\0\0" + size.to_bytes(8, "big") + flags.to_bytes(2, "big") + fields
    return frame(2, number, payload)


async def publish(
    channel: AbstractChannel, exchange: str, key: bytes, flags: int, fields: bytes, body: bytes
) -> None:
    """Publish with these properties."""
    number = channel.number  # type: ignore[attr-defined]  # all channels have it
    method = b"\x00\x3c\x00\x28\0\0" + short(exchange.encode()) + short(key) + b"\0"
    data = frame(1, number, method) + header(number, len(body), flags, fields) + frame(3, number, body)
    await channel.write_queue.put(ChannelFrame(payload=data, should_close=False))  # type: ignore[attr-defined]
