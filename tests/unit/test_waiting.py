"""What waits for its topic to be declared fails with the one before it of its key, and with no other (7)."""

import asyncio

import pytest

from messaging import PublishError, PublishManyError, Receipt
from messaging.errors import ConnectionFailed
from tests.unit.topics import bodies, jobs, orders

BEHIND = "published before it with the same key, failed: Nothing was sent to orders"


@pytest.fixture
async def gate(bus, clock, monkeypatch):
    """Nothing is declared before this is set."""
    await bus.declare(orders, groups=["audit"])
    await bus.declare(jobs, groups=["audit"])
    bus.catalogue._again.update(("orders", "jobs"))
    declare, gate = bus.adapter.declare, asyncio.Event()

    async def slow(topology):
        await gate.wait()
        clock.touch()
        await declare(topology)

    monkeypatch.setattr(bus.adapter, "declare", slow)
    return gate


async def published(bus, clock, payload, *, topic=orders, timeout=30.0):
    """A call that waits."""
    call = asyncio.create_task(bus.publish(topic, payload, timeout=timeout))
    await clock.settle()
    assert not call.done()
    return call


async def test_a_publish_that_fails_while_it_waits_for_its_topic_takes_those_behind_it_of_its_key_with_it(
    bus, clock, gate
):
    before = await published(bus, clock, "a0")
    hasty = await published(bus, clock, "a1", timeout=1)
    behind = [await published(bus, clock, payload) for payload in ("a2", "a3")]
    other = await published(bus, clock, "b1")
    await clock.advance(1)

    assert "did not declare it within 1 s" in str(hasty.exception())
    assert all(BEHIND in str(call.exception()) for call in behind)
    later = await published(bus, clock, "a4")
    gate.set()
    assert all(isinstance(receipt, Receipt) for receipt in await asyncio.gather(before, other, later))
    assert await bodies(bus, clock, orders) == [b'"a0"', b'"b1"', b'"a4"']
    assert not bus._sender.waiting.by_key


async def test_the_first_one_that_waits_takes_those_behind_it_with_it_and_another_goes_on_for_it(
    bus, clock, gate
):
    hasty = await published(bus, clock, "a1", timeout=1)
    behind = await published(bus, clock, "a2")
    other = await published(bus, clock, "b1")
    await clock.advance(1)

    assert hasty.exception()
    assert BEHIND in str(behind.exception())
    gate.set()
    assert isinstance(await other, Receipt)


async def test_of_a_batch_what_is_behind_it_fails_and_the_rest_is_published(bus, clock, gate):
    hasty = asyncio.create_task(bus.publish_many(orders, ["a1", "c1"], timeout=1))
    await clock.settle()
    batch = asyncio.create_task(bus.publish_many(orders, ["a2", "b1", "c2", "b2", "a3"]))
    whole = asyncio.create_task(bus.publish_many(orders, ["c3", "a4"]))
    await clock.advance(1)
    assert hasty.exception()
    assert isinstance(whole.exception(), PublishManyError)
    gate.set()

    with pytest.raises(PublishManyError) as raised:
        await batch
    results = raised.value.results
    assert [isinstance(result, Receipt) for result in results] == [False, True, False, True, False]
    assert all(BEHIND in str(result) for result in results if isinstance(result, PublishError))
    assert await bodies(bus, clock, orders) == [b'"b1"', b'"b2"']


async def test_who_comes_before_a_batch_is_told_what_failed_of_it_does_not_go_past_that(
    bus, clock, gate, monkeypatch
):
    hasty = await published(bus, clock, "a1", timeout=1)
    batch = asyncio.create_task(bus.publish_many(orders, ["a2", "b1"]))
    await clock.advance(1)
    assert hasty.exception()
    publish, confirmed = bus.adapter.publish, asyncio.Event()

    async def slow(messages):
        await confirmed.wait()
        return await publish(messages)

    monkeypatch.setattr(bus.adapter, "publish", slow)
    behind = [asyncio.create_task(bus.publish(orders, "a3"))]
    await clock.settle()
    gate.set()
    await clock.settle()
    behind.append(asyncio.create_task(bus.publish(orders, "a4")))
    behind.append(asyncio.create_task(bus.publish_many(orders, ["a5", "c1"])))
    await clock.settle()
    confirmed.set()

    await asyncio.wait((batch, *behind))
    assert [PublishError, PublishError, PublishManyError] == [type(call.exception()) for call in behind]
    assert all("published before it with the same key" in str(call.exception()) for call in behind[:2])
    assert sorted(await bodies(bus, clock, orders)) == [b'"b1"', b'"c1"']
    assert isinstance(await bus.publish(orders, "a6"), Receipt)
    assert not bus._sender.waiting.by_key
    assert not bus._sender.waiting.failed


async def test_a_topic_without_order_takes_nothing_with_it(bus, clock, gate):
    hasty = await published(bus, clock, "a1", topic=jobs, timeout=1)
    behind = await published(bus, clock, "a2", topic=jobs)
    await clock.advance(1)
    assert hasty.exception()
    gate.set()

    assert isinstance(await behind, Receipt)


async def test_a_caller_that_goes_away_takes_nothing_with_it(bus, clock, gate):
    gone = await published(bus, clock, "a1")
    behind = await published(bus, clock, "a2")
    gone.cancel()
    await clock.settle()
    gate.set()

    assert isinstance(await behind, Receipt)


async def test_a_caller_that_goes_away_as_it_fails_is_cancelled(bus, clock, gate):
    hasty = await published(bus, clock, "a1", timeout=1)
    behind = await published(bus, clock, "a2", timeout=1)
    clock.call_later(1, behind.cancel)
    await clock.advance(1)

    assert hasty.exception()
    assert behind.cancelled()
    assert not bus._sender.waiting.by_key


async def test_calls_whose_time_ends_as_the_topic_is_declared_keep_their_order(bus, clock, gate):
    hasty = await published(bus, clock, "a1", timeout=1)
    behind = [await published(bus, clock, f"a{number}", timeout=number / 2) for number in (2, 3, 4)]
    clock.call_later(1, gate.set)
    await clock.advance(2)

    results = [call.exception() for call in (hasty, *behind)]
    assert [error is None for error in results] in ([False] * 4, [True] * 4)


async def test_where_the_broker_does_not_declare_it_everybody_is_told_that(bus, clock, gate, monkeypatch):
    async def refuse(topology):
        await gate.wait()
        raise ConnectionFailed("the broker is away")

    monkeypatch.setattr(bus.adapter, "declare", refuse)
    calls = [await published(bus, clock, payload) for payload in ("a1", "a2", "b1")]
    gate.set()

    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(result) for result in results} == {"the broker is away"}
    assert not bus._sender.waiting.by_key


@pytest.fixture
async def refusing(bus, gate, monkeypatch):
    """What is handed over is refused when this is set, but for the key b."""
    gate.set()
    await bus.publish(orders, "b0")
    await bus.publish(orders, "a0")
    gate.clear()
    publish, refusing = bus.adapter.publish, asyncio.Event()

    async def refuse(messages):
        await refusing.wait()
        results = await publish([one for one in messages if one.message.key == "b"])
        return [PublishError("refused")] * (len(messages) - len(results)) + list(results)

    monkeypatch.setattr(bus.adapter, "publish", refuse)
    return refusing


async def test_a_publish_that_fails_further_on_takes_with_it_what_waits_for_its_topic(
    bus, clock, gate, refusing
):
    former = await published(bus, clock, "a1")
    bus.catalogue._again.add("orders")
    behind = await published(bus, clock, "a2")
    other = await published(bus, clock, "b1")

    refusing.set()
    await clock.settle()

    assert "refused" in str(former.exception())
    assert "published before it with the same key, failed: refused" in str(behind.exception())
    gate.set()
    assert isinstance(await other, Receipt)
    assert await bodies(bus, clock, orders) == [b'"b0"', b'"a0"', b'"b1"']


async def test_who_begins_to_wait_before_a_failure_further_on_is_told_is_behind_it(
    bus, clock, gate, refusing
):
    first = await published(bus, clock, "a1")
    hasty = await published(bus, clock, "a2", timeout=1)
    batch = asyncio.create_task(bus.publish_many(orders, ["a3", "b1"]))
    await clock.advance(1)
    assert hasty.exception()
    assert not batch.done()

    bus.catalogue._again.add("orders")
    with pytest.raises(PublishError, match="published before it with the same key, failed"):
        await bus.publish(orders, "a4")
    refusing.set()
    gate.set()
    await asyncio.wait((first, batch))
    assert str(first.exception()) == "refused"
    assert isinstance(batch.exception(), PublishManyError)
