"""Crashes: a process that dies without a word costs time and a bounded number of duplicates, never a message."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from messaging import Ack, Delivery, Outcome, Reject, Topic
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.member import POISON
from messaging_contracts.processes import Member, MemberProcess
from messaging_contracts.under_test import BrokerUnderTest

PREFETCH = 8
MOST_DEATHS = 8
"""More processes than this must not die of one message: three returns, the mark, one more alone, and two to spare."""


@proves("crash", processes=True)
async def what_a_killed_member_held_goes_to_another(broker: BrokerUnderTest) -> None:
    """After kill -9 every message is handled by another member, and at most what was held is handled twice (1)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(30)))
    async with broker.process(ledger, topic, member="killed", behaviour="hang", prefetch=PREFETCH) as process:
        await ledger.begun(4)
        await process.kill()
    async with broker.running(broker.app(topic, ledger, member="other"), short_lease=True):
        await ledger.handled(30)
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts], duplicates=PREFETCH)
    assert sorted(one.payload for one in ledger.by("other")) == list(range(30))
    assert {one.attempt for one in ledger.handlings} == {1}


@proves("crash", processes=True)
async def order_survives_a_killed_member(broker: BrokerUnderTest) -> None:
    """On an ordered group another member goes on where the killed one was, key by key, in order (7, 1)."""
    topic, ledger = broker.topic(ordered=True), Ledger()
    keys = ("ann", "bob", "cat")
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    ids = [(await broker.bus.publish(topic, number, key=key)).id for number in range(30) for key in keys]

    async def work(_: Delivery[Any]) -> Outcome | None:
        await asyncio.sleep(0.002)
        return Ack()

    other = broker.app(topic, ledger, member="other", then=work, prefetch=PREFETCH)
    async with broker.process(ledger, topic, member="killed", behaviour="slow", prefetch=PREFETCH) as process:
        await ledger.begun(10)
        await process.kill()
        async with broker.running(other, short_lease=True):
            await ledger.until(lambda: {one.id for one in ledger.done} >= set(ids))
            await ledger.calm()
    ledger.assert_each_once(ids, duplicates=PREFETCH + 4)
    ledger.assert_order(keys)


@proves("crash", processes=True)
async def what_a_killed_member_was_giving_up_is_kept(broker: BrokerUnderTest) -> None:
    """The copy of a retry or of a dead letter is stored before its message is given up, so kill -9 loses none (1)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(60)))
    rejected, retried = {one.id for one in receipts[::2]}, {one.id for one in receipts[1::2]}

    async def give_up(delivery: Delivery[Any]) -> Outcome | None:
        return Reject("an even number") if delivery.payload % 2 == 0 else None

    async with broker.process(
        ledger, topic, member="killed", behaviour="give_up", prefetch=PREFETCH
    ) as process:
        await ledger.begun(20)
        await process.kill()
    async with broker.running(broker.app(topic, ledger, member="other", then=give_up), short_lease=True):
        await ledger.until(lambda: {one.id for one in ledger.done} >= retried)

        async def all_dead() -> bool:
            return rejected <= {letter.id for letter in await broker.letters(topic)}

        await broker.eventually(all_dead, "every even number is a dead letter")  # some may be there twice
        await ledger.calm()
    letters = await broker.letters(topic)
    assert {letter.id for letter in letters} == rejected
    assert len(letters) <= len(rejected) + PREFETCH


@proves("attempts", processes=True)
async def an_attempt_survives_a_killed_member(broker: BrokerUnderTest) -> None:
    """What was recorded as a failure stays one after kill -9; the crash itself adds none (2)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipt = await broker.bus.publish(topic, 1)
    async with broker.process(ledger, topic, behaviour="fail_then_hang") as process:
        await ledger.begun(2)
        await process.kill()
    async with broker.running(broker.app(topic, ledger, member="other"), short_lease=True):
        await ledger.handled(1)
    assert ledger.attempts(receipt.id) == [1, 2, 2]
    assert await broker.letters(topic) == []


@proves("crash_guard", processes=True, limit=60)
async def a_message_that_kills_its_process_ends_as_a_dead_letter_alone(broker: BrokerUnderTest) -> None:
    """A poison message is given up after a bounded number of deaths, and none of its neighbours with it (3)."""
    topic, ledger, deaths = broker.topic(), Ledger(), 0
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    neighbours = await broker.bus.publish_many(topic, [f"neighbour {number}" for number in range(5)])
    poison = await broker.bus.publish(topic, POISON)
    neighbours = [
        *neighbours,
        *await broker.bus.publish_many(topic, [f"later {number}" for number in range(5)]),
    ]
    dead = broker.bus.dead_letters(topic, group="billing")
    expected = {receipt.id for receipt in neighbours}
    while not await dead.count():
        async with broker.process(ledger, topic, behaviour="poison", prefetch=PREFETCH) as process:

            async def dead_or_done(member: Member = process) -> bool:
                return not member.alive or await dead.count() > 0

            await broker.eventually(dead_or_done, "the process dies, or its poison is a dead letter")
            deaths += not process.alive
            if process.alive:
                # Killed while it runs one of the neighbours alone, it would make that a dead letter, too.
                expected.add((await broker.bus.publish(topic, "behind them")).id)
                await ledger.until(lambda: expected <= {one.id for one in ledger.done})
                await ledger.calm()
        assert deaths <= MOST_DEATHS, f"{deaths} processes died of one message: {ledger!r}"
    letters = await broker.letters(topic)
    died = [(one.message.body.decode(), one.cause) for one in letters]
    assert died == [(POISON, "lease_lost")], f"{died}: {ledger!r}"
    await broker.bus.publish(topic, "last")
    async with broker.running(broker.app(topic, ledger, member="after"), short_lease=True):
        await ledger.until(lambda: any(one.payload == "last" for one in ledger.done))
        await ledger.calm()
    assert [one.id for one in await broker.letters(topic)] == [poison.id]
    assert len(ledger.of(poison.id)) == deaths
    assert all(one.attempt == 1 for one in ledger.handlings)


@proves("crash_guard", processes=True, limit=60)
async def killed_neighbours_are_no_poison(broker: BrokerUnderTest) -> None:
    """Messages that were held by processes that died, as often as makes them suspects, are handled all the same (3)."""
    topic, ledger = broker.topic(partitions=1), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(6)))
    for deaths in range(1, 4):
        async with broker.process(
            ledger, topic, behaviour="hang", concurrency=1, prefetch=PREFETCH
        ) as process:
            await ledger.begun(deaths)
            await process.kill()
    async with broker.running(broker.app(topic, ledger, member="after"), short_lease=True):
        await ledger.handled(6)
        await ledger.quiet()
    assert sorted(one.id for one in ledger.by("after")) == sorted(receipt.id for receipt in receipts)
    assert await broker.letters(topic) == []
    assert {one.attempt for one in ledger.handlings} == {1}


@proves("crash", processes=True)
async def what_a_killed_publisher_was_confirmed_arrives(broker: BrokerUnderTest) -> None:
    """Every message whose receipt a publisher had before kill -9 is handled, each once (20)."""
    topic, ledger, told = broker.topic(), Ledger(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    async with broker.process(told, topic, publish=100_000) as publisher:
        await told.until(lambda: len(publisher.receipts) >= 50)
        await publisher.kill()
    confirmed = set(publisher.receipts)
    async with broker.running(broker.app(topic, ledger, concurrency=50, prefetch=500)):
        await ledger.until(lambda: confirmed <= set(ledger.ids))
        await ledger.calm()
    assert len(ledger.ids) == len(ledger.handlings)
    assert len(set(ledger.ids) - confirmed) <= 100, "more arrived than can have been under way"


@proves("leases", processes=True)
async def a_frozen_member_loses_its_messages_and_spoils_nothing(broker: BrokerUnderTest) -> None:
    """A member that stands still beyond its lease loses what it held; when it wakes, it undoes nothing (9, 15)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(3)))
    async with broker.process(ledger, topic, member="frozen", behaviour="hang", concurrency=1) as frozen:
        await ledger.begun(1)
        if not isinstance(frozen, MemberProcess) or not broker.capabilities.fenced:
            return  # a task cannot be frozen alone; a broker without leases notices only a connection that ends
        frozen.signal(signal.SIGSTOP)
        async with broker.running(broker.app(topic, ledger, member="other"), short_lease=True):
            await ledger.until(lambda: len(ledger.by("other")) == 3)
            frozen.signal(signal.SIGCONT)
            last = await broker.bus.publish_many(topic, ["last"] * topic.partitions)
            await asyncio.sleep(
                0.5
            )  # time to settle what it lost; it may take some of the last, and hangs again
            await frozen.kill()
            await ledger.until(lambda: {one.id for one in last} <= {one.id for one in ledger.by("other")})
            await ledger.quiet()
    assert {one.id for one in receipts} <= {one.id for one in ledger.by("other")}
    ledger.assert_each_once([one.id for one in (*receipts, *last)], duplicates=2)
    assert await broker.letters(topic) == []


@proves("leases", processes=True, limit=60.0)
async def a_woken_member_starts_nothing_that_others_have_handled(broker: BrokerUnderTest) -> None:
    """What a frozen member had fetched and others have handled is not begun by it when it wakes (9, 15)."""
    for ordered in (False, True):
        await _freeze_and_wake(broker, broker.topic("ordered" if ordered else "shared", ordered=ordered))


async def _freeze_and_wake(broker: BrokerUnderTest, topic: Topic[Any]) -> None:
    ledger, last = Ledger(), list[str]()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    texts = [f"{key} {number}" for number in range(25) for key in "abcd"]
    ids = {(await broker.bus.publish(topic, text, key=text[0])).id for text in texts}
    async with broker.process(ledger, topic, member="frozen", behaviour="slow", concurrency=2) as frozen:
        await ledger.begun(4)
        if not isinstance(frozen, MemberProcess) or not broker.capabilities.fenced:
            return  # as above
        frozen.signal(signal.SIGSTOP)
        async with broker.running(broker.app(topic, ledger, member="other"), short_lease=True):
            await ledger.until(lambda: ids <= {one.id for one in ledger.done})
            handled = {one.id for one in ledger.by("other") if one.end is not None}
            woken = time.monotonic()
            frozen.signal(signal.SIGCONT)
            last.append((await broker.bus.publish(topic, "last", key="a")).id)
            await ledger.until(lambda: last[0] in ledger.ids)
            await ledger.quiet()
    late = [one.payload for one in ledger.by("frozen") if one.begin > woken and one.id in handled]
    assert not late, f"begun after others had handled them: {late}"
