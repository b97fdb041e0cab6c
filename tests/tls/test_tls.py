"""A connection over TLS is verified unless it is said otherwise, and tells in words what is wrong."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from messaging import Bus, ConfigurationError, ConnectionFailed, Topic, connect
from messaging_contracts import brokers
from tests.tls.conftest import PLAIN, Authority, Server

jobs = Topic("jobs", str, partitions=2)


async def passes(bus: Bus) -> None:
    """A message goes there and comes back."""
    await bus.declare(jobs, groups=["workers"])
    await bus.publish(jobs, "hello", timeout=20)
    async with asyncio.timeout(20), bus.consume(jobs, group="workers") as pull:
        assert (await anext(pull)).payload == "hello"
    await bus.delete_group(jobs, "workers")


async def test_messages_pass_when_the_authority_is_named(server: Server, authority: Authority) -> None:
    async with connect(server.url(ca=authority.file)) as bus:
        await passes(bus)


async def test_an_authority_of_the_system_need_not_be_named(
    server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with connect(server.url()) as bus:
        assert (await bus.health()).connected


async def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(server: Server) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate") as raised:
        async with connect(server.url()):
            pass
    assert f"127.0.0.1:{server.port}" in str(raised.value)


async def test_a_certificate_of_another_authority_than_the_named_one_is_refused(
    server: Server, stranger: Authority
) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with connect(server.url(ca=stranger.file)):
            pass


async def test_a_certificate_for_another_host_is_refused(server: Server, authority: Authority) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate.*localhost"):
        async with connect(replace(server, host="localhost").url(ca=authority.file)):
            pass


async def test_the_name_alone_can_be_left_unchecked_by_saying_so(
    server: Server, authority: Authority, stranger: Authority
) -> None:
    async with connect(
        replace(server, host="localhost").url(ca=authority.file, check_hostname="false")
    ) as bus:
        assert (await bus.health()).connected
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with connect(replace(server, host="localhost").url(ca=stranger.file, check_hostname="false")):
            pass


def test_a_server_named_by_the_environment_is_asked_with_the_options_of_its_url(
    server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = brokers.environment_variable(server.name)
    monkeypatch.setenv(variable, server.url(ca=authority.file))
    with brokers.start(server.name) as found:
        assert found.version[0].isdigit()
    monkeypatch.setenv(variable, server.url())
    with pytest.raises(brokers.BrokerUnavailable, match=r"(?i)certificate"):
        brokers.start(server.name)


@pytest.mark.parametrize("option", ["ca", "cert"])
async def test_a_file_that_is_not_there_is_named(server: Server, option: str, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(ConfigurationError, match=r"absent\.pem"):
        async with connect(server.url(**{option: absent})):
            pass


async def test_a_file_that_is_no_certificate_is_named(server: Server, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("hello")
    with pytest.raises(ConfigurationError, match=r"wrong\.pem"):
        async with connect(server.url(ca=wrong)):
            pass


async def test_a_client_can_show_a_certificate_of_its_own(server: Server, authority: Authority) -> None:
    own = authority.issue("client.example")
    async with connect(server.url(ca=authority.file, cert=own.certificate, key=own.key)) as bus:
        assert (await bus.health()).connected


async def test_where_a_certificate_is_demanded_a_client_without_one_is_refused(
    demanding_server: Server, authority: Authority
) -> None:
    # The server's alert comes after the handshake (TLS 1.3): its reset of the connection may be faster.
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate|handshake|reset"):
        async with connect(demanding_server.url(ca=authority.file)):
            pass


async def test_where_a_certificate_is_demanded_another_authoritys_is_refused(
    demanding_server: Server, authority: Authority, stranger: Authority
) -> None:
    own = stranger.issue("client.example")
    with pytest.raises(ConnectionFailed):
        async with connect(demanding_server.url(ca=authority.file, cert=own.certificate, key=own.key)):
            pass


async def test_where_a_certificate_is_demanded_messages_pass_with_one(
    demanding_server: Server, authority: Authority
) -> None:
    own = authority.issue("client.example")
    async with connect(demanding_server.url(ca=authority.file, cert=own.certificate, key=own.key)) as bus:
        await passes(bus)


async def test_a_client_without_tls_fails_soon_at_a_listener_with_it(server: Server) -> None:
    before = time.monotonic()
    with pytest.raises(ConnectionFailed, match=str(server.port)):
        async with connect(replace(server, scheme=PLAIN[server.scheme]).url()):
            pass
    assert time.monotonic() - before < 15


async def test_a_client_with_tls_fails_soon_at_a_listener_without_it(
    server: Server, authority: Authority
) -> None:
    plain = replace(server, port=server.plain_port)
    before = time.monotonic()
    with pytest.raises(ConnectionFailed, match=str(server.plain_port)):
        async with connect(plain.url(ca=authority.file)):
            pass
    assert time.monotonic() - before < 15
