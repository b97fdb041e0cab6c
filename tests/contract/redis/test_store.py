"""The idempotency store."""

import asyncio
from uuid import uuid4

import pytest

from messaging.clock import SystemClock
from messaging.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    IdempotencyConflict,
)
from messaging.store import Begun, Completed, InProgress
from messaging_contracts.brokers.process import free_port
from messaging_redis import RedisStore


@pytest.fixture
async def store(redis_url):
    store = RedisStore.from_url(f"{redis_url}?namespace=s{uuid4().hex[:8]}", clock=SystemClock())
    await store.open()
    yield store
    await store.close()
    await store.close()


async def test_a_key_is_begun_once_and_tells_who_waits_how_long(store):
    first = await store.begin("k", digest="d", lease=5)
    second = await store.begin("k", digest="d", lease=5)

    assert isinstance(first, Begun)
    assert isinstance(second, InProgress)
    assert 4 < second.remaining <= 5
    assert store.shared


@pytest.mark.parametrize("result", [None, b"", b"\x00reply"])
async def test_what_is_complete_stays_with_its_result_until_its_ttl(store, result):
    begun = await store.begin("k", digest="d", lease=5)

    assert await store.complete("k", begun.fence, result=result, ttl=2)
    assert await store.begin("k", digest="d", lease=5) == Completed(result)
    await asyncio.sleep(2.05)
    assert isinstance(await store.begin("k", digest="other", lease=5), Begun)


async def test_an_expired_lease_is_taken_over_and_the_slow_owner_cannot_complete(store):
    slow = await store.begin("k", digest="d", lease=0.05)
    await asyncio.sleep(0.1)
    other = await store.begin("k", digest="d", lease=5)

    assert other.fence > slow.fence
    assert not await store.extend("k", slow.fence, lease=5)
    assert not await store.complete("k", slow.fence, result=b"late", ttl=5)
    await store.clear("k", slow.fence)
    assert await store.complete("k", other.fence, result=b"ok", ttl=5)
    assert await store.begin("k", digest="d", lease=5) == Completed(b"ok")


async def test_an_extended_lease_holds(store):
    begun = await store.begin("k", digest="d", lease=1.5)

    assert await store.extend("k", begun.fence, lease=5)
    await asyncio.sleep(1.6)

    assert isinstance(await store.begin("k", digest="d", lease=5), InProgress)


async def test_a_cleared_key_is_absent_and_its_next_fence_is_larger(store):
    first = await store.begin("k", digest="d", lease=5)
    await store.clear("k", first.fence)

    second = await store.begin("k", digest="another payload", lease=5)

    assert second.fence > first.fence
    assert not await store.complete("k", first.fence, result=None, ttl=5)


@pytest.mark.parametrize("done", [False, True])
async def test_another_payload_under_one_key_is_a_conflict(store, done):
    begun = await store.begin("k", digest="d", lease=5)
    if done:
        await store.complete("k", begun.fence, result=None, ttl=5)

    with pytest.raises(IdempotencyConflict, match="'k'"):
        await store.begin("k", digest="other", lease=5)


async def test_who_asks_again_as_the_answer_was_lost_keeps_the_key_and_its_fence(store):
    lost = await store.begin("k", digest="d", lease=0.05, token="mine")
    assert isinstance(await store.begin("k", digest="d", lease=5, token="another's"), InProgress)

    again = await store.begin("k", digest="d", lease=5, token="mine")

    assert again == lost
    waiting = await store.begin("k", digest="d", lease=5)
    assert isinstance(waiting, InProgress)
    assert waiting.remaining > 1
    await store.clear("k", again.fence)
    other = await store.begin("k", digest="d", lease=5, token="another's")
    assert other.fence > again.fence
    assert isinstance(await store.begin("k", digest="d", lease=5, token="mine"), InProgress)


async def test_a_program_that_knows_no_tokens_is_not_taken_for_the_one_before_it(store):
    await store.begin("k", digest="d", lease=5, token="mine")
    key = store._prefix + "k"
    await store._connection.call(
        key, "HSET", key, "fence", "9" * 16
    )  # as that program does, which leaves the rest

    assert isinstance(await store.begin("k", digest="d", lease=5, token="mine"), InProgress)


async def test_of_many_at_once_one_begins(store):
    results = await asyncio.gather(*(store.begin("k", digest="d", lease=5) for _ in range(50)))

    assert sum(isinstance(result, Begun) for result in results) == 1


async def test_a_store_that_cannot_be_reached_says_so(own):
    with pytest.raises(ConnectionFailed):
        await RedisStore.from_url(f"redis://127.0.0.1:{free_port()}", clock=SystemClock()).open()
    broker, bench = await own(password="geheim")
    with pytest.raises(AuthenticationFailed):
        await RedisStore.from_url(bench.url.replace("geheim", "x"), clock=SystemClock()).open()
    store = RedisStore.from_url(bench.url, clock=SystemClock())
    await store.open()
    broker.kill()
    with pytest.raises(ConnectionFailed):
        await store.begin("k", digest="d", lease=5)
    await store.close()


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru"])
async def test_a_server_that_would_evict_keys_is_refused_as_a_store(own, policy):
    _, bench = await own(config={"maxmemory-policy": policy})

    with pytest.raises(ConfigurationError, match=f"{policy}.*handled twice"):
        await RedisStore.from_url(bench.url, clock=SystemClock()).open()


async def test_a_store_that_is_told_to_evict_keys_while_programs_run_says_so_in_the_log(
    own, monkeypatch, caplog
):
    monkeypatch.setattr("messaging_redis.store._LOOK_AGAIN", 0)
    _, bench = await own()
    store = RedisStore.from_url(bench.url, clock=SystemClock())
    await store.open()
    adapter = await bench.adapter()

    await store.begin("k", digest="d", lease=5)
    assert not caplog.records
    await adapter.native.config_set("maxmemory-policy", "volatile-lru")
    assert isinstance(await store.begin("other", digest="d", lease=5), Begun)

    assert "volatile-lru" in caplog.text
    await store.close()
