"""URLs and options, read without a server."""

import pytest

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging.errors import ConfigurationError
from messaging_redis import RedisAdapter
from messaging_redis.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "mode", "tls", "hosts"),
    [
        ("redis://", "single", False, (("localhost", 6379),)),
        ("redis://cache.example:7000/3", "single", False, (("cache.example", 7000),)),
        ("rediss://[::1]:7000", "single", True, (("::1", 7000),)),
        ("redis+cluster://a:1,b:2,c", "cluster", False, (("a", 1), ("b", 2), ("c", 6379))),
        ("rediss+cluster://a", "cluster", True, (("a", 6379),)),
        ("redis+sentinel://a,b:5/main/2", "sentinel", False, (("a", 26379), ("b", 5))),
        ("rediss+sentinel://a/main", "sentinel", True, (("a", 26379),)),
    ],
)
def test_every_scheme_says_how_to_connect(url, mode, tls, hosts):
    settings = RedisSettings.from_url(url)

    assert (settings.mode, settings.tls, settings.hosts) == (mode, tls, hosts)


def test_the_path_is_the_database_the_master_or_the_socket():
    assert RedisSettings.from_url("redis://h/3").db == 3
    assert RedisSettings.from_url("redis+sentinel://h/main/2").master == "main"
    assert RedisSettings.from_url("redis+sentinel://h/main/2").db == 2
    assert RedisSettings.from_url("unix:///run/redis.sock?db=2").path == "/run/redis.sock"


def test_user_and_password_are_unquoted_and_never_shown():
    settings = RedisSettings.from_url("redis://us%40er:p%2Fa:s%40s@host?sentinel_password=hidden1")

    assert (settings.username, settings.password and settings.password.get_secret_value()) == (
        "us@er",
        "p/a:s@s",
    )
    assert "p/a" not in repr(settings)
    assert "hidden1" not in repr(settings)
    adapter = RedisAdapter.from_url("redis://:geheim@host", AdapterContext(clock=SystemClock()))
    assert "geheim" not in repr(adapter)


def test_the_url_counts_before_the_options_and_both_are_checked():
    settings = RedisSettings.from_url("redis://h?lease=2&check_hostname=false", {"lease": 9, "block": 0.2})

    assert (settings.lease, settings.block, settings.check_hostname) == (2.0, 0.2, False)


@pytest.mark.parametrize(
    ("option", "said"), [("tls", "only the URL"), ("mode", "only the URL"), ("leese", "known are")]
)
def test_an_option_that_would_have_no_effect_is_refused_by_name(option, said):
    with pytest.raises(ConfigurationError, match=rf"\[broker\.redis\].*'{option}'.*{said}"):
        RedisSettings.from_url("redis://h", {option: True})


def test_what_changes_the_shape_of_answers_is_left_out():
    RedisSettings.from_url("redis://h?protocol=3&legacy_responses=false")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h?leese=3",
        "redis://h?lease=soon",
        "redis://h?lease=-1",
        "redis://h:port",
        "redis://h/db",
        "redis://a,b",
        "redis+sentinel://h",
        "redis+cluster://h/1",
        "redis://h?hosts=x",
        "redis://h?namespace=a:b",
        "redis://h?prefix=a{b",
        "unix://relative.sock",
    ],
)
def test_what_is_unknown_or_illegal_is_refused_by_name(url):
    with pytest.raises(ConfigurationError):
        RedisSettings.from_url(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://h/1?db=3", "db"),
        ("redis+sentinel://h/mymaster/1?db=1", "db"),
        ("redis://user:geheim@h?password=geheim", "password"),
        ("redis://h?lease=geheim&lease=geheim", "lease"),
    ],
)
def test_what_a_url_says_twice_is_refused_by_name_and_without_its_value(url, name):
    with pytest.raises(ConfigurationError, match=f"'{name}' twice") as caught:
        RedisSettings.from_url(url)

    assert "geheim" not in str(caught.value)


def test_a_refused_option_does_not_show_the_password():
    with pytest.raises(ConfigurationError) as caught:
        RedisSettings.from_url("redis://user:geheim@h?leese=3")

    assert "leese" in str(caught.value)
    assert "geheim" not in str(caught.value)
