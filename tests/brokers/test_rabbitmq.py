"""One start is shared by all of these: it takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from messaging_contracts import brokers
from messaging_contracts.brokers.amqp import handshake
from messaging_contracts.brokers.process import NativeBroker
from tests.brokers.processes import LOOPBACK, left_behind, listening_addresses

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[NativeBroker]:
    with pytest.MonkeyPatch.context() as patch:
        # Settings meant for another broker must not reach ours.
        patch.setenv("RABBITMQ_NODENAME", "another")
        broker = brokers.start("rabbitmq", native=True, user="shop", password="s3/cr@t")
        assert isinstance(broker, NativeBroker)
        yield broker
        broker.stop()
        assert not left_behind(broker.home)
        assert not broker.home.exists()


def test_the_url_answers_and_the_version_is_the_servers(rabbitmq: NativeBroker) -> None:
    assert handshake(rabbitmq.url, timeout=5) == rabbitmq.version
    assert rabbitmq.version[0].isdigit()


def test_wrong_credentials_are_refused(rabbitmq: NativeBroker) -> None:
    with pytest.raises(PermissionError, match="ACCESS_REFUSED"):
        handshake(f"amqp://shop:wrong@127.0.0.1:{rabbitmq.port}/", timeout=5)


def test_an_unknown_virtual_host_is_refused(rabbitmq: NativeBroker) -> None:
    with pytest.raises(PermissionError, match="vhost"):
        handshake(rabbitmq.url + "nowhere", timeout=5)


def test_the_process_id_is_the_servers(rabbitmq: NativeBroker) -> None:
    assert "beam" in (Path("/proc") / str(rabbitmq.pid) / "comm").read_text()


def test_a_password_is_not_shown(rabbitmq: NativeBroker) -> None:
    assert "cr@t" not in repr(rabbitmq)
    assert not any("s3/cr" in line for line in left_behind(rabbitmq.home))
    assert (rabbitmq.home / "rabbitmq.conf").stat().st_mode & 0o077 == 0


def test_it_listens_on_loopback_alone(rabbitmq: NativeBroker) -> None:
    assert listening_addresses(rabbitmq) <= set(LOOPBACK)


def test_a_paused_broker_accepts_and_does_not_answer(rabbitmq: NativeBroker) -> None:
    rabbitmq.pause()
    with pytest.raises(TimeoutError):
        handshake(rabbitmq.url, timeout=0.3)
    rabbitmq.resume()
    assert handshake(rabbitmq.url, timeout=5)


def test_kill_and_restart_keep_port_and_credentials(rabbitmq: NativeBroker) -> None:
    pid, url = rabbitmq.pid, rabbitmq.url
    rabbitmq.kill()
    with pytest.raises(ConnectionRefusedError):
        handshake(url, timeout=1)
    rabbitmq.restart()
    assert handshake(url, timeout=5)
    assert rabbitmq.pid != pid
