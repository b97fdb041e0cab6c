"""What no client of RabbitMQ exceeds: the library's own frames, made beforehand, over a plain socket."""

# pyright: reportMissingImports=false
# kombu is installed by `make bench` only.
from __future__ import annotations

import asyncio
from itertools import accumulate
from struct import Struct
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Incomplete, Measured, Moment
from benchmarks.paths import ours
from benchmarks.payload import order
from messaging import connect
from messaging_rabbitmq.amqp import ACK, AROUND_FRAME, METHOD
from messaging_rabbitmq.frames import USUAL_FRAME, marshalled, table_limit
from messaging_rabbitmq.names import Names
from messaging_rabbitmq.properties import packed

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from messaging.adapter import Outgoing

CONFIRM = Struct(">BHI4sQBB")
"""A frame: kind, channel, size, method, delivery tag, whether it is for all before it too, end."""


async def prepared_frames(url: str, messages: int, *, window: int = 256) -> Measured:
    """To a topic as the library declares it, `window` unconfirmed at most."""
    orders = ours.topic()
    async with connect(url) as bus:
        await bus.declare(orders, groups=["bench"])
        sent = ours.prepared(bus, orders, map(order, range(messages)))
        measured = await asyncio.to_thread(_publish, url, sent, window)
        await bus.delete_group(orders, "bench")
        return measured


def _publish(url: str, messages: Sequence[Outgoing], window: int) -> Measured:
    from kombu.connection import Connection

    with Connection(url) as opened:
        channel: Any = opened.default_channel
        channel.confirm_select()
        frames = [_frames(channel.channel_id, one) for one in messages]
        start = Moment.now()
        _send(channel.connection.transport.sock, frames, window)
        return start.until(Moment.now(), len(frames), handled=len(frames))


def _frames(channel: int, one: Outgoing) -> bytes:
    exchange, key = Names(None).exchange(one.topic), str(one.partition)
    limit = len(one.message.body) + USUAL_FRAME
    parcel = packed(exchange, key, one.message, limit=limit, table_limit=table_limit(USUAL_FRAME))
    return marshalled(channel, USUAL_FRAME - AROUND_FRAME, [parcel])


def _send(broker: socket.socket, frames: Sequence[bytes], window: int) -> None:
    """All of them; what the window has room for in one write."""
    data, ends = memoryview(b"".join(frames)), [0, *accumulate(map(len, frames))]
    sent = confirmed = 0
    early = set[int]()  # confirmed before some that went out before them
    come = b""
    while confirmed < len(frames):
        most = min(confirmed + len(early) + window, len(frames))
        broker.sendall(data[ends[sent] : ends[most]])
        sent = most
        if not (read := broker.recv(USUAL_FRAME)):
            raise Incomplete("the broker closed the connection")
        come += read
        while len(come) >= CONFIRM.size:
            kind, _, _, method, tag, multiple, _ = CONFIRM.unpack_from(come)
            if (kind, method) != (METHOD, ACK):
                raise Incomplete(f"the broker answered {come!r} instead of a confirm")
            come = come[CONFIRM.size :]
            early = {one for one in early if one > tag} if multiple else early | {tag}
            confirmed = max(confirmed, tag) if multiple else confirmed
        while confirmed + 1 in early:
            confirmed += 1
            early.remove(confirmed)
