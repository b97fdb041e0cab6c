"""The URL and the options."""

import threading

import pytest

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging.errors import ConfigurationError
from messaging_kafka.brokers import release
from messaging_kafka.connection import client_options
from messaging_kafka.settings import KafkaSettings, read_settings
from messaging_kafka.tokens import Tokens


def read(url: str, namespace: str | None = None, **options: object) -> KafkaSettings:
    return read_settings(url, AdapterContext(clock=SystemClock(), namespace=namespace, options=options))


def test_hosts_ports_and_tls_come_from_the_url() -> None:
    assert read("kafka://").hosts == ("localhost:9092",)
    settings = read("kafka+ssl://one:1,two,[::1]:3")
    assert settings.hosts == ("one:1", "two:9092", "[::1]:3")
    assert settings.tls


def test_the_query_counts_before_the_options() -> None:
    settings = read("kafka://h?session=9&compression=gzip", session=20, heartbeat=2)
    assert (settings.session, settings.heartbeat, settings.compression) == (9, 2, "gzip")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://h?sesion=9", "sesion"),
        ("kafka://h/path", "no path"),
        ("kafka://h:port", "no host and port"),
        ("kafka://h#x", "%23"),
        ("kafka://h?compression=rar", "compression"),
        ("kafka://h?session=1&heartbeat=1", "a third of session"),
        ("kafka://h?sasl=PLAIN", "user and a password"),
        ("kafka://h?sasl=OAUTHBEARER", "oauth_token"),
        ("kafka://h?max_message_bytes=1", "max_message_bytes"),
    ],
)
def test_what_is_wrong_is_named(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        read(url)


def test_no_secret_is_shown() -> None:
    settings = read("kafka://ann:hunter2@h?sasl=SCRAM-SHA-512")

    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigurationError) as refused:
        read("kafka://ann:hunter2@h?sasl=SCRAM-SHA-1024")
    assert "hunter2" not in str(refused.value)


def test_a_user_means_sasl_plain_unless_another_mechanism_is_named() -> None:
    options = client_options(read("kafka://ann:p%40ss@h"))
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("PLAIN", "ann")
    assert options["sasl_plain_password"] == "p@ss"
    options = client_options(read("kafka+ssl://ann:x@h?sasl=SCRAM-SHA-256"))
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-256")
    assert options["ssl_context"] is not None


async def a_token() -> str:
    return "from a provider"


async def test_an_oauth_token_comes_from_a_setting_a_file_or_a_provider(tmp_path) -> None:
    file = tmp_path / "token"
    file.write_text("from a file\n")
    for option, value, token in (
        ("oauth_token", "as it is", "as it is"),
        ("oauth_token_file", str(file), "from a file"),
        ("oauth_provider", f"{__name__}:a_token", "from a provider"),
    ):
        tokens = Tokens(read("kafka://h", sasl="OAUTHBEARER", **{option: value}))
        assert await tokens.token() == token


def a_thread() -> str:
    return threading.current_thread().name


async def test_a_provider_that_waits_does_not_keep_the_event_loop_waiting() -> None:
    tokens = Tokens(read("kafka://h", sasl="OAUTHBEARER", oauth_provider=f"{__name__}:a_thread"))

    assert await tokens.token() != threading.current_thread().name


def test_certificates_that_are_not_there_are_a_matter_of_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"ca=.*cannot be used"):
        client_options(read("kafka+ssl://h?ca=/nowhere.pem"))


@pytest.mark.parametrize("fetch", [(0, 15), (0, 1)])
def test_a_kafka_that_is_too_old_is_refused_with_what_is_needed(fetch: tuple[int, int]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"shop:9092 is version before 3\.7; 3\.7 or newer is needed"
    ):
        release(fetch, "shop:9092")


@pytest.mark.parametrize(
    ("fetch", "told"),
    [((0, 16), "3.7 or 3.8"), ((0, 17), "3.9"), ((4, 17), "4.0"), ((4, 18), "4.1 or later"), ((0, 0), "")],
)
def test_a_kafka_is_told_by_its_requests(fetch: tuple[int, int], told: str) -> None:
    assert release(fetch, "shop:9092") == told
