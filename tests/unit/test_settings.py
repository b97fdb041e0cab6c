import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from messaging.errors import ConfigurationError
from messaging.settings import RetrySettings, Settings, SubscriptionSettings, TopicSettings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without our variables, in an empty folder."""
    for variable in os.environ:
        if variable.startswith("MESSAGING_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "messaging.toml") -> None:
    Path(name).write_text(text)


def test_defaults_are_what_the_documentation_says() -> None:
    settings = Settings.load()

    assert settings.url is None
    assert settings.topology == "declare"
    assert (settings.connect_timeout, settings.publish_timeout) == (10.0, 30.0)
    assert (settings.request_timeout, settings.drain_timeout) == (30.0, 30.0)
    assert set(settings.origins().values()) == {"default"}


def test_the_file_overrides_code_and_the_environment_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('source = "file"\nnamespace = "file"\npublish_timeout = 2\n')
    monkeypatch.setenv("MESSAGING_NAMESPACE", "environment")

    settings = Settings.load(source="code", namespace="code", publish_timeout=1, request_timeout=1)

    assert settings.namespace == "environment"
    assert settings.source == "file"
    assert settings.publish_timeout == 2
    assert settings.request_timeout == 1
    origins = settings.origins()
    assert origins["namespace"] == "MESSAGING_NAMESPACE (environment)"
    assert origins["source"] == "messaging.toml"
    assert origins["request_timeout"] == "code"
    assert origins["drain_timeout"] == "default"


@pytest.mark.parametrize("key", ["url", "store", "source", "namespace"])
def test_short_variables_are_read(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(f"MESSAGING_{key.upper()}", "redis")

    assert getattr(Settings.load(), key) == "redis"


def test_an_empty_short_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING_URL", "")

    assert Settings.load().url is None


def test_a_url_in_code_wins_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    write('url = "redis://file"\nstore = "redis://file"')
    monkeypatch.setenv("MESSAGING_URL", "redis://production")

    settings = Settings.load(url="amqp://code")
    both = Settings.load(url="amqp://code", store="redis://code")

    assert settings.url == "amqp://code"
    assert settings.store == "redis://file"
    assert settings.origins()["url"] == "code"
    assert both.store == "redis://code"
    assert Settings.load(url=None).url == "redis://production"


def test_memory_in_code_keeps_out_a_store_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING_STORE", "redis://production")

    assert Settings.load(url="memory://").store is None
    assert Settings.load(url="memory://", store="memory://").store == "memory://"
    monkeypatch.setenv("MESSAGING_URL", "memory://")
    assert Settings.load().store == "redis://production"


def test_settings_made_by_hand_read_neither_file_nor_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write('source = "file"')
    monkeypatch.setenv("MESSAGING_NAMESPACE", "environment")
    monkeypatch.setenv("MESSAGING__PUBLISH_TIMEOUT", "1")

    settings = Settings(url="memory://", broker={"memory": {"lease": 3}})

    assert (settings.source, settings.namespace, settings.publish_timeout) == (None, None, 30.0)
    origins = settings.origins()
    assert (origins["url"], origins["broker.memory.lease"], origins["source"]) == ("code", "code", "default")


def test_the_named_file_is_read_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    write('source = "default file"')
    write('source = "named file"', "other.toml")
    monkeypatch.setenv("MESSAGING_CONFIG", "other.toml")

    settings = Settings.load()

    assert settings.source == "named file"
    assert settings.origins()["source"] == "other.toml"


FILE = """
[app]
concurrency = 8
timeout = "PT2M"
[app.retry]
attempts = 5
[topics."orders.v2"]
partitions = 4
ordered = true
retention = 3600
native = "legacy"
[subscriptions."orders.v2/billing"]
concurrency = 2
prefetch = 4
ordered = false
timeout = 1.5
idempotent = true
start = 2026-01-02T00:00:00Z
on_expired = "dead_letter"
on_exhausted = "hold_key"
native = "queue"
retry = { attempts = 9, delay = 1, maximum = 2, multiplier = 3, jitter = 0.5 }
[broker.redis]
lease = 3
"""


def test_every_section_is_read() -> None:
    write(FILE)

    settings = Settings.load()

    assert settings.topic("orders.v2") == TopicSettings(
        partitions=4, ordered=True, retention=3600, native="legacy"
    )
    assert settings.subscription("orders.v2", "billing") == SubscriptionSettings(
        concurrency=2,
        prefetch=4,
        ordered=False,
        timeout=1.5,
        idempotent=True,
        start=datetime(2026, 1, 2, tzinfo=UTC),
        on_expired="dead_letter",
        on_exhausted="hold_key",
        native="queue",
        retry=RetrySettings(attempts=9, delay=1, maximum=2, multiplier=3, jitter=0.5),
    )
    assert (settings.app.concurrency, settings.app.timeout, settings.app.retry.attempts) == (8, 120.0, 5)
    assert settings.adapter_options("redis") == {"lease": 3}


def test_what_is_not_set_says_nothing() -> None:
    settings = Settings.load()

    assert settings.topic("orders") == TopicSettings()
    assert settings.subscription("orders", "billing") == SubscriptionSettings()
    assert settings.adapter_options("redis") == {}
    assert settings.app.concurrency is None


def test_variables_reach_every_fixed_key_and_merge_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write(FILE)
    monkeypatch.setenv("MESSAGING__APP__RETRY__ATTEMPTS", "7")
    monkeypatch.setenv("MESSAGING__DRAIN_TIMEOUT", "PT1M")
    monkeypatch.setenv("MESSAGING__BROKER__REDIS__PREFIX", "shop")
    monkeypatch.setenv("MESSAGING__TOPICS", '{"orders.v2": {"partitions": 16}, "other": {"partitions": 1}}')
    monkeypatch.setenv("MESSAGING__SUBSCRIPTIONS", '{"orders.v2/billing": {"retry": {"delay": 4}}}')

    settings = Settings.load()

    assert (settings.app.concurrency, settings.app.retry.attempts) == (8, 7)
    assert settings.drain_timeout == 60
    assert settings.adapter_options("redis") == {"lease": 3, "prefix": "shop"}
    assert (settings.topic("orders.v2").partitions, settings.topic("orders.v2").retention) == (16, 3600)
    assert settings.topic("other").partitions == 1
    retry = settings.subscription("orders.v2", "billing").retry
    assert (retry.delay, retry.attempts) == (4, 9)
    origins = settings.origins()
    assert origins["app.concurrency"] == "messaging.toml"
    assert origins["app.retry.attempts"] == "MESSAGING__APP__RETRY__ATTEMPTS (environment)"
    assert origins['topics."orders.v2".partitions'] == "MESSAGING__TOPICS (environment)"
    assert origins['topics."orders.v2".retention'] == "messaging.toml"
    assert origins["broker.redis.lease"] == "messaging.toml"
    assert origins["broker.redis.prefix"] == "MESSAGING__BROKER__REDIS__PREFIX (environment)"


@pytest.mark.parametrize("duration", [90, 90.0, "90", "PT1M30S", timedelta(seconds=90)])
def test_a_duration_is_seconds_or_iso(duration: Any) -> None:
    assert Settings.load(publish_timeout=duration).publish_timeout == 90.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("publish_timeot = 1", "unknown key publish_timeot; did you mean publish_timeout?"),
        ("[topic.orders]", "unknown key topic; did you mean topics?"),
        ("[app]\nconcurency = 1", "unknown key app.concurency; did you mean app.concurrency?"),
        ("[app.retry]\nattemps = 1", "unknown key app.retry.attemps; did you mean app.retry.attempts?"),
        (
            "[topics.orders]\nparts = 1",
            "unknown key topics.orders.parts; did you mean topics.orders.partitions?",
        ),
        (
            '[subscriptions."a/b"]\nstrat = "latest"',
            'unknown key subscriptions."a/b".strat; did you mean subscriptions."a/b".start?',
        ),
        ("zzz = 1", "unknown key zzz; known are app, broker,"),
        ("publish_timeout = 0", "publish_timeout: Input should be greater than 0"),
        ("drain_timeout = -1", "drain_timeout: Input should be greater than or equal to 0"),
        ("publish_timeout = inf", "publish_timeout: Input should be a finite number"),
        ('publish_timeout = "soon"', "publish_timeout: Input should be a valid timedelta"),
        ('topology = "maybe"', "topology: Input should be 'declare', 'verify' or 'off'"),
        ("[app]\nconcurrency = 0", "app.concurrency: Input should be greater than or equal to 1"),
        ('[topics."a b"]', "topics: illegal topic name 'a b'"),
        ('[subscriptions."ab"]', "the key of a subscription is \"topic/group\", not 'ab'"),
        ('[subscriptions."a/b c"]', "illegal group name 'b c'"),
        ('namespace = "a b"', "illegal namespace name 'a b'"),
        ('[subscriptions."a/b"]\nstart = "never"', 'subscriptions."a/b".start: Input should be'),
        ("a =", "is no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(text: str, said: str) -> None:
    write(text)

    with pytest.raises(ConfigurationError, match=r"^messaging\.toml") as raised:
        Settings.load()

    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MESSAGING__PUBLISH_TIMEOT", "1", "did you mean MESSAGING__PUBLISH_TIMEOUT?"),
        ("MESSAGING__APP__CONCURENCY", "1", "unknown key app.concurency; did you mean app.concurrency?"),
        ("MESSAGING__APP__CONCURRENCY__MAX", "1", "MAX is below a single value"),
        ("MESSAGING__APP__NOTHING__MAX", "1", "MAX is below a single value"),
        ("MESSAGING__URL", "redis://", "set MESSAGING_URL"),
        ("MESSAGING_TOPOLOGY", "off", "set MESSAGING__TOPOLOGY"),
        ("MESSAGING_NAMESPCE", "staging", "did you mean MESSAGING_NAMESPACE?"),
        ("MESSAGING__TOPICS__ORDERS__PARTITIONS", "1", "put JSON into MESSAGING__TOPICS"),
        ("MESSAGING__TOPICS", "{", "is no JSON"),
        ("MESSAGING__TOPICS", '{"orders": {"partitions": 0}}', "topics.orders.partitions: Input should be"),
        ("MESSAGING__BROKER__REDIS", "3", "broker.redis: Input should be a valid dictionary"),
        ("MESSAGING_CONFIG", "absent.toml", "absent.toml, where there is no file"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as raised:
        Settings.load()

    assert variable in str(raised.value)
    assert said in str(raised.value)


def test_variables_of_other_programs_are_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MESSAGING_SERVICE_HOST", "MESSAGING_PORT", "MESSAGING_PORT_5672_TCP_ADDR"):
        monkeypatch.setenv(variable, "10.0.0.1")

    assert Settings.load().url is None


def test_a_mistake_in_code_is_named_as_such() -> None:
    with pytest.raises(ConfigurationError, match="^code: unknown key tiemout"):
        Settings.load(tiemout=3)


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write("")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("messaging.sources.TomlConfigSettingsSource", refuse)

    with pytest.raises(ConfigurationError, match="messaging.toml cannot be read: Permission denied"):
        Settings.load()


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING_URL", "amqp://user:s3cret@host?password=s3cret")
    write(
        'store = "redis://:s3cret@host"\n[broker.redis]\npassword = "s3cret"\nca = "redis://u:s3cret@h"\nnone = 1'
    )

    settings = Settings.load()

    for shown in (repr(settings), str(settings), f"{settings}", str(settings.effective())):
        assert "s3cret" not in shown
        assert "amqp://user:***@host" in shown


@pytest.mark.parametrize(
    "written",
    [
        '[broker.redis]\npasword = "s3cret"',
        '[broker.redis]\npassword = {a = "s3cret"}',
        '[broker.kafka]\nsasl_jaas = "s3cret"',
        '[broker.kafka]\npw = "s3cret"',
    ],
)
def test_a_secret_of_a_misspelt_or_nested_option_is_shown_nowhere(written: str) -> None:
    write(written)

    settings = Settings.load()

    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings.effective())


def test_the_name_of_a_broker_hides_no_option_of_it() -> None:
    write('[broker.authors]\nurl = "redis://host"')

    assert "redis://host" in str(Settings.load().effective())


def test_an_error_shows_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING__BROKER__REDIS", "s3cret")
    write('topology = "s3cret"')

    with pytest.raises(ConfigurationError) as raised:
        Settings.load()

    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_routes_come_from_file_and_environment_and_know_where_from(monkeypatch: pytest.MonkeyPatch) -> None:
    write('url = "amqp://file"\n[routes]\n"clicks.*" = "kafka"\n"audit" = "redis://:s3cret@file"')
    monkeypatch.setenv("MESSAGING__ROUTES", '{"audit": "redis://:s3cret@environment"}')
    monkeypatch.setenv("MESSAGING__BROKER__KAFKA__URL", "kafka://me:s3cret@environment")

    settings = Settings.load()

    assert settings.routes == {"clicks.*": "kafka", "audit": "redis://:s3cret@environment"}
    assert settings.broker_url("kafka") == "kafka://me:s3cret@environment"
    assert settings.adapter_options("kafka") == {}
    assert settings.effective()['routes."clicks.*"'] == ("kafka", "messaging.toml")
    assert settings.effective()["routes.audit"] == (
        "redis://:***@environment",
        "MESSAGING__ROUTES (environment)",
    )
    assert "s3cret" not in repr(settings)


def test_a_url_in_code_keeps_out_the_routes_of_file_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[routes]\nclicks = "kafka://production"')
    monkeypatch.setenv("MESSAGING__ROUTES", '{"audit": "redis://production"}')

    assert Settings.load(url="memory://").routes == {}
    assert Settings.load(url="memory://", routes={"a": "memory://b"}).routes == {"a": "memory://b"}
    assert Settings.load().routes == {"clicks": "kafka://production", "audit": "redis://production"}


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[routes]\n"*" = "memory://"', "is what `url` is for"),
        ('[routes]\n"a*b" = "memory://"', "illegal topic name"),
        ('[routes]\n"a b" = "memory://"', "illegal topic name"),
        ('[routes]\na = ["memory://"]', "routes.a"),
        ('[broker.kafka]\nurl = "localhost"', "the url of broker kafka is no URL"),
    ],
)
def test_a_route_that_cannot_be_raises_and_names_the_file(toml: str, said: str) -> None:
    write(toml)

    with pytest.raises(ConfigurationError, match=said) as raised:
        Settings.load()

    assert str(raised.value).startswith("messaging.toml: ")


def test_a_variable_cannot_spell_the_name_of_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING__ROUTES__CLICKS", "memory://")

    with pytest.raises(ConfigurationError, match="put JSON into MESSAGING__ROUTES"):
        Settings.load()


@pytest.mark.parametrize("source", ["a\0b", "\ud800"])
def test_a_source_that_no_broker_carries_is_refused_at_start(source):
    with pytest.raises(ConfigurationError, match="source"):
        Settings.load(source=source)


def nested(levels: int) -> dict[str, Any]:
    deep: dict[str, Any] = {}
    for _ in range(levels):
        deep = {"a": deep}
    return deep


def test_what_code_nests_so_deep_that_nothing_can_read_it_is_refused() -> None:
    itself: dict[str, Any] = {}
    itself["a"] = [itself]
    for deep in (nested(10_000), itself):
        with pytest.raises(ConfigurationError, match="code: broker is nested more than"):
            Settings.load(broker={"redis": deep})
        with pytest.raises(ValueError, match="broker redis is nested more than"):
            Settings(broker={"redis": deep})
    assert Settings.load(broker={"redis": nested(40)}).broker == {"redis": nested(40)}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("broker.redis.x = " + "[" * 10_000 + "]" * 10_000, id="more than the parser bears"),
        pytest.param(f"[broker.{'.'.join('a' * 100)}]", id="less"),
    ],
)
def test_a_file_that_is_nested_too_deep_is_named(text: str) -> None:
    write(text)

    with pytest.raises(ConfigurationError, match=r"messaging\.toml.* is nested more than"):
        Settings.load()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MESSAGING__BROKER", '{"a":' * 10_000 + "1" + "}" * 10_000),
        ("MESSAGING__BROKER", '{"a":' * 100 + "1" + "}" * 100),
        ("MESSAGING__BROKER" + "__A" * 1000, "1"),
    ],
)
def test_a_variable_that_is_nested_too_deep_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)

    with pytest.raises(ConfigurationError, match="MESSAGING__BROKER.* is nested more than"):
        Settings.load()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ('topics."orders"', "partitions"),
        ("app", "concurrency"),
        ("app", "timeout"),
        ("app.retry", "attempts"),
        ("app.retry", "multiplier"),
        ("app.retry", "jitter"),
    ],
)
def test_true_is_no_number(section: str, key: str) -> None:
    write(f"[{section}]\n{key} = true\n")

    with pytest.raises(
        ConfigurationError, match=rf"messaging.toml: .*{key}: Input should be a number, not true"
    ):
        Settings.load()


def test_a_name_of_a_file_that_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING_CONFIG", "x" * 5000)

    with pytest.raises(ConfigurationError, match="cannot be read: File name too long"):
        Settings.load()
