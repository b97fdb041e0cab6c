"""A broker of which a part may hang gets what is published to each topic by itself."""

import asyncio

import pytest

from messaging import publish
from messaging.errors import PublishError
from messaging.exchanges import BATCH
from messaging.message import Receipt
from tests.unit.publishing import Desk
from tests.unit.scripted import outgoing


@pytest.fixture
async def desk():
    desk = Desk(topics_apart=True)

    async def answer(messages):
        assert len({one.topic.name for one in messages}) == 1
        if messages[0].topic.name == "hangs":
            await desk.gate.wait()
        return [desk.answers.get(one.message.id, Receipt(one.message.id)) for one in messages]

    desk.adapter.on_publish = answer
    return desk


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_topic_that_hangs_holds_up_no_other(desk, ordered):
    held = [
        desk.start(*(outgoing(f"{call}-{number}", "k", topic="hangs") for number in range(BATCH)))
        for call in range(30)
    ]
    held.append(desk.start(outgoing("o", "k", ordered=True, topic="hangs")))
    well = [desk.start(outgoing(str(n), "k", ordered=ordered, topic=f"well-{n % 3}")) for n in range(30)]

    await desk.clock.settle()

    assert all(task.done() for task in well)
    assert not any(task.done() for task in held)
    desk.gate.set()
    await asyncio.gather(*held)
    assert desk.nothing_is_left()


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_topic_that_hangs_with_all_that_may_be_outstanding_holds_up_no_other(desk, ordered):
    held = [
        desk.start(*(outgoing(f"{call}-{number}", "k", topic="hangs") for number in range(100)))
        for call in range(publish.OUTSTANDING // 100 + 1)
    ]
    await desk.clock.settle()
    well = [desk.start(outgoing(str(n), "k", ordered=ordered, topic=f"well-{n % 3}")) for n in range(3000)]
    more = [desk.start(outgoing(f"more-{n}", "k", ordered=ordered, topic="hangs")) for n in range(100)]

    await desk.clock.settle()

    assert all(task.done() for task in well)
    assert desk.publisher._outstanding == publish.OUTSTANDING
    for task in held[:50]:
        task.cancel()
    desk.gate.set()
    await asyncio.gather(*held[50:], *more)
    assert desk.nothing_is_left()


async def test_a_topic_that_waits_for_room_is_not_overtaken_by_itself(desk, monkeypatch):
    monkeypatch.setattr(publish, "OUTSTANDING", 1)
    monkeypatch.setattr(publish, "OF_A_TOPIC", 1)
    calls = [desk.start(outgoing(str(n), "k", ordered=True, topic="hangs")) for n in range(5)]
    await desk.clock.settle()
    well = [desk.start(outgoing(f"well-{n}", "k", ordered=True, topic="well")) for n in range(5)]
    await asyncio.gather(*well)

    desk.gate.set()
    await asyncio.gather(*calls)

    handed_over = [id for batch in desk.batches for id in batch]
    assert handed_over == ["0", *(f"well-{n}" for n in range(5)), *map(str, range(1, 5))]
    assert desk.nothing_is_left()


async def test_what_waits_behind_a_failed_message_of_its_key_fails_with_it(desk):
    desk.answers["1"] = PublishError("refused")
    first, second = (desk.start(outgoing(id, "k", ordered=True, topic="hangs")) for id in ("0", "1"))
    await desk.clock.settle()
    behind = desk.start(outgoing("2", "k", ordered=True, topic="hangs"))
    another = desk.start(outgoing("3", "k", ordered=True, topic="well"))

    desk.gate.set()
    results = [(await task)[0] for task in (first, second, behind, another)]

    assert [isinstance(one, Receipt) for one in results] == [True, False, False, True]
    assert desk.nothing_is_left()


async def test_topics_that_are_seldom_published_to_are_forgotten(desk, monkeypatch):
    monkeypatch.setattr(desk.publisher, "_kept", 2)
    for number in range(5):
        await desk.publisher.publish([outgoing("m", topic=f"topic-{number}")], None)
    assert desk.nothing_is_left()
    assert publish.IDLE > 2
