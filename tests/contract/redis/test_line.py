"""One connection, exchange by exchange; and how many may be in use."""

import asyncio
import gc
import ssl
import weakref
from contextlib import asynccontextmanager
from types import SimpleNamespace

import hiredis
import pytest
import trustme
import uvloop
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from messaging_redis.clients import Pool
from messaging_redis.line import Line

PONG = b"+PONG\r\n"


class Connection(SimpleNamespace):
    """What a line needs of redis-py's."""


@asynccontextmanager
async def connected(*, server_tls=None, client_tls=None):
    """A line, the server's side of it, and what redis-py would wait for."""
    accepted = asyncio.get_running_loop().create_future()

    async def accept(reader, writer):
        accepted.set_result((reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_tls) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=client_tls)
        parser = SimpleNamespace(_reader=hiredis.Reader(notEnoughData=NOT_ENOUGH_DATA))
        line = Line(Connection(_reader=reader, _writer=writer, _parser=parser), 0)
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


async def test_a_large_reply_may_take_longer_than_the_patience_while_it_comes():
    async with connected() as (line, asked, server, _):
        waiting = asyncio.ensure_future(line.converse([("GET", "a")], 1))
        await asked.readuntil(b"$1\r\na\r\n")
        server.write(b"$12\r\n")
        for _ in range(12):
            server.write(b"x")
            await asyncio.wait((waiting,), timeout=0.1)
        server.write(b"\r\n")

        assert await waiting == [b"x" * 12]


async def test_a_reply_that_stops_halfway_ends_the_line_in_time():
    async with connected() as (line, asked, server, _):
        waiting = asyncio.ensure_future(line.converse([("GET", "a")], 0.05))
        await asked.readuntil(b"$1\r\na\r\n")
        server.write(b"$12\r\nxx")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 60)
        assert not line.sound


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


async def test_the_end_of_a_connection_is_told_at_once_while_much_is_unwritten():
    async with connected() as (line, _, server, writer):
        waiting = line.converse([("SET", "a", bytes(20_000_000))], 5)
        server.write_eof()

        with pytest.raises(OSError, match="closed"):
            await waiting
        assert not line.sound
        writer.transport.abort()


async def test_a_late_reply_to_what_was_cancelled_answers_nobody():
    async with connected() as (line, asked, server, _):
        waiting = asyncio.ensure_future(line.converse([("PING",)], 5))
        await asked.readuntil(b"PING\r\n")
        waiting.cancel()
        server.write(PONG)
        while line.sound:
            await asyncio.sleep(0)

        with pytest.raises(OSError, match="closed"):
            await line.converse([("GET", "a")], 5)


async def test_what_the_server_pushes_answers_nobody():
    async with connected() as (line, asked, server, _):
        waiting = line.converse([("PING",), ("GET", "a")], 5)
        await asked.readuntil(b"$1\r\na\r\n")
        push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"
        server.write(push + PONG + push + b"$1\r\nb\r\n")

        assert await waiting == [b"PONG", b"b"]
        assert line.sound


async def test_an_idle_line_keeps_no_replies():
    async with connected() as (line, asked, server, _):
        waiting = line.converse([("PING",)], 5)
        await asked.readuntil(b"PING\r\n")
        server.write(PONG)

        replies = await waiting
        assert line not in gc.get_referrers(replies)


async def test_a_line_that_ended_is_kept_by_nothing():
    async with connected() as (line, asked, server, writer):
        await answered(line, asked, server, 3600)
        connection = weakref.ref(line.connection)
        writer.close()
        await writer.wait_closed()
    del line
    gc.collect()

    assert connection() is None


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_every_transport_brings_replies_and_tells_of_the_end(new_loop, tls):
    contexts = {}
    if tls:
        authority = trustme.CA()
        server_tls, client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server_tls)
        authority.configure_trust(client_tls)
        contexts = {"server_tls": server_tls, "client_tls": client_tls}

    async def talk():
        async with connected(**contexts) as (line, asked, server, _):
            assert line.lasting
            await answered(line, asked, server, 5)
            waiting = line.converse([("GET", "a")], 5)
            server.write(b"$1000000\r\n%b\r\n" % bytes(1_000_000))
            assert await waiting == [bytes(1_000_000)]
            assert line.sound

            waiting = line.converse([("GET", "b")], 5)
            await asked.readuntil(b"$1\r\nb\r\n")
            server.close()
            with pytest.raises(OSError, match="closed"):
                await waiting
            assert not line.sound
        async with connected(**contexts) as (line, asked, _, _):
            with pytest.raises(TimeoutError):
                await line.converse([("PING",)], 0.05)
            assert not line.sound
            assert await asked.read() == b"*1\r\n$4\r\nPING\r\n"  # and then the end

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(talk())


async def test_connections_in_use_are_bounded_and_who_is_cancelled_gives_its_turn_on():
    pool = Pool(None, 1)
    assert pool.slots.take_now(1)
    assert not pool.slots.take_now(1)
    first, second, third = [asyncio.create_task(pool.slots.take(1)) for _ in range(3)]
    await asyncio.sleep(0)

    first.cancel()  # while it waits
    await asyncio.wait((first,))
    pool.slots.give_back(1)
    second.cancel()  # when it has its turn, and does not know of it
    await asyncio.wait((second, third))

    assert first.cancelled()
    assert second.cancelled()
    assert third.result() is None
    pool.slots.give_back(1)
    assert pool.slots.take_now(1)
    assert not pool.slots.take_now(1)
