import logging
import socket
import time
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from messaging_contracts import brokers
from messaging_contracts.brokers import docker, find, rabbitmq
from messaging_contracts.brokers.broker import Options
from messaging_contracts.brokers.process import NativeBroker, cache, free_port
from messaging_contracts.brokers.redis import Redis


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any broker; returns the one folder where its programs are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(rabbitmq, "SCRIPT_FOLDERS", ())
    return tmp_path


@pytest.mark.parametrize("name", brokers.NAMES)
def test_without_a_broker_one_line_says_what_to_install(
    name: str, bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_may_install", lambda: False)
    with pytest.raises(brokers.BrokerUnavailable) as raised:
        brokers.start(name)
    text = str(raised.value)
    assert "\n" not in text
    assert f"install {find.KINDS[name].package}" in text
    assert f"MESSAGING_TEST_{name.upper()}_URL" in text


def test_a_package_that_cannot_be_installed_fails_with_what_apt_said(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_may_install", lambda: True)
    program = bare_machine / "apt-get"
    program.write_text("#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
    program.chmod(0o755)
    with pytest.raises(brokers.BrokerUnavailable, match="install redis-server .*E: no such package"):
        brokers.start("redis")


def test_a_missing_package_is_installed(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_may_install", lambda: True)
    program = bare_machine / "apt-get"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *install*redis-server)\n'
        f"echo '#!/bin/sh' > {bare_machine}/redis-server; /bin/chmod +x {bare_machine}/redis-server;; esac\n"
    )
    program.chmod(0o755)
    assert find.native_program(Redis()) == bare_machine / "redis-server"


@pytest.mark.redis
def test_a_broker_named_by_the_environment_is_used_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with brokers.start("redis") as running:
        monkeypatch.setenv("MESSAGING_TEST_REDIS_URL", running.url)
        with brokers.start("redis") as found:
            assert found.url == running.url
            assert found.version == running.version
            for fault in (found.kill, found.pause, found.resume, found.restart):
                with pytest.raises(brokers.BrokerUnavailable, match="own=True"):
                    fault()
        with brokers.start("redis", own=True) as own:
            assert own.url != running.url


@pytest.mark.parametrize("name", brokers.NAMES)
def test_a_url_in_the_environment_that_does_not_answer_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = find.KINDS[name].url("127.0.0.1", free_port(), Options("user", "s3cret"))
    monkeypatch.setenv(f"MESSAGING_TEST_{name.upper()}_URL", url)
    with pytest.raises(brokers.BrokerUnavailable, match="does not answer") as raised:
        brokers.start(name)
    assert "s3cret" not in str(raised.value)


def test_a_server_has_an_adapter_when_one_is_installed_for_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints([EntryPoint("redis", "x:X", "messaging.adapters")])
    monkeypatch.setattr(find, "entry_points", lambda *, group: installed.select(group=group))
    assert brokers.with_an_adapter() == ("redis",)


def test_of_the_servers_for_one_adapter_the_first_is_taken() -> None:
    assert brokers.with_an_adapter() == ("redis", "rabbitmq", "kafka", "sqs")


def test_an_unknown_broker_is_named_with_the_known_ones() -> None:
    with pytest.raises(brokers.BrokerUnavailable, match="redis, rabbitmq"):
        brokers.start("pigeon")


@pytest.mark.redis
@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_an_engine_that_does_not_answer_gives_way_to_a_process(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("MESSAGING_TEST_REDIS_URL", raising=False)
    monkeypatch.delenv("MESSAGING_TEST_REDIS_IMAGE", raising=False)
    monkeypatch.setattr(docker, "ENGINE_TIMEOUT", 1)
    with socket.socket() as engine:
        engine.bind(("127.0.0.1", 0))
        if answers:
            engine.listen()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{engine.getsockname()[1]}")
        before = time.monotonic()
        with brokers.start("redis", own=True) as broker:
            assert isinstance(broker, NativeBroker)
        assert time.monotonic() - before < 15


@pytest.mark.parametrize("name", brokers.NAMES)
def test_an_image_named_by_the_environment_never_gives_way_to_a_process(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(docker.image_variable(name), "example/named:9")
    with pytest.raises(brokers.BrokerUnavailable, match="no engine is in sight.* example/named:9"):
        brokers.start(name, own=True)


def test_data_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MESSAGING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache() == tmp_path / "messaging-ports"
    monkeypatch.setenv("MESSAGING_CACHE", str(tmp_path / "named"))
    assert cache() == tmp_path / "named"


@pytest.mark.redis
def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), brokers.start("redis", password="s3cret"):
        pass
    assert "s3cret" not in caplog.text
