import pytest

from messaging import Settings, connect
from messaging.cli.program import load_app
from messaging.errors import ConfigurationError
from messaging.urls import check_host


@pytest.mark.parametrize("scheme", ["amqp", "redis", "kafka"])
@pytest.mark.parametrize(
    "host", ["my host", "%zz:1", "..:1", "[::1", "[::1]x:1", "a\x00b:1", f"{'a' * 300}:1"]
)
async def test_an_illegal_host_is_refused_without_showing_the_password(scheme: str, host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with connect(Settings(url=f"{scheme}://user:hunter2@{host}")):
            pass

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "bare"),
    [("localhost", "localhost"), ("my_host.", "my_host."), ("é.example", "é.example"), ("[::1]", "::1")],
)
def test_a_host_is_a_name_or_an_address(host: str, bare: str) -> None:
    assert check_host(host, "the URL") == bare


@pytest.mark.parametrize("scheme", ["memory", "redis", "amqp", "kafka", "sqs"])
@pytest.mark.parametrize("name", ["namespace", "max_message_bytes"])
async def test_an_option_that_a_url_has_twice_is_refused_by_name(scheme: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{name}' twice") as caught:
        async with connect(Settings(url=f"{scheme}://?{name}=hunter2&{name}=hunter3")):
            pass

    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("name", [".shop:app", ".:app", "..shop:app"])
def test_an_app_of_a_relative_module_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="named as module:attribute"):
        load_app(name)
