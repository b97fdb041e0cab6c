"""SQS and SNS of LocalStack, and SQS of ElasticMQ, which keeps AWS' limits; topics of each test's own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from messaging_contracts import brokers
from tests.contract.sqs.support import Bench, clean


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contract/sqs" in item.path.as_posix():
            item.add_marker(pytest.mark.sqs)


@pytest.fixture(scope="session")
def sqs_url() -> Iterator[str]:
    """From the environment, else a server that is started for this run."""
    with brokers.start("sqs") as broker:
        yield f"{broker.url}&groups_refresh=0"


@pytest.fixture(scope="session")
def elasticmq_url() -> Iterator[str]:
    with brokers.start("elasticmq") as broker:
        yield f"{broker.url}&groups_refresh=0"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
async def bench(sqs_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        bench = Bench(sqs_url, stack)
        yield bench
        await stack.aclose()
    await clean(bench)


@pytest.fixture
async def strict(elasticmq_url: str) -> AsyncIterator[Bench]:
    """A bench on ElasticMQ."""
    async with AsyncExitStack() as stack:
        bench = Bench(elasticmq_url, stack)
        yield bench
        await stack.aclose()
    await clean(bench)


@pytest.fixture(params=["sqs", "elasticmq"])
def any_bench(request: pytest.FixtureRequest) -> Bench:
    return request.getfixturevalue("bench" if request.param == "sqs" else "strict")
