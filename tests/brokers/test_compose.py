"""docker-compose.yml, compose.env and the servers that tests start are the same."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from messaging_contracts.brokers.broker import Container, Options
from messaging_contracts.brokers.docker import image_variable
from messaging_contracts.brokers.find import KINDS, environment_variable

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def port(name: str) -> int:
    (published,) = SERVICES[name]["ports"]
    address, outside, _ = published.split(":")
    assert address == "127.0.0.1"
    return int(outside)


def container(name: str) -> Container:
    found = KINDS[name].container(Options(), "127.0.0.1", port(name))
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def no_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICES:
        monkeypatch.delenv(f"MESSAGING_TEST_{name.upper()}_COMMAND", raising=False)


def test_all_brokers_are_there() -> None:
    assert set(SERVICES) == {"redis", "rabbitmq", "kafka", "sqs"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_what_a_test_starts_in_a_container(name: str) -> None:
    service, started = SERVICES[name], container(name)
    assert DEFAULT.findall(service["image"]) == [(image_variable(name), started.image)]
    assert service.get("environment", {}) == dict(started.environment)
    assert service["ports"][0].endswith(f":{started.port}")
    assert service["healthcheck"]["test"]
    if started.command:
        assert shlex.split(DEFAULT.sub(r"\2", service["command"])) == shlex.split(started.command)


def test_the_documented_urls_lead_to_the_services() -> None:
    lines = (ROOT / "compose.env").read_text().splitlines()
    # As a shell reads them.
    found = dict(shlex.split(line)[0].split("=", 1) for line in lines if not line.startswith("#"))
    wanted: dict[str, str] = {}
    for name in SERVICES:
        wanted[environment_variable(name)] = KINDS[name].url("127.0.0.1", port(name), Options())
        wanted |= KINDS[name].client_environment
    assert found == wanted
