"""Servers that speak TLS, natively, each with a certificate of an authority that is made for this run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from messaging_contracts import brokers
from messaging_contracts.brokers.kafka import listener
from messaging_contracts.brokers.process import LOOPBACK, free_port

BROKERS = ("redis", "rabbitmq", "kafka")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test on several brokers is marked with the one that it runs on."""
    for item in items:
        if isinstance(item, pytest.Function) and "tests/tls" in item.path.as_posix():
            parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
            for fixture in {"server", "demanding_server"} & parameters.keys():
                item.add_marker(getattr(pytest.mark, parameters[fixture]))


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    """A connection over TLS ends when both sides have said so: one that was not waited for shows here."""
    yield
    gc.collect()


@dataclass(frozen=True)
class Files:
    """A certificate and its key, PEM, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True)
class Server:
    """A running broker with one listener that speaks TLS, whose certificate is for 127.0.0.1 alone."""

    name: str
    scheme: str
    port: int
    plain_port: int
    host: str = LOOPBACK

    def url(self, **options: object) -> str:
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
        return f"{self.scheme}://{self.host}:{self.port}?{query}"


SECURE = {"redis": "rediss", "rabbitmq": "amqps", "kafka": "kafka+ssl"}
PLAIN = {"rediss": "redis", "amqps": "amqp", "kafka+ssl": "kafka"}


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA()
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, identity: str) -> Files:
        issued = self._authority.issue_cert(identity)
        certificate, key = self._folder / f"{identity}.pem", self._folder / f"{identity}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        # Kafka reads keys in this form alone.
        loaded = load_pem_private_key(issued.private_key_pem.bytes(), None)
        key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Files(certificate, key, self.file)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that the servers' certificates are of."""
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signed nothing here."""
    return Authority(tmp_path_factory.mktemp("tls") / "strange")


def redis_configuration(port: int, files: Files, demanding: bool) -> dict[str, str]:
    return {
        "tls-port": str(port),
        "tls-cert-file": str(files.certificate),
        "tls-key-file": str(files.key),
        "tls-ca-cert-file": str(files.authority),
        "tls-auth-clients": "yes" if demanding else "optional",
    }


def rabbitmq_configuration(port: int, files: Files, demanding: bool) -> dict[str, str]:
    return {
        "listeners.ssl.1": f"{LOOPBACK}:{port}",
        "ssl_options.certfile": str(files.certificate),
        "ssl_options.keyfile": str(files.key),
        "ssl_options.cacertfile": str(files.authority),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true" if demanding else "false",
    }


def kafka_configuration(port: int, files: Files, demanding: bool) -> dict[str, str]:
    here = "listener.name.secure.ssl"
    return listener("SECURE", port, protocol="SSL") | {
        f"{here}.keystore.type": "PEM",
        f"{here}.keystore.certificate.chain": files.certificate.read_text(),
        f"{here}.keystore.key": files.key.read_text(),
        f"{here}.truststore.type": "PEM",
        f"{here}.truststore.certificates": files.authority.read_text(),
        f"{here}.client.auth": "required" if demanding else "requested",
    }


CONFIGURATIONS = {
    "redis": redis_configuration,
    "rabbitmq": rabbitmq_configuration,
    "kafka": kafka_configuration,
}


@pytest.fixture(scope="session", params=BROKERS)
def server(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Server]:
    """Each broker in turn; one start serves all tests."""
    with started(request.param, authority, demanding=False) as running:
        yield running


@pytest.fixture(scope="session", params=BROKERS)
def demanding_server(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Server]:
    """Each broker in turn, letting nobody in without a certificate of the same authority."""
    with started(request.param, authority, demanding=True) as running:
        yield running


@contextmanager
def started(name: str, authority: Authority, *, demanding: bool) -> Iterator[Server]:
    port = free_port()
    configuration = CONFIGURATIONS[name](port, authority.issue(LOOPBACK), demanding)
    with brokers.start(name, native=True, config=configuration) as broker:
        yield Server(name, SECURE[name], port, int(broker.url.rstrip("/").rpartition(":")[2]))
