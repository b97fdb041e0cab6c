"""A real RabbitMQ, and topics of each test's own."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging_rabbitmq import RabbitMQAdapter
from tests.contract.rabbitmq.support import Bench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contract/rabbitmq" in item.path.as_posix():
            item.add_marker(pytest.mark.rabbitmq)


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """From the environment, else a broker that is started for this run."""
    if url := os.environ.get("MESSAGING_TEST_RABBITMQ_URL"):
        yield url
        return
    from messaging_contracts.brokers import start

    with start("rabbitmq") as broker:
        yield broker.url


@pytest.fixture
async def bench(rabbitmq_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        bench = Bench(rabbitmq_url, stack)
        yield bench
        await stack.aclose()
    if bench.groups:
        adapter = RabbitMQAdapter.from_url(
            rabbitmq_url, AdapterContext(clock=SystemClock(), namespace=bench.namespace)
        )
        await adapter.open()
        try:
            for group in bench.groups:
                await adapter.delete_group(group)
            assert adapter.native is not None
            channel = await adapter.native.channel()
            for topic in {group.topic.name: group.topic for group in bench.groups}.values():
                await channel.exchange_delete(adapter._session.names.exchange(topic))
        finally:
            await adapter.close()
