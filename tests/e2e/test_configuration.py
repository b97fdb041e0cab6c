"""What the configuration page says is what a program gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from messaging import ConfigurationError, Settings, Topic, connect

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
TOML, ROUTES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
URLS = [
    ("memory", "memory://"),
    ("redis", "redis://localhost"),
    ("redis", "rediss://localhost"),
    ("redis", "redis+cluster://localhost"),
    ("rabbitmq", "amqp://localhost"),
    ("rabbitmq", "amqps://localhost"),
]


def test_the_file_of_the_page_is_read(tmp_path, monkeypatch):
    file = tmp_path / "messaging.toml"
    file.write_text(TOML)
    monkeypatch.setenv("MESSAGING_CONFIG", str(file))

    settings = Settings.load()

    assert settings.namespace == "staging"
    assert settings.app.retry.attempts == 5
    assert settings.topic("orders").partitions == 16
    assert settings.subscription("orders", "billing").retry.attempts == 10


def test_the_variables_of_the_page_are_read(monkeypatch):
    for variable in re.findall(r"`(MESSAGING__(?:TOPICS|SUBSCRIPTIONS|ROUTES))='(.*?)'`", PAGE):
        monkeypatch.setenv(*variable)
    monkeypatch.setenv("MESSAGING__APP__RETRY__ATTEMPTS", "7")

    settings = Settings.load()

    assert settings.app.retry.attempts == 7
    assert settings.topic("orders").partitions == 16
    assert settings.subscription("orders", "billing").concurrency == 64
    assert settings.routes == {"clicks.*": "events"}


def test_the_routes_of_the_page_lead_where_it_says(tmp_path, monkeypatch):
    file = tmp_path / "messaging.toml"
    file.write_text(ROUTES)
    monkeypatch.setenv("MESSAGING_CONFIG", str(file))
    monkeypatch.setenv("MESSAGING__BROKER__EVENTS__URL", "redis://:s3cret@events")

    bus = connect()

    assert bus.broker("clicks.web").url == "redis://:s3cret@events"
    assert bus.broker("clicks.web").name == "events"
    assert bus.broker("audit").name == "redis://localhost:6380"
    assert bus.broker("orders").name == "amqp://localhost"


@pytest.mark.parametrize(("section", "url"), URLS)
def test_an_unknown_option_of_a_broker_raises_for_each_of_its_schemes(monkeypatch, section, url):
    monkeypatch.setenv(f"MESSAGING__BROKER__{section.upper()}__NO_SUCH_OPTION", "1")

    with pytest.raises(ConfigurationError, match="no_such_option"):
        connect(url)


@pytest.mark.parametrize(("_", "url"), URLS)
def test_a_namespace_may_stand_in_the_url_of_every_broker(_, url):
    assert connect(f"{url}?namespace=staging").namespace == "staging"
    assert connect(url, namespace="staging").namespace == "staging"


async def test_a_namespace_in_the_url_keeps_environments_apart():
    async with connect("memory://page?namespace=a") as a, connect("memory://page?namespace=b") as b:
        await a.declare(Topic("orders"), groups=["billing"])

        assert await b.groups() == []
