"""The pytest plugin: a user's own tests, or the suite, on any broker.

`--messaging-broker memory,redis,rabbitmq` says on which; a URL names one that is not ours. Every test that uses `bus`,
`messaging_url` or `messaging_broker` runs on each of them. Brokers are found or started when the first test needs
them and ended with the session; one that cannot be had fails its tests, it never skips them. Nothing of this is
imported before a test asks for it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from messaging import Bus

MARK = "messaging_brokers"
MEMORY = "memory"

pytest.register_assert_rewrite("messaging_contracts.cases", "messaging_contracts.ledger")


def pytest_addoption(parser: pytest.Parser) -> None:
    """See the hook of this name."""
    parser.getgroup("messaging").addoption(
        "--messaging-broker",
        metavar="NAMES",
        help="run tests that use `bus` or `messaging_url` on these brokers, by name or URL, separated by commas: "
        "memory, redis, rabbitmq, kafka (default: what the mark messaging_brokers of the test says, else memory)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """See the hook of this name."""
    config.addinivalue_line(
        "markers", f"{MARK}(*names): the brokers to run on when --messaging-broker names none"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See the hook of this name."""
    if "messaging_broker" in metafunc.fixturenames:
        option: str | None = metafunc.config.getoption("--messaging-broker")
        if option is not None:
            names = tuple(filter(None, (name.strip() for name in option.split(","))))
            if not names:  # a variable that is not set; pytest would skip the test, and the run be green
                raise pytest.UsageError(f"--messaging-broker {option!r} names no broker")
        else:
            mark = metafunc.definition.get_closest_marker(MARK)
            names = mark.args if mark else (MEMORY,)
        metafunc.parametrize("messaging_broker", names, ids=_shown, indirect=True, scope="session")


def _shown(name: str) -> str:
    """A broker in a test's id: of a URL only the scheme, the rest may be secret."""
    return name.partition("://")[0]


@pytest.fixture(scope="session")
def messaging_server() -> Iterator[Callable[[str], str]]:
    """The URL of a broker by its name; found or started when it is first asked for, ended with the session."""
    urls: dict[str, str] = {MEMORY: f"memory://{secrets.token_hex(4)}"}
    with ExitStack() as started, pytest.MonkeyPatch.context() as environment:

        def server(name: str) -> str:
            if "://" in name:
                return name
            if name not in urls:
                from messaging_contracts import brokers

                try:
                    broker = started.enter_context(brokers.start(name))
                except brokers.BrokerUnavailable as error:
                    pytest.fail(str(error), pytrace=False)
                for variable, value in broker.client_environment.items():
                    environment.setenv(variable, os.environ.get(variable, value))
                urls[name] = broker.url
            return urls[name]

        yield server


@pytest.fixture(scope="session")
def messaging_broker(request: pytest.FixtureRequest, messaging_server: Callable[[str], str]) -> str:
    """The URL of the broker that this test runs on. Other tests use it too."""
    return messaging_server(request.param)


@pytest.fixture
def messaging_url(messaging_broker: str) -> str:
    """The URL of the broker that this test runs on, with a namespace of its own; in memory a broker of its own."""
    from messaging.registry import scheme_of
    from messaging_contracts.targets import with_options

    if scheme_of(messaging_broker) == MEMORY:
        return f"{MEMORY}://{secrets.token_hex(6)}"
    return with_options(messaging_broker, namespace=_fresh())


async def _open_bus(messaging_broker: str) -> AsyncIterator[Bus]:
    """An open bus on the broker that this test runs on, with a namespace of its own."""
    from messaging import connect

    async with connect(messaging_broker, namespace=_fresh()) as opened:
        yield opened


def _no_bus() -> NoReturn:
    """What is missing for an open bus."""
    pytest.fail(
        "the fixture bus needs pytest-asyncio: pip install 'messaging-ports[contracts]'", pytrace=False
    )


try:
    from pytest_asyncio import fixture as _async_fixture
except ModuleNotFoundError:  # without the extra: pytest loads this all the same, and must not end of it
    bus: Any = pytest.fixture(_no_bus, name="bus")
else:
    bus = _async_fixture(_open_bus, name="bus")


def _fresh() -> str:
    return f"test-{secrets.token_hex(6)}"
