"""Dead letters: kept, looked at, redriven and purged one by one, although Kafka deletes no single record."""

import asyncio
import json
from dataclasses import replace

import pytest

from messaging.adapter import DONE, GONE, StoredLetter, TopicSpec
from messaging.errors import ConfigurationError, ConnectionFailed
from messaging.message import Ack, Reject, Retry
from messaging_kafka import dead_letters, library
from messaging_kafka.library import Place
from messaging_kafka.records import Parcel
from tests.contract.bench import ack, ids, nothing, publish, receive, settle
from tests.contract.kafka.support import Bench, brokers_of

ORDERED = TopicSpec("orders", ordered=True, partitions=4)
PLAIN = TopicSpec("orders", partitions=2)


async def letters_of(store) -> list[StoredLetter]:
    async with store.scan() as letters:
        return [letter async for letter in letters]


async def make_dead(bench: Bench, topic: TopicSpec, *names: str):
    adapter = await bench.adapter()
    group = await bench.group(adapter, topic)
    for name in names:
        await publish(adapter, topic, name, key=name)
    consumer = bench.consumer(adapter, group)
    await settle(consumer, await receive(consumer, len(names)), Reject("unwanted"), failure='{"why": "bad"}')
    return adapter, group, consumer


async def test_a_letter_is_the_whole_message_with_its_failure(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, ORDERED)
    await publish(adapter, ORDERED, "one", key="ann", headers={"tenant": "ours"}, content_type="text/plain")
    consumer = bench.consumer(adapter, group)
    (delivery,) = await receive(consumer, 1)
    await settle(consumer, [delivery], Reject("unwanted"), failure='{"why": "bad"}')

    (letter,) = await letters_of(adapter.dead_letters(group))

    assert letter.message == delivery.message
    assert letter.failure == '{"why": "bad"}'


async def test_a_mark_is_kept_on_kafka_and_seen_by_other_programs(bench: Bench) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b", "c")
    store = adapter.dead_letters(group)
    other = (await bench.adapter()).dead_letters(group)
    assert await other.count() == 3
    letters = {letter.message.id: letter for letter in await letters_of(store)}

    await store.redrive([(letters["b"], letters["b"].message, None)])

    assert await other.count() == 2
    assert sorted(letter.message.id for letter in await letters_of(other)) == ["a", "c"]
    fresh = (await bench.adapter()).dead_letters(group)
    assert await fresh.count() == 2


async def test_what_another_has_redriven_is_not_redriven_again(bench: Bench) -> None:
    adapter, group, consumer = await make_dead(bench, ORDERED, "a")
    one, two = adapter.dead_letters(group), (await bench.adapter()).dead_letters(group)
    (letter,) = await letters_of(one)
    (same,) = await letters_of(two)

    assert await one.redrive([(letter, letter.message, None)]) == [None]
    (refused,) = await two.redrive([(same, same.message, None)])

    assert refused is GONE
    assert await two.purge([same]) == 0
    (again,) = await receive(consumer, 1)
    await ack(consumer, [again])
    await nothing(consumer)


async def test_of_two_who_redrive_at_once_each_letter_has_one(bench: Bench) -> None:
    adapter, group, consumer = await make_dead(bench, ORDERED, *map(str, range(20)))
    one, two = adapter.dead_letters(group), (await bench.adapter()).dead_letters(group)
    letters = [(letter, letter.message, None) for letter in await letters_of(one)]

    first, second = await asyncio.gather(one.redrive(letters), two.redrive(letters[::-1]))

    assert [*first, *second].count(None) == 20
    assert [*first, *second].count(GONE) == 20
    again = await receive(consumer, 20)
    await ack(consumer, again)
    await nothing(consumer)


async def test_a_claim_that_nothing_came_of_is_void_after_a_while(bench: Bench) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a")
    store = adapter.dead_letters(group)
    (letter,) = await letters_of(store)
    topic = adapter._session.names.dead(group)
    claim = json.dumps({"claim": "of a process that died", "letters": [letter.reference[0]]}).encode()
    await adapter._session.writer.write([Parcel(topic, 1, None, claim, [])])

    assert await store.redrive([(letter, letter.message, None)]) == [GONE]
    assert await store.count() == 1
    for held in (adapter._marks["orders", "billing"],):
        held._claims = {offset: (token, 0.0) for offset, (token, _) in held._claims.items()}
    assert await store.redrive([(letter, letter.message, None)]) == [None]


@pytest.mark.parametrize("purging", [False, True], ids=["redrive", "purge"])
async def test_who_is_cancelled_while_claiming_gives_the_letters_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, purging: bool
) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b")
    store, claimed = adapter.dead_letters(group), asyncio.Event()
    letters = [(one, one.message, None) for one in await letters_of(store)]
    write = adapter._session.writer.write

    async def held_up(parcels):
        fates = await write(parcels)
        if not claimed.is_set():
            claimed.set()
            await asyncio.Event().wait()
        return fates

    monkeypatch.setattr(adapter._session.writer, "write", held_up)
    cut_off = asyncio.create_task(
        store.purge([letter for letter, _, _ in letters]) if purging else store.redrive(letters)
    )
    await claimed.wait()
    cut_off.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut_off

    other = (await bench.adapter()).dead_letters(group)
    assert await other.redrive(letters) == [None, None]


async def test_a_redrive_that_fails_as_it_claims_gives_the_letters_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b")
    store = adapter.dead_letters(group)
    letters = [(one, one.message, None) for one in await letters_of(store)]
    writer, offsets = adapter._session.writer, brokers_of(adapter).offsets
    write = writer.write

    async def broken(*_):
        monkeypatch.setattr(brokers_of(adapter), "offsets", offsets)
        raise ConnectionFailed("no answer")

    async def before_it_breaks(parcels):
        monkeypatch.setattr(writer, "write", write)
        fates = await write(parcels)
        monkeypatch.setattr(brokers_of(adapter), "offsets", broken)
        return fates

    monkeypatch.setattr(writer, "write", before_it_breaks)
    with pytest.raises(ConnectionFailed, match="no answer"):
        await store.redrive(letters)

    assert await store.redrive(letters) == [None, None]


async def test_a_redrive_that_is_cancelled_as_it_writes_puts_every_letter_back_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, group, consumer = await make_dead(bench, ORDERED, "a", "b")
    store, writing, go_on = adapter.dead_letters(group), asyncio.Event(), asyncio.Event()
    letters = [(one, one.message, None) for one in await letters_of(store)]
    write = adapter._session.writer.write_copies

    async def held_up(parcels):
        writing.set()
        await go_on.wait()
        return await write(parcels)

    monkeypatch.setattr(adapter._session.writer, "write_copies", held_up)
    redriving = asyncio.create_task(store.redrive(letters))
    await writing.wait()
    redriving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await redriving

    assert await store.count() == 0
    assert await store.redrive(letters) == [GONE, GONE]
    await ack(consumer, await receive(consumer, 2))
    await nothing(consumer)


async def test_a_redrive_that_is_cancelled_beside_a_broker_that_hangs_ends_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a")
    store, hanging = adapter.dead_letters(group), asyncio.Event()
    letters = [(one, one.message, None) for one in await letters_of(store)]

    async def hang(_):
        hanging.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(dead_letters, "ENDING", 0.2)
    monkeypatch.setattr(adapter._session.writer, "write", hang)
    redriving = asyncio.create_task(store.redrive(letters))
    await hanging.wait()
    redriving.cancel()

    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await redriving


async def test_a_copy_that_cannot_be_made_leaves_no_claim(bench: Bench) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b")
    store = adapter.dead_letters(group)
    one, two = await letters_of(store)
    odd = replace(two.message, source="\ud800")

    with pytest.raises(UnicodeEncodeError):
        await store.redrive([(one, one.message, None), (two, odd, None)])

    assert await store.redrive([(one, one.message, None), (two, two.message, None)]) == [None, None]


async def test_a_redriven_message_comes_to_the_partition_of_its_key_in_this_group_only(bench: Bench) -> None:
    adapter, group, consumer = await make_dead(bench, ORDERED, *"abcdefgh")
    search = await bench.group(adapter, ORDERED, "search")
    other = bench.consumer(adapter, search)
    store = adapter.dead_letters(group)

    letters = await letters_of(store)
    failure = json.dumps({"redrives": 1})
    assert await store.redrive([(one, one.message, failure) for one in letters]) == [None] * 8
    again = await receive(consumer, 8)

    partitions = {one.message.key: one.partition for one in again}
    places = {one.message.id: int(one.reference[1].partition("/")[0]) for one in letters}
    assert partitions == places
    assert {(one.attempt, one.failure) for one in again} == {(1, failure)}
    assert await store.count() == 0
    await ack(consumer, again)
    await nothing(other)


async def test_a_redriven_message_may_fail_and_die_again(bench: Bench) -> None:
    for topic in (ORDERED, TopicSpec("plain", partitions=1)):
        adapter, group, consumer = await make_dead(bench, topic, "a")
        store = adapter.dead_letters(group)
        (letter,) = await letters_of(store)
        position = letter.reference[1]

        await store.redrive([(letter, letter.message, None)])
        (again,) = await receive(consumer, 1)
        assert (again.position, again.attempt) == (position, 1)
        assert await settle(consumer, [again], Reject("again"), failure="{}") == [DONE]

        (letter,) = await letters_of(store)
        assert letter.reference[1] == position


async def test_letters_that_are_gone_are_cut_off(bench: Bench) -> None:
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b", "c", "d")
    store = adapter.dead_letters(group)
    place = Place(adapter._session.names.dead(group), 0)
    letters = await letters_of(store)

    async def first() -> int:
        return (await brokers_of(adapter).offsets({place: library.EARLIEST}))[place]

    assert await store.purge([letters[1]]) == 1
    assert await first() == 0
    assert await store.purge([letters[0]]) == 1
    assert await first() == 2
    assert [one.message.id for one in await letters_of(store)] == [one.message.id for one in letters[2:]]
    assert await store.purge(letters) == 2
    assert (await first(), await store.count()) == (4, 0)


async def test_letters_that_cannot_be_cut_off_are_gone_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who redrives has no right to delete, or the answer was lost: the letter was redriven, whatever became of that."""
    adapter, group, _ = await make_dead(bench, ORDERED, "a", "b", "c")
    store = adapter.dead_letters(group)
    letters = await letters_of(store)
    place = Place(adapter._session.names.dead(group), 0)

    async def refused(before: object) -> None:
        raise ConfigurationError("not allowed")

    with monkeypatch.context() as broken:
        broken.setattr(brokers_of(adapter), "delete_records", refused)
        assert await store.redrive([(letters[0], letters[0].message, None)]) == [None]
        assert await store.purge([letters[1]]) == 1
    assert caplog.text.count("were not deleted from Kafka: not allowed") == 2
    assert [one.message.id for one in await letters_of(store)] == [letters[2].message.id]

    assert await store.purge([letters[2]]) == 1
    assert (await brokers_of(adapter).offsets({place: library.EARLIEST}))[place] == 3


async def test_letters_of_other_programs_are_letters(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    topic = adapter._session.names.dead(group)
    await adapter._session.writer.write(
        [Parcel(topic, 0, b"ann", b"theirs", []), Parcel(topic, 1, None, b"rubbish", [])]
    )

    (letter,) = await letters_of(adapter.dead_letters(group))

    assert (letter.message.body, letter.message.key, letter.failure) == (b"theirs", "ann", None)
    assert await adapter.dead_letters(group).count() == 1


async def test_a_group_that_was_made_again_has_no_old_letters_and_no_old_marks(bench: Bench) -> None:
    adapter, group, consumer = await make_dead(bench, ORDERED, "a", "b", "c")
    store = adapter.dead_letters(group)
    await store.purge((await letters_of(store))[:2])
    await consumer.close()

    await adapter.delete_group(group)
    await bench.group(adapter, ORDERED)

    assert await store.count() == 0
    await publish(adapter, ORDERED, "new", key="a")
    consumer = bench.consumer(adapter, group)
    await settle(consumer, await receive(consumer, 1), Reject("unwanted"), failure="{}")
    assert [one.message.id for one in await letters_of(store)] == ["new"]


async def test_a_retry_after_a_redrive_keeps_the_place_of_the_original(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, PLAIN)
    await publish(adapter, PLAIN, "one", partition=1)
    consumer = bench.consumer(adapter, group)
    (first,) = await receive(consumer, 1)
    await settle(consumer, [first], Retry(), after=0.0, failure='{"n": 1}')
    (second,) = await receive(consumer, 1)

    assert (second.attempt, second.failure, second.position) == (2, '{"n": 1}', first.position)
    assert await settle(consumer, [second], Ack()) == [DONE]
    assert ids([first]) == ids([second])
