"""Logging in: every mechanism, and what a wrong credential says."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from messaging import App, Topic, connect
from messaging.adapter import TopicSpec
from messaging.errors import AuthenticationFailed, ConfigurationError, ConnectionFailed
from messaging_contracts.brokers import Broker, start
from messaging_contracts.targets import with_options
from tests.contract.bench import ack, ids, publish, receive
from tests.contract.kafka.support import Bench

PASSWORD = "p@ss/w#rd"
TOPIC = TopicSpec("orders", partitions=2)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Broker]:
    with start("kafka", own=True, user="ann", password=PASSWORD) as broker:
        yield broker


@pytest.fixture
async def guarded_bench(guarded: Broker) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(guarded.url, stack)


def unsigned_token() -> str:
    """What a broker takes that trusts everybody."""
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": "ann", "iat": now, "exp": now + 600})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in parts)
        + "."
    )


def without_credentials(url: str) -> str:
    return "kafka://" + url.rpartition("@")[2]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_all_works_by_each_mechanism(guarded_bench: Bench, mechanism: str) -> None:
    url, options = guarded_bench.url, {"sasl": mechanism}
    if mechanism == "OAUTHBEARER":
        url, options = without_credentials(url), {**options, "oauth_token": unsigned_token()}
    adapter = await guarded_bench.adapter(url, **options)
    group = await guarded_bench.group(adapter, TOPIC)
    consumer = guarded_bench.consumer(adapter, group)

    await publish(adapter, TOPIC, "one")
    deliveries = await receive(consumer, 1)
    await ack(consumer, deliveries)

    assert ids(deliveries) == ["one"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_told_at_once_and_not_shown(guarded_bench: Bench, mechanism: str) -> None:
    place = guarded_bench.url.rpartition("@")[2]
    adapter = guarded_bench.unopened(f"kafka://ann:hunter2@{place}", sasl=mechanism)
    started = time.monotonic()

    with pytest.raises(AuthenticationFailed, match="refused the credentials") as refused:
        await adapter.open()

    assert time.monotonic() - started < 5
    assert "hunter2" not in str(refused.value) + repr(adapter)


class Provider:
    """What answers for a token; a test lets it fail."""

    failing = False

    async def __call__(self) -> str:
        if self.failing:
            raise RuntimeError("the identity provider said: s3cret")
        return unsigned_token()


provider = Provider()


async def test_a_refused_token_is_told_at_once_and_not_shown(guarded_bench: Bench) -> None:
    url = without_credentials(guarded_bench.url)
    adapter = guarded_bench.unopened(url, sasl="OAUTHBEARER", oauth_token="hunter2")

    with pytest.raises(AuthenticationFailed, match="refused the credentials.*token") as refused:
        await adapter.open()

    assert "hunter2" not in str(refused.value)


async def test_a_token_that_is_not_to_be_had_is_told_with_where_it_should_be(
    guarded_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "failing", True)
    url = without_credentials(guarded_bench.url)
    missing = guarded_bench.unopened(url, sasl="OAUTHBEARER", oauth_token_file="/nowhere/token")
    failing = guarded_bench.unopened(url, sasl="OAUTHBEARER", oauth_provider=f"{__name__}:provider")

    with pytest.raises(ConfigurationError, match=r"'/nowhere/token' cannot be read: No such file"):
        await missing.open()
    with pytest.raises(AuthenticationFailed, match=r":provider' failed: RuntimeError") as failed:
        await failing.open()

    assert "s3cret" not in str(failed.value)


async def test_a_provider_that_fails_for_a_while_costs_a_wait(
    guarded_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await guarded_bench.adapter(
        without_credentials(guarded_bench.url), sasl="OAUTHBEARER", oauth_provider=f"{__name__}:provider"
    )
    group = await guarded_bench.group(adapter, TopicSpec("by-token", partitions=2))
    await publish(adapter, group.topic, "one")
    consumer = guarded_bench.consumer(adapter, group)

    monkeypatch.setattr(provider, "failing", True)
    with pytest.raises(ConnectionFailed, match="failed: RuntimeError") as failed:
        await receive(consumer, 1)
    monkeypatch.setattr(provider, "failing", False)

    assert not isinstance(failed.value, AuthenticationFailed)
    assert ids(await receive(consumer, 1)) == ["one"]


async def test_an_app_is_configured_by_the_url_alone(guarded: Broker) -> None:
    topic, app, handled = Topic[int]("orders", int, partitions=2), App("billing"), list[int]()

    @app.subscribe(topic)
    async def handle(number: int) -> None:
        handled.append(number)

    url = with_options(guarded.url, sasl="SCRAM-SHA-512", compression="gzip")
    async with connect(url, namespace="by-url") as bus, app.running(bus):
        await bus.publish(topic, 1)
        while not handled:
            await bus.health()
    assert handled == [1]
