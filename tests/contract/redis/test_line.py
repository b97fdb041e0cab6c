"""One connection, exchange by exchange; and how many may be in use."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import hiredis
import pytest
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from messaging_redis.clients import Pool
from messaging_redis.line import Line

PONG = b"+PONG\r\n"


@asynccontextmanager
async def connected():
    """A line, the server's side of it, and what redis-py would wait for."""
    accepted = asyncio.get_running_loop().create_future()

    async def accept(reader, writer):
        accepted.set_result((reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        parser = SimpleNamespace(_reader=hiredis.Reader(notEnoughData=NOT_ENOUGH_DATA))
        line = Line(SimpleNamespace(_reader=reader, _writer=writer, _parser=parser), 0)
        asked, server = await accepted
        try:
            yield line, asked, server, writer
        finally:
            writer.close()
            server.close()
            await server.wait_closed()


async def answered(line, asked, server, patience):
    waiting = line.converse([("PING",)], patience)
    await asked.readuntil(b"PING\r\n")
    server.write(PONG)
    assert await waiting == [b"PONG"]


async def test_a_reply_that_comes_in_pieces_is_one_reply():
    async with connected() as (line, asked, server, _):
        waiting = asyncio.ensure_future(line.converse([("PING",), ("GET", "a")], 5))
        await asked.readuntil(b"$1\r\na\r\n")
        for piece in (b"+PO", b"NG\r\n$3\r\nab", b"c\r\n"):
            assert not waiting.done()
            server.write(piece)
            await server.drain()
            await asyncio.sleep(0)

        assert await waiting == [b"PONG", b"abc"]
        assert line.sound


async def test_a_line_that_gets_no_reply_is_given_up_in_time_whatever_was_waited_for_before():
    async with connected() as (line, asked, server, _):
        await answered(line, asked, server, 60)

        waiting = asyncio.ensure_future(line.converse([("PING",)], 0.05))
        await asyncio.wait((waiting,), timeout=5)

        assert isinstance(waiting.exception(), TimeoutError)
        assert not line.sound
        assert await asked.read() == b"*1\r\n$4\r\nPING\r\n"  # and then the end


async def test_what_was_waited_for_before_ends_no_later_exchange():
    async with connected() as (line, asked, server, _):
        await answered(line, asked, server, 0.05)
        waiting = asyncio.ensure_future(line.converse([("PING",)], 5))
        await asyncio.wait((waiting,), timeout=0.15)

        server.write(PONG)
        assert await waiting == [b"PONG"]


async def test_a_line_on_which_something_comes_that_nobody_asked_for_is_not_used_again():
    async with connected() as (line, asked, server, _):
        await answered(line, asked, server, 5)
        assert line.sound

        server.write(PONG)
        while line.sound:
            await asyncio.sleep(0)


async def test_more_replies_than_were_asked_for_end_the_line():
    async with connected() as (line, asked, server, _):
        waiting = line.converse([("PING",)], 5)
        await asked.readuntil(b"PING\r\n")
        server.write(PONG + PONG)

        assert await waiting == [b"PONG"]
        assert not line.sound


@pytest.mark.parametrize("sent", [b"", b"+PO", b"?\r\n"])
async def test_who_waits_learns_that_the_connection_ended_or_makes_no_sense(sent):
    async with connected() as (line, asked, server, writer):
        waiting = line.converse([("PING",)], 5)
        await asked.readuntil(b"PING\r\n")
        server.write(sent)
        if not sent.endswith(b"\n"):
            server.close()

        with pytest.raises((OSError, hiredis.ProtocolError)):
            await waiting
        assert not line.sound
        writer.close()
        await writer.wait_closed()  # redis-py waits for it, too


async def test_connections_in_use_are_bounded_and_who_is_cancelled_gives_its_turn_on():
    pool = Pool(None, 1)
    assert pool.occupy()
    assert not pool.occupy()
    first, second, third = [asyncio.create_task(pool.turn()) for _ in range(3)]
    await asyncio.sleep(0)

    first.cancel()  # while it waits
    await asyncio.wait((first,))
    pool.release()
    second.cancel()  # when it has its turn, and does not know of it
    await asyncio.wait((second, third))

    assert first.cancelled()
    assert second.cancelled()
    assert third.result() is None
    pool.release()
    assert pool.occupy()
    assert not pool.occupy()
