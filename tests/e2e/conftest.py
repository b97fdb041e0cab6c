"""The brokers that the end-to-end tests run on. One that cannot be had is an error, never a skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from messaging_contracts import brokers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with brokers.start("redis") as broker:
        yield broker.url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    with brokers.start("rabbitmq") as broker:
        yield broker.url


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    with brokers.start("kafka") as broker:
        yield broker.url


@pytest.fixture(scope="session")
def sqs_url() -> Iterator[str]:
    with brokers.start("sqs") as broker:
        yield broker.url


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("sqs", marks=pytest.mark.sqs),
    ]
)
def broker_url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this interpreter in a folder, with nothing of messaging's settings but what the test gives."""

    def run(
        arguments: Sequence[str], cwd: Path = ROOT, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MESSAGING")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**clean, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run
