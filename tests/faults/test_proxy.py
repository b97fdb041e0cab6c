"""The proxy does to connections what it says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from messaging_contracts.faults.proxy import LOOPBACK, Proxy

SOON = 5.0


@asynccontextmanager
async def echo_behind_proxy():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, LOOPBACK, 0)
    async with server, Proxy(LOOPBACK, server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@asynccontextmanager
async def connection(proxy: Proxy):
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), SOON)


async def test_it_forwards_both_ways():
    async with echo_behind_proxy() as proxy, connection(proxy) as (reader, writer):
        assert await said(reader, writer, b"x" * 200_000) == b"x" * 200_000


async def test_a_cut_ends_connections_and_new_ones_until_it_heals():
    async with echo_behind_proxy() as proxy:
        async with connection(proxy) as (reader, writer):
            await said(reader, writer, b"x")
            await proxy.cut()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), SOON)
        async with connection(proxy) as (reader, writer):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await said(reader, writer, b"x")
        proxy.heal()
        async with connection(proxy) as (reader, writer):
            assert await said(reader, writer, b"x") == b"x"


async def test_a_black_hole_keeps_the_connection_and_loses_nothing():
    async with echo_behind_proxy() as proxy, connection(proxy) as (reader, writer):
        await said(reader, writer, b"x")
        proxy.black_hole()
        writer.write(b"y")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        proxy.heal()
        assert await asyncio.wait_for(reader.readexactly(1), SOON) == b"y"


async def test_a_delay_is_kept_in_each_direction():
    async with echo_behind_proxy() as proxy, connection(proxy) as (reader, writer):
        await said(reader, writer, b"x")
        proxy.delay(0.1)
        start = asyncio.get_running_loop().time()
        await said(reader, writer, b"y")
        assert asyncio.get_running_loop().time() - start >= 0.2


async def test_a_drip_forwards_so_many_bytes_in_so_much_time():
    async with echo_behind_proxy() as proxy, connection(proxy) as (reader, writer):
        await said(reader, writer, b"x")
        proxy.drip(10, 0.02)
        start = asyncio.get_running_loop().time()
        assert await said(reader, writer, b"y" * 100) == b"y" * 100
        assert asyncio.get_running_loop().time() - start >= 0.18


async def test_connections_that_the_server_closes_can_be_made_again():
    async with echo_behind_proxy() as proxy:
        async with connection(proxy) as (reader, writer):
            await said(reader, writer, b"x")
            await proxy.close_connections()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), SOON)
        async with connection(proxy) as (reader, writer):
            assert await said(reader, writer, b"x") == b"x"


async def test_connections_end_in_an_orderly_way_after_what_was_said():
    async with echo_behind_proxy() as proxy:
        async with connection(proxy) as (reader, writer):
            writer.write(b"unread" * 10_000)
            assert await asyncio.wait_for(reader.readexactly(6), SOON) == b"unread"
            closing = asyncio.create_task(proxy.close_connections(orderly=True))
            assert (await asyncio.wait_for(reader.read(), SOON)).startswith(b"unread")
            writer.write_eof()
            await closing
        async with connection(proxy) as (reader, writer):
            assert await said(reader, writer, b"x") == b"x"


async def test_connections_that_are_not_ended_in_an_orderly_way_are_reset():
    async with echo_behind_proxy() as proxy, connection(proxy) as (reader, writer):
        await said(reader, writer, b"x")
        await proxy.close_connections()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), SOON)


async def test_a_reset_on_one_side_ends_the_connection_on_the_other():
    async with (
        echo_behind_proxy() as server,
        Proxy(LOOPBACK, server.port) as proxy,
        connection(proxy) as (reader, writer),
    ):
        await said(reader, writer, b"x")
        await server.close_connections()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), SOON)
