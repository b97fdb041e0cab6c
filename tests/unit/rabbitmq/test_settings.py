import pytest

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging.errors import ConfigurationError
from messaging_rabbitmq.settings import read_settings

CONTEXT = AdapterContext(clock=SystemClock())


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://", [("localhost", 5672)]),
        ("amqps://user:secret@one", [("one", 5671)]),
        ("amqp://user:secret@one:1,two,three:3/shop", [("one", 1), ("two", 5672), ("three", 3)]),
        ("amqp://[::1]:1,[::2]", [("::1", 1), ("::2", 5672)]),
    ],
)
def test_a_url_names_one_node_or_several_of_a_cluster(url: str, hosts: list[tuple[str, int]]) -> None:
    assert list(read_settings(url, CONTEXT).hosts) == hosts


@pytest.mark.parametrize("hosts", ["one:x", "one:1,two:x", "one:65536", "one,,two", "one,", ",two", "one:0"])
def test_a_host_that_cannot_be_is_refused(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="illegal host or port") as told:
        read_settings(f"amqp://user:secret@{hosts}", CONTEXT)
    assert "secret" not in str(told.value)
