"""A real Kafka, and topics of each test's own."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from messaging_contracts.brokers import Broker, start
from messaging_contracts.brokers.kafka import listener
from messaging_contracts.brokers.process import LOOPBACK, free_port
from messaging_contracts.faults.proxy import Proxy
from tests.contract.kafka.support import Bench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contract/kafka" in item.path.as_posix():
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    """From the environment, else a broker that is started for this run."""
    if url := os.environ.get("MESSAGING_TEST_KAFKA_URL"):
        yield url
        return
    with start("kafka") as broker:
        yield broker.url


@pytest.fixture(scope="session")
def way_in() -> tuple[int, int]:
    """Another port of the broker of our own, and where it sends those on who come by it: to a proxy."""
    return free_port(), free_port()


@pytest.fixture(scope="session")
def own_broker(way_in: tuple[int, int]) -> Iterator[Broker]:
    """A broker that tests may stop, kill and pause; each leaves it running."""
    port, proxy = way_in
    with start(
        "kafka", own=True, config=listener("PROXIED", port, advertised=f"{LOOPBACK}:{proxy}")
    ) as broker:
        yield broker


@pytest.fixture
async def bench(kafka_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        bench = Bench(kafka_url, stack)
        stack.push_async_callback(bench.clean)
        yield bench


@pytest.fixture
async def fragile(own_broker: Broker) -> AsyncIterator[Bench]:
    """The same on the broker of our own; what it leaves goes with the broker."""
    async with AsyncExitStack() as stack:
        yield Bench(own_broker.url, stack)


@pytest.fixture
async def proxy(own_broker: Broker, way_in: tuple[int, int]) -> AsyncIterator[Proxy]:
    """Between a test and the broker of our own."""
    port, own_port = way_in
    async with Proxy(LOOPBACK, port, own_port) as proxy:
        yield proxy
