from dataclasses import replace

import pytest

from messaging.adapter import GONE, GroupSpec, Settlement
from messaging.errors import InvalidMessage, MessageTooLarge
from messaging.message import Ack, Reject


def names(deliveries):
    return [delivery.message.id for delivery in deliveries]


async def rejected(world, *ids, key=None):
    consumer = world.consumer()
    await world.publish(*(world.outgoing(id=name, key=key) for name in ids))
    deliveries = await consumer.receive(100, 0)
    await consumer.settle([Settlement(delivery, Reject(), failure='{"n":1}') for delivery in deliveries])
    return consumer, world.adapter.dead_letters(world.group)


async def test_a_scan_shows_each_once_oldest_first_and_consumes_nothing(world):
    await world.declare()
    _, dead = await rejected(world, "a", "b", "c")

    for _ in range(2):
        async with dead.scan() as letters:
            seen = [(letter.message.id, letter.failure) async for letter in letters]
        assert seen == [(name, '{"n":1}') for name in "abc"]
    assert await dead.count() == 3


async def test_redrive_reaches_this_group_alone_with_the_edit_and_a_first_attempt(world):
    groups = [GroupSpec(world.topic, "billing"), GroupSpec(world.topic, "search")]
    await world.declare(*groups)
    consumer, dead = await rejected(world, "a", "b")
    await world.drained(world.consumer(group=groups[1]))

    async with dead.scan() as letters:
        first = await anext(letters)
        edited = replace(first.message, body=b"corrected", headers={"by": "hand"})
        assert await dead.redrive([(first, edited, '{"lives":1}')]) == [None]
        assert await dead.redrive([(first, edited, None)]) == [GONE]

    (delivery,) = await consumer.receive(10, 0)
    assert (delivery.message.id, delivery.message.body, delivery.message.headers) == (
        "a",
        b"corrected",
        {"by": "hand"},
    )
    assert (delivery.attempt, delivery.deliveries, delivery.failure) == (1, 1, '{"lives":1}')
    assert await dead.count() == 1
    assert not await world.consumer(group=groups[1]).receive(10, 0)


async def test_redrive_enters_an_ordered_group_behind_what_was_there(world):
    await world.declare(ordered=True, partitions=1)
    consumer, dead = await rejected(world, "dead", key="k")
    await world.publish(*(world.outgoing(id=name, key="k") for name in "ab"))
    (first,) = await consumer.receive(1, 0)
    async with dead.scan() as letters:
        letter = await anext(letters)
        await dead.redrive([(letter, letter.message, None)])
    await world.publish(world.outgoing(id="c", key="k"))

    assert names(await consumer.receive(10, 0)) == ["b", "dead", "c"]
    await consumer.close()
    got = await world.consumer().receive(10, 0)
    assert names(got) == ["a", "b", "dead", "c"]
    assert len({delivery.position for delivery in got}) == 4
    assert first.message.id == "a"


async def test_redrive_into_an_idle_ordered_group(world):
    await world.declare(ordered=True, partitions=2)
    consumer, dead = await rejected(world, "dead", key="k")
    async with dead.scan() as letters:
        letter = await anext(letters)
        await dead.redrive([(letter, letter.message, None)])

    (delivery,) = await consumer.receive(10, 0)
    await consumer.settle([Settlement(delivery, Ack())])
    assert delivery.message.id == "dead"
    assert [info.lag for info in await world.adapter.groups()] == [0]


async def test_what_is_too_large_after_the_edit_stays_a_dead_letter(world):
    await world.declare()
    _, dead = await rejected(world, "a")

    async with dead.scan() as letters:
        letter = await anext(letters)
        (result,) = await dead.redrive([(letter, replace(letter.message, body=b"x" * 2_000_000), None)])

    assert isinstance(result, MessageTooLarge)
    assert await dead.count() == 1


async def test_purge_removes_each_once(world):
    await world.declare()
    _, dead = await rejected(world, "a", "b", "c")

    async with dead.scan() as letters:
        taken = [letter async for letter in letters][:2]
        assert await dead.purge([*taken, taken[0]]) == 2
        assert await dead.purge(taken) == 0

    assert await dead.count() == 1


async def test_letters_of_a_closed_scan_are_refused(world):
    await world.declare()
    _, dead = await rejected(world, "a")
    async with dead.scan() as letters:
        letter = await anext(letters)

    with pytest.raises(InvalidMessage, match="scan again"):
        await dead.purge([letter])
