"""No credential is ever shown: not in a log at DEBUG, an error, a representation, health, a dead letter, or the CLI."""

from __future__ import annotations

import asyncio
import importlib
import logging
import traceback
from base64 import b64encode
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import redis.asyncio

from messaging import (
    App,
    ConfigurationError,
    ConnectionFailed,
    Settings,
    Topic,
    connect,
    registry,
)
from messaging.adapter import AdapterContext
from messaging.cli import main
from messaging.clock import SystemClock
from messaging_contracts.brokers import start
from messaging_contracts.brokers.process import LOOPBACK, free_port

SECRET = "hunter2/Sw0rd@fish"
KEY_ID = "AKIAIOSFODNN7EXAMPLE"
FORMS = (
    SECRET,
    quote(SECRET, safe=""),
    b64encode(SECRET.encode()).decode(),
    b64encode(f"\0shop\0{SECRET}".encode()).decode(),
)
TOPIC = Topic("secrets", str)
EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_adapter"


def assert_hidden(shown):
    assert "hunter2" not in shown.lower(), shown
    for form in FORMS:
        assert form not in shown, shown


def url_of(name, port):
    login = f"shop:{quote(SECRET, safe='')}@{LOOPBACK}:{port}"
    return {
        "redis": f"redis://{login}/0",
        "redis+cluster": f"redis+cluster://{login}",
        "redis+sentinel": f"redis+sentinel://{login}/mymaster?sentinel_password={quote(SECRET, safe='')}",
        "rabbitmq": f"amqp://{login}/",
        "kafka": f"kafka://{login}",
        "kafka+scram": f"kafka://{login}?sasl=SCRAM-SHA-256",
        "kafka+ssl": f"kafka+ssl://{login}",
        "sqs": f"sqs://us-east-1?endpoint_url=http://{LOOPBACK}:{port}",
    }[name]


@pytest.fixture
def aws(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)


@pytest.fixture
def logs(caplog):
    """All that was logged, at DEBUG, by whomever, with what came along."""
    caplog.set_level(logging.DEBUG)

    def read():
        lines = [f"{record.getMessage()} {record.__dict__} {record.exc_text}" for record in caplog.records]
        return "\n".join(lines) + caplog.text

    return read


def told(error):
    """All that an error shows, its causes too."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__)


async def failure_of(bus):
    try:
        async with bus:
            raise AssertionError("it was opened")
    except (ConnectionFailed, ConfigurationError) as error:
        return error


def seen(bus):
    """What a program might print of a bus."""
    parts = [bus, bus.settings, bus.adapter, *vars(bus.adapter).values(), bus.routing.brokers]
    return "\n".join(f"{part} {part!r}" for part in parts)


@pytest.mark.parametrize(
    "name",
    ["redis", "redis+cluster", "redis+sentinel", "rabbitmq", "kafka", "kafka+scram", "kafka+ssl", "sqs"],
)
async def test_a_broker_that_is_not_there_costs_no_secret(name, logs, aws):
    bus = connect(Settings(url=url_of(name, free_port()), connect_timeout=3))

    error = await failure_of(bus)

    assert_hidden(told(error) + seen(bus) + str(await bus.health()) + logs())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=getattr(pytest.mark, name.partition("+")[0]))
        for name in ("redis", "rabbitmq", "kafka", "kafka+scram", "kafka+ssl")
    ],
)
async def test_a_broker_that_refuses_a_login_is_told_no_more_than_it_was(name, logs, messaging_server):
    server = urlsplit(messaging_server(name.partition("+")[0]))
    bus = connect(Settings(url=url_of(name, server.port), connect_timeout=3))

    error = await failure_of(bus)

    assert_hidden(told(error) + seen(bus) + str(await bus.health()) + logs())


async def failing(bus, topic):
    """A message whose handler tells all that it knows becomes a dead letter, which is returned as text."""
    app = App("billing", retry=None)

    @app.subscribe(topic)
    async def fail(_: str) -> None:
        raise ValueError(seen(bus))

    async with app.running(bus):
        await bus.publish(topic, "x", headers={"tenant": "a"})
        dead = bus.dead_letters(topic, group="billing")
        while not await dead.count():
            await asyncio.sleep(0.02)
        (letter,) = [letter async for letter in dead.browse()]
        health = await bus.health()
    await bus.delete_group(topic, "billing")
    return f"{letter} {asdict(letter)} {health}"


@asynccontextmanager
async def a_user(url):
    """A user of the Redis server, for a while."""
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.acl_setuser(
            "shop", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], channels=["*"], categories=["+@all"]
        )
        try:
            yield
        finally:
            await client.acl_deluser("shop")


@pytest.mark.redis
async def test_what_happens_on_redis_shows_no_secret(logs, messaging_server):
    server = messaging_server("redis")
    async with a_user(server), connect(url_of("redis", urlsplit(server).port) + "?namespace=secrets") as bus:
        letter = await failing(bus, TOPIC)
        assert_hidden(letter + seen(bus))

    assert_hidden(logs())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("rabbitmq", "kafka")]
)
async def test_what_happens_on_a_broker_with_a_password_shows_no_secret(name, logs):
    with start(name, own=True, user="shop", password=SECRET) as broker:
        async with connect(broker.url) as bus:
            letter = await failing(bus, TOPIC)
            assert_hidden(letter + seen(bus))

    assert_hidden(logs())


@pytest.mark.sqs
async def test_what_happens_on_sqs_shows_no_secret(logs, messaging_server, aws):
    async with connect(messaging_server("sqs") + "&namespace=secrets") as bus:
        letter = await failing(bus, TOPIC)
        assert_hidden(letter + seen(bus))

    assert SECRET not in logs()


@pytest.mark.sqs
async def test_the_credentials_of_a_role_are_not_shown(logs, messaging_server, aws):
    url = messaging_server("sqs")
    role = quote("arn:aws:iam::000000000000:role/shop", safe="")

    async with connect(f"{url}&namespace=secrets&role={role}") as bus:
        await bus.declare(TOPIC)
        credentials = bus.adapter.native.sqs._request_signer._credentials.get_frozen_credentials()

    shown = logs()
    assert credentials.secret_key not in shown
    assert credentials.token not in shown


def test_the_settings_that_are_shown_have_no_secret(monkeypatch, tmp_path, capsys):
    login = f"shop:{quote(SECRET, safe='')}@host"
    file = tmp_path / "messaging.toml"
    file.write_text(
        f"""
        url = "amqp://{login}"
        store = "redis://{login}"
        [routes]
        "clicks" = "kafka://{login}"
        "views" = "other"
        [broker.other]
        url = "redis://{login}?password={quote(SECRET, safe="")}"
        [broker.redis]
        password = "{SECRET}"
        [broker.kafka]
        password = "{SECRET}"
        """
    )
    monkeypatch.chdir(tmp_path)

    main(["config"])

    shown = capsys.readouterr().out
    assert "amqp://shop:***@host" in shown
    assert_hidden(shown + repr(Settings.load()))


@pytest.mark.parametrize("name", ["redis", "rabbitmq", "kafka"])
def test_options_that_cannot_be_are_refused_without_a_secret(name):
    url = url_of(name, 1)
    for bad in (f"{url}{'&' if '?' in url else '?'}pasword={SECRET}", url.replace(":1", ":port")):
        for options in ({}, {name: {"secret_key": SECRET}}):
            with pytest.raises(ConfigurationError) as caught:
                connect(Settings(url=bad, broker=options))
            assert_hidden(told(caught.value))


SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "redis+sentinel",
    "amqp",
    "amqps",
    "kafka",
    "kafka+ssl",
    "sqs",
    "memory",
)
SPECIAL = "#/?@:%[] "


def raw_urls(scheme):
    """URLs whose writer escaped nothing, forgot the host, or slipped in the scheme; none is to be connected to."""
    for special in SPECIAL:
        for login in (
            f"user:hunter2{special}x",
            f"user:1{special}hunter2",  # what is before it may be taken for a port
            f"user:1{special}hunter2=1&hunter2",
            f"us{special}er:hunter2",
            f":{special}hunter2",
        ):
            yield f"{scheme}://{login}@127.0.0.1:1/0"
            yield f"{scheme}://{login}@127.0.0.1:port"
        yield f"{scheme}://user:hunter2@ho{special}st:1"
        yield f"{scheme}://127.0.0.1:1/0?password=x{special}hunter2&db=0"
    yield from (f"{scheme}://:hunter2", f"{scheme}://user:hunter2", f"{scheme}://user:hunter2/0")
    yield f"{scheme}://us-east-1?endpoint_url=http://user:hunter2@127.0.0.1:1"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_url_whose_special_characters_are_not_escaped_costs_no_secret(scheme, monkeypatch):
    monkeypatch.setattr(registry, "_registered", cache(registry._registered))
    slips = [f"{scheme}:/user:hunter2@host", f"{scheme}//user:hunter2@host", "user:hunter2@host"]
    slips += [f"{scheme}://:hunter2", f"{scheme}://user:x#hunter2@host"]
    for settings in (
        *(Settings(url=url) for url in (*raw_urls(scheme), *slips)),
        *(Settings(url="memory://", store=url) for url in slips),
        *(Settings(url="memory://", routes={"clicks": url}) for url in slips),
    ):
        shown = repr(settings)
        try:
            shown += seen(connect(settings))
        except ConfigurationError as error:
            shown += told(error)
        assert "hunter2" not in shown, f"{settings.url} {settings.store} {settings.routes}: {shown}"


def test_an_outsiders_adapter_shows_no_piece_of_a_password_either(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    adapter = importlib.import_module("messaging_sqlite").SQLiteAdapter
    for query in ("hunter2@host", "sync=hunter2", "lease=hunter2", "hunter2=1@host"):
        with pytest.raises(ConfigurationError) as caught:
            adapter.from_url(f"sqlite:///file?{query}", AdapterContext(clock=SystemClock()))
        assert_hidden(told(caught.value))


def test_a_port_that_is_a_password_is_not_shown():
    assert registry.redact("redis://user:hunter2") == "redis://user:***"
    assert registry.redact("redis://a:1,[::1]:2,b/0") == "redis://a:1,[::1]:2,b/0"
    assert (
        registry.redact("redis+sentinel://h/m?sentinel_password=a#b@hunter2&db=1&x=hunter2")
        == "redis+sentinel://***"
    )
