"""Counting, browsing, redriving and purging."""

from dataclasses import replace

import pytest

from messaging.adapter import GONE
from messaging.errors import ConfigurationError, TopicNotFound
from messaging.message import Message, Reject


async def dead(bench, adapter, group, count):
    consumer = bench.consumer(adapter, group)
    await bench.publish(adapter, group.topic, count, keys=4)
    deliveries = await bench.receive(consumer, count)
    for delivery in deliveries:
        await bench.settle(consumer, [delivery], Reject("no"), failure=f'{{"id":"{delivery.message.id}"}}')
    return consumer


async def letters_of(store):
    async with store.scan() as letters:
        return [letter async for letter in letters]


async def test_a_scan_gives_each_letter_once_oldest_first_and_takes_none(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await dead(bench, adapter, group, 250)
    store = adapter.dead_letters(group)

    first, second = await letters_of(store), await letters_of(store)

    assert await store.count() == 250
    assert [letter.message for letter in first] == [letter.message for letter in second]
    assert len({letter.message.id for letter in first}) == 250
    assert all(letter.failure == f'{{"id":"{letter.message.id}"}}' for letter in first)
    references = [tuple(map(int, letter.reference[0].split("-"))) for letter in first]
    assert references == sorted(references)


async def test_a_scan_sees_what_was_there_when_it_started(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = await dead(bench, adapter, group, 3)
    store = adapter.dead_letters(group)

    async with store.scan() as letters:
        await anext(letters)
        await bench.publish(adapter, group.topic, 1)
        await bench.settle(consumer, await bench.receive(consumer, 1), Reject("no"))
        rest = [letter async for letter in letters]

    assert len(rest) == 2
    assert await store.count() == 4


async def test_an_edited_letter_is_redriven_and_gone(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = await dead(bench, adapter, group, 120)
    store = adapter.dead_letters(group)

    letters = await letters_of(store)
    edited = [Message(id=letter.message.id, topic="orders", body=b"mended") for letter in letters]
    results = await store.redrive(
        [(letter, message, '{"redrives":1}') for letter, message in zip(letters, edited, strict=True)]
    )
    got = await bench.drain(consumer, 120)

    assert results == [None] * 120
    assert {delivery.message.id for delivery in got} == {letter.message.id for letter in letters}
    assert {(d.message.body, d.attempt, d.failure, d.returns) for d in got} == {
        (b"mended", 1, '{"redrives":1}', 0)
    }
    assert await store.count() == 0


async def test_a_letter_is_redriven_once_even_when_two_try(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer = await dead(bench, adapter, group, 1)
    store = adapter.dead_letters(group)
    (letter,) = await letters_of(store)

    first = await store.redrive([(letter, letter.message, None)])
    second = await store.redrive([(letter, letter.message, None)])
    got = await bench.drain(consumer, 1)

    assert first == [None]
    assert second == [GONE]
    assert len(got) == 1
    assert await consumer.receive(5, 0.2) == []


async def test_purging_removes_these_and_no_others(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await dead(bench, adapter, group, 5)
    store = adapter.dead_letters(group)
    letters = await letters_of(store)

    assert await store.purge([]) == 0
    assert await store.purge(letters[:2]) == 2
    assert await store.purge(letters[:2]) == 0
    assert [letter.message.id for letter in await letters_of(store)] == [
        letter.message.id for letter in letters[2:]
    ]


async def test_a_letter_of_another_program_is_shown_as_it_is(bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await adapter.native.xadd(adapter._topology.group_keys(group).dead, {"body": b"odd"})

    (letter,) = await letters_of(adapter.dead_letters(group))

    assert (letter.message.body, letter.failure) == (b"odd", None)


async def test_a_group_of_another_shape_than_the_brokers_moves_no_letter(bench):
    adapter, operator = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter, ordered=True, partitions=3)
    await dead(bench, adapter, group, 12)
    wrong = [
        replace(group, topic=replace(group.topic, partitions=8)),
        replace(group, topic=replace(group.topic, ordered=False)),
        replace(group, ordered=False),
    ]
    letters = await letters_of(adapter.dead_letters(group))

    for spec in wrong:
        store = operator.dead_letters(spec)
        moves = (
            store.count(),
            letters_of(store),
            store.redrive([(letter, letter.message, None) for letter in letters]),
            store.purge(letters),
        )
        for move in moves:
            with pytest.raises(ConfigurationError, match=r"(3.*8|True.*False)"):
                await move

    assert await adapter.dead_letters(group).count() == 12


async def test_an_absent_topic_or_group_has_no_dead_letters_and_says_so(bench):
    adapter, operator = await bench.adapter(), await bench.adapter()
    group = await bench.group(adapter)

    with pytest.raises(TopicNotFound, match="absent"):
        await operator.dead_letters(replace(group, topic=replace(group.topic, name="absent"))).count()
    with pytest.raises(ConfigurationError, match="'nobody'"):
        await operator.dead_letters(replace(group, name="nobody")).count()
