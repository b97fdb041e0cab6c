import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging import connect
from messaging.adapter import Adapter, AdapterContext
from messaging.clock import SystemClock
from messaging.errors import ConfigurationError, MissingExtra
from messaging.registry import (
    ADAPTERS,
    STORES,
    adapter_class,
    adapter_for,
    known_schemes,
    redact,
    scheme_of,
    store_class,
    store_for,
)
from messaging.store import IdempotencyStore

Entries = dict[tuple[str, str], str]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Entries:
    """Entry points by group and scheme, in place of the installed ones."""
    found: Entries = {}

    def entry_points(*, group: str, name: str | None = None) -> EntryPoints:
        points = [
            EntryPoint(name=scheme, group=of, value=value)
            for (of, scheme), value in found.items()
            if of == group and name in (None, scheme)
        ]
        return EntryPoints(points)

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    return found


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a third party's package would be."""
    made = ModuleType("acme_messaging")
    monkeypatch.setitem(sys.modules, "acme_messaging", made)
    return made


class FakeAdapter(Adapter):
    __abstractmethods__ = frozenset()
    name = "fake"

    def __init__(self, url: str, context: AdapterContext) -> None:
        self.url, self.context = url, context

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> "FakeAdapter":
        return cls(url, context)


FakeAdapter.__abstractmethods__ = frozenset()


class FakeStore(IdempotencyStore):
    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def from_url(cls, url: str, *, clock: object) -> "FakeStore":
        return cls(url)


FakeStore.__abstractmethods__ = frozenset()


def test_a_scheme_finds_its_adapter_and_store_by_entry_point(entries: Entries, module: Any) -> None:
    module.Adapter, module.Store = FakeAdapter, FakeStore
    entries[ADAPTERS, "acme"] = "acme_messaging:Adapter"
    entries[STORES, "acme"] = "acme_messaging:Store"
    context = AdapterContext(clock=SystemClock())

    adapter = adapter_for("ACME://host/1", context)
    store = store_for("acme://host", clock=SystemClock())

    assert isinstance(adapter, FakeAdapter)
    assert (adapter.url, adapter.context) == ("acme://host/1", context)
    assert isinstance(store, FakeStore)
    assert known_schemes(ADAPTERS) == ["acme"]


def test_nothing_is_loaded_before_it_is_asked_for(entries: Entries) -> None:
    entries[ADAPTERS, "broken"] = "no_such_module_at_all:Adapter"

    assert known_schemes(ADAPTERS) == ["broken"]


@pytest.mark.parametrize(
    ("scheme", "extra"),
    [
        ("amqp", "rabbitmq"),
        ("amqps", "rabbitmq"),
        ("redis", "redis"),
        ("rediss+sentinel", "redis"),
        ("kafka+ssl", "kafka"),
        ("sqs", "sqs"),
    ],
)
def test_an_unknown_scheme_names_the_known_ones_and_the_extra(
    entries: Entries, scheme: str, extra: str
) -> None:
    entries[ADAPTERS, "memory"] = "a:B"

    with pytest.raises(ConfigurationError) as raised:
        adapter_class(f"{scheme}://user:secret@host")

    assert f"'{scheme}'; known are memory://." in str(raised.value)
    assert f"pip install 'messaging-ports[{extra}]'" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_scheme_that_nobody_has_names_the_known_ones(entries: Entries) -> None:
    with pytest.raises(ConfigurationError, match=r"no store for the URL scheme 'smtp'; known are none\.$"):
        store_class("smtp://host")


def test_a_missing_library_names_the_extra_to_install(entries: Entries, module: Any) -> None:
    def missing(name: str) -> type:
        raise ModuleNotFoundError("No module named 'redis.asyncio'", name="redis.asyncio")

    module.__getattr__ = missing
    entries[ADAPTERS, "redis"] = "acme_messaging:Adapter"
    entries[ADAPTERS, "acme"] = "acme_messaging:Adapter"

    with pytest.raises(MissingExtra, match=r"redis:// needs redis, .*pip install 'messaging-ports\[redis\]'"):
        adapter_class("redis://host")
    with pytest.raises(MissingExtra, match="install redis$"):
        adapter_class("acme://host")


@pytest.mark.parametrize("value", ["acme_messaging:Nothing", "acme_messaging.absent:Adapter"])
def test_a_broken_adapter_is_no_missing_extra(entries: Entries, module: Any, value: str) -> None:
    entries[ADAPTERS, "redis"] = value

    with pytest.raises(ConfigurationError, match="cannot be loaded") as raised:
        adapter_class("redis://host")
    assert not isinstance(raised.value, MissingExtra)


def test_an_entry_point_that_is_no_adapter_is_refused(entries: Entries, module: Any) -> None:
    module.Thing = object
    entries[ADAPTERS, "acme"] = entries[STORES, "acme"] = "acme_messaging:Thing"

    with pytest.raises(ConfigurationError, match="no messaging.adapter.Adapter"):
        adapter_class("acme://")
    with pytest.raises(ConfigurationError, match="no messaging.store.IdempotencyStore"):
        store_class("acme://")


def test_a_store_that_cannot_be_told_who_asks_is_refused(entries: Entries, module: Any) -> None:
    async def begin(self: object, key: str, *, digest: str, lease: float) -> None: ...

    module.Store = type("Old", (FakeStore,), {"begin": begin})
    entries[STORES, "acme"] = "acme_messaging:Store"

    with pytest.raises(ConfigurationError, match="'acme'.*its `begin` takes no `token`"):
        store_class("acme://")


def test_an_adapter_of_another_spi_version_is_refused(entries: Entries, module: Any) -> None:
    module.Adapter = type("Old", (FakeAdapter,), {"api_version": 0})
    entries[ADAPTERS, "acme"] = "acme_messaging:Adapter"

    with pytest.raises(ConfigurationError, match="version 0 of the SPI, and this is version 1"):
        adapter_class("acme://")


@pytest.mark.parametrize(
    "url", ["", "localhost", "redis:/secret", "://secret", "1a://secret", "a b://secret"]
)
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        scheme_of(url)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "REDIS://host",
        "Redis+Cluster://host",
        "Amqps://host",
        "Kafka+SSL://host",
        "SQS://eu-central-1",
        "MEMORY://",
    ],
)
def test_the_case_of_a_scheme_says_nothing(url: str) -> None:
    bus = connect(url, store="REDIS://host")

    assert isinstance(bus.broker("orders").adapter, adapter_class(url.lower()))
    assert isinstance(bus.store, store_class("redis://host"))


def test_the_memory_adapter_and_store_are_installed() -> None:
    assert adapter_class("memory://").name == "memory"
    assert issubclass(store_class("memory://"), IdempotencyStore)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("memory://", "memory://"),
        ("redis://:secret@host", "redis://:***@host"),
        ("amqp://user:secret@host/vhost", "amqp://user:***@host/vhost"),
        ("amqp://secret@host", "amqp://***@host"),
        ("amqp://user:se@cret@host", "amqp://user:***@host"),
        ("amqp://user:se/cret@host:1/v", "amqp://***@host:1/v"),
        ("amqp://user:se?cret@host", "amqp://***@host"),
        ("amqp://user:se#cret@host", "amqp://***@host"),
        ("redis+sentinel://:secret@a:1,b:2/0", "redis+sentinel://:***@a:1,b:2/0"),
        ("redis://u:secret@a,u:secret@b", "redis://u:***@b"),
        ("redis://host?password=secret&db=1", "redis://host?password=***&db=1"),
        ("redis://host?db=1&sentinel_password=secret", "redis://host?db=1&sentinel_password=***"),
        ("sqs://eu?aws_secret_access_key=secret", "sqs://eu?aws_secret_access_key=***"),
        ("redis://host?p%61ssword=secret&db=1", "redis://host?p%61ssword=***&db=1"),
        ("redis://host?%50%41%53%53word=secret", "redis://host?%50%41%53%53word=***"),
        ("host?api_token=secret", "host?api_token=***"),
        ("user:secret@host", "user:***@host"),
    ],
)
def test_credentials_are_never_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "secret" not in redact(url).replace("aws_secret_access_key", "")


words = st.text("abc:/?#@&=", max_size=12)


@given(words, words, words)
def test_a_password_is_not_shown_whatever_is_in_it(user: str, password: str, rest: str) -> None:
    secret = f"SECRET{password}SECRET"

    assert "SECRET" not in redact(f"redis://{user}:{secret}@host{rest}")
