"""One start is shared by all of these: it takes seconds."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from messaging_contracts import brokers
from messaging_contracts.brokers.kafka import VERSION, listener
from messaging_contracts.brokers.kafka_protocol import ask
from messaging_contracts.brokers.process import NativeBroker, free_port
from tests.brokers.processes import LOOPBACK, left_behind, listening_addresses

pytestmark = pytest.mark.kafka
PASSWORD = 's3/cr@t "té'
ADVERTISED = 15_001


class UnsignedToken(AbstractTokenProvider):
    async def token(self) -> str:
        now = time.time()
        parts = ({"alg": "none"}, {"sub": "shop", "iat": now, "exp": now + 60})
        encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        return ".".join(encoded) + "."


MECHANISMS: dict[str, dict[str, Any]] = {
    **{
        name: {"sasl_plain_username": "shop", "sasl_plain_password": PASSWORD}
        for name in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    },
    "OAUTHBEARER": {"sasl_oauth_token_provider": UnsignedToken()},
}


@pytest.fixture(scope="module")
def kafka() -> Iterator[NativeBroker]:
    second = listener("SECOND", free_port(), advertised=f"127.0.0.1:{ADVERTISED}")
    broker = brokers.start("kafka", native=True, user="shop", password=PASSWORD, config=second)
    assert isinstance(broker, NativeBroker)
    yield broker
    broker.stop()
    assert not left_behind(broker.home)
    assert not broker.home.exists()


@asynccontextmanager
async def admin(kafka: NativeBroker, mechanism: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(
        bootstrap_servers=f"127.0.0.1:{kafka.port}",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism=mechanism,
        **MECHANISMS[mechanism],
    )
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def test_the_url_answers_and_the_version_is_the_servers(kafka: NativeBroker) -> None:
    assert ask(kafka.url, timeout=5) == kafka.version
    assert VERSION.startswith(kafka.version)


def test_wrong_credentials_are_refused(kafka: NativeBroker) -> None:
    with pytest.raises(PermissionError):
        ask(f"kafka://shop:wrong@127.0.0.1:{kafka.port}", timeout=5)
    with pytest.raises(ConnectionError, match="without credentials"):
        ask(f"kafka://127.0.0.1:{kafka.port}", timeout=5)


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_clients_log_in_by_each_mechanism(kafka: NativeBroker, mechanism: str) -> None:
    async with admin(kafka, mechanism) as client:
        assert isinstance(await client.list_topics(), list)


def test_a_password_is_not_shown(kafka: NativeBroker) -> None:
    assert "cr@t" not in repr(kafka)
    assert not any("cr@t" in line for line in left_behind(kafka.home))
    assert (kafka.home / "server.properties").stat().st_mode & 0o077 == 0


def test_it_listens_on_loopback_alone(kafka: NativeBroker) -> None:
    assert listening_addresses(kafka) <= set(LOOPBACK)


async def test_a_listener_sends_its_clients_to_the_advertised_address(kafka: NativeBroker) -> None:
    settings = (kafka.home / "server.properties").read_text().splitlines()
    (listeners,) = (line for line in settings if line.startswith("listeners="))
    client = AIOKafkaAdminClient(bootstrap_servers=listeners.rpartition("SECOND://")[2])
    await client._client.bootstrap()
    (node,) = client._client.cluster.brokers()
    await client.close()
    assert (node.host, node.port) == ("127.0.0.1", ADVERTISED)


def test_a_paused_broker_accepts_and_does_not_answer(kafka: NativeBroker) -> None:
    kafka.pause()
    with pytest.raises(TimeoutError):
        ask(kafka.url, timeout=0.3)
    kafka.resume()
    assert ask(kafka.url, timeout=5)


@pytest.mark.slow
async def test_kill_and_restart_keep_port_credentials_and_data(kafka: NativeBroker) -> None:
    pid, url = kafka.pid, kafka.url
    async with admin(kafka, "PLAIN") as client:
        await client.create_topics([NewTopic("kept", num_partitions=3, replication_factor=1)])
    kafka.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(url, timeout=1)
    kafka.restart()
    assert kafka.url == url
    assert kafka.pid != pid
    assert "java" in (Path("/proc") / str(kafka.pid) / "comm").read_text()
    async with admin(kafka, "SCRAM-SHA-256") as client:
        assert "kept" in await client.list_topics()


def test_wrong_configuration_fails_with_what_the_server_said() -> None:
    with pytest.raises(brokers.BrokerUnavailable, match=r"num\.io\.threads"):
        brokers.start("kafka", config={"num.io.threads": "0"})
