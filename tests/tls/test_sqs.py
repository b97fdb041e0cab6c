"""The same for SQS and SNS: LocalStack, whose port speaks TLS to those who begin it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from messaging import ConfigurationError, ConnectionFailed, Topic, connect
from messaging_contracts import brokers
from messaging_contracts.brokers.process import LOOPBACK
from tests.tls.conftest import Authority

pytestmark = pytest.mark.sqs
jobs = Topic("jobs", str)


@pytest.fixture(scope="module")
def port(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """LocalStack's port; its certificate is for 127.0.0.1 alone."""
    issued = authority.issue(LOOPBACK)
    both = tmp_path_factory.mktemp("localstack") / "server.pem"
    both.write_text(issued.key.read_text() + issued.certificate.read_text())
    with (
        brokers.start("sqs", native=True, config={"CUSTOM_SSL_CERT_PATH": str(both)}) as broker,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in broker.client_environment.items():
            patch.setenv(name, value)
        yield int(broker.url.rpartition(":")[2])


def url(port: int, host: str = LOOPBACK, ca: Path | None = None) -> str:
    endpoint = quote(f"https://{host}:{port}", safe="")
    return f"sqs://us-east-1?endpoint_url={endpoint}" + (f"&ca={ca}" if ca else "")


async def test_messages_pass_when_the_authority_is_named(port: int, authority: Authority) -> None:
    async with connect(url(port, ca=authority.file)) as bus:
        await bus.declare(jobs, groups=["workers"])
        await bus.publish(jobs, "hello", timeout=20)
        async with asyncio.timeout(20), bus.consume(jobs, group="workers") as pull:
            assert (await anext(pull)).payload == "hello"


async def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(port: int) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with connect(url(port)):
            pass


async def test_a_certificate_of_another_authority_than_the_named_one_is_refused(
    port: int, stranger: Authority
) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with connect(url(port, ca=stranger.file)):
            pass


async def test_a_certificate_for_another_host_is_refused(port: int, authority: Authority) -> None:
    with pytest.raises(ConnectionFailed, match=r"(?i)hostname .*localhost"):
        async with connect(url(port, host="localhost", ca=authority.file)):
            pass


async def test_a_file_that_cannot_be_used_is_named(port: int, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    with pytest.raises(ConfigurationError, match=r"wrong\.pem"):
        async with connect(url(port, ca=wrong)):
            pass
    wrong.write_text("hello")
    with pytest.raises(ConfigurationError, match=r"wrong\.pem"):
        async with connect(url(port, ca=wrong)):
            pass
