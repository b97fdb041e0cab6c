"""Wrong credentials, and connections that the broker refuses in its own words."""

import asyncio
import time
from urllib.parse import urlsplit

import pytest
from pamqp.commands import Connection
from pamqp.frame import marshal

from messaging.errors import AuthenticationFailed, ConfigurationError, ConnectionFailed
from messaging_contracts.faults.proxy import Proxy
from tests.contract.bench import ids, publish, receive
from tests.contract.rabbitmq.support import Bench


class RefusingProxy(Proxy):
    """Refuses connections in the broker's words, while it has any."""

    refusal: str | None = None

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, allowed: asyncio.Event) -> None:
        if self.refusal is not None and data == marshal(Connection.OpenOk(), 0):
            data = marshal(Connection.Close(530, self.refusal, 10, 40), 0)
        await super()._write(writer, data, allowed)


async def test_wrong_credentials_are_told_at_once_without_the_password(bench: Bench) -> None:
    parts = urlsplit(bench.url)
    url = f"amqp://guest:hunter2@{parts.hostname}:{parts.port}/"
    adapter = bench.unopened(url)
    started = time.monotonic()

    with pytest.raises(AuthenticationFailed, match="guest") as refused:
        await adapter.open()

    assert time.monotonic() - started < 5
    assert "hunter2" not in str(refused.value) + repr(adapter._settings)


async def test_a_missing_virtual_host_is_a_matter_of_configuration(bench: Bench) -> None:
    parts = urlsplit(bench.url)
    adapter = bench.unopened(
        f"amqp://{parts.username}:{parts.password}@{parts.hostname}:{parts.port}/nowhere"
    )
    with pytest.raises(ConfigurationError, match="no virtual host 'nowhere'"):
        await adapter.open()


@pytest.mark.parametrize(
    "words",
    [
        "NOT_ALLOWED - connection refused for user 'guest': user connection limit (2) is reached",
        "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (2) is reached",
        "NOT_ALLOWED - access to vhost '/' refused for user 'guest', backend http returned an error: timeout",
        "NOT_ALLOWED - vhost / not found",
    ],
)
async def test_a_refusal_that_may_pass_ends_nothing(bench: Bench, words: str) -> None:
    """Half-open connections count for the limit until their heartbeats end; a virtual host may be imported again."""
    proxy, adapter = await bench.behind(RefusingProxy)
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    assert await consumer.receive(1, 0.1) == ()

    proxy.refusal = words
    await proxy.close_connections()
    for _ in range(2):
        with pytest.raises(ConnectionFailed) as refused:
            await consumer.receive(1, 0.5)
    assert not isinstance(refused.value, AuthenticationFailed)
    assert words.partition(" - ")[2] in str(refused.value) or "no virtual host '/'" in str(refused.value)
    assert not (await adapter.health()).connected

    proxy.refusal = None
    await publish(adapter, group.topic, "m1")
    assert ids(await receive(consumer, 1)) == ["m1"]


async def test_a_virtual_host_that_is_not_for_this_user_any_more_is_told_as_such(bench: Bench) -> None:
    proxy, adapter = await bench.behind(RefusingProxy)
    consumer = bench.consumer(adapter, await bench.group(adapter))
    user = urlsplit(bench.url).username

    proxy.refusal = f"NOT_ALLOWED - access to vhost '/' refused for user '{user}'"
    await proxy.close_connections()
    async with asyncio.timeout(15):
        while adapter._session.consuming.current is not None:
            await asyncio.sleep(0)
    with pytest.raises(AuthenticationFailed, match="refuses user"):
        await consumer.receive(1, 0.5)
