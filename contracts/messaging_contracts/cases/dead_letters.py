"""Dead letters: kept whole with why, looked at without harm, corrected, and handled by the group they belong to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from messaging import (
    Ack,
    App,
    ConfigurationError,
    Delivery,
    Message,
    MessagingError,
    Outcome,
    Reject,
    RetryPolicy,
    Topic,
    TopicNotFound,
    fixed,
)
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest, one_key_per_partition

ONCE = RetryPolicy(1)


async def reject(_: Delivery[Any]) -> Outcome | None:
    """A handler that wants nothing."""
    return Reject("unwanted")


async def reject_what_is_bad(delivery: Delivery[Any]) -> Outcome | None:
    """A handler that refuses payloads which begin with `bad`."""
    return Reject("bad payload") if str(delivery.payload).startswith("bad") else Ack()


async def make_dead(
    broker: BrokerUnderTest, topic: Topic[Any], payloads: list[Any], **publish: Any
) -> list[str]:
    """Publish these and let the group `billing` reject them, one after the other; their ids."""
    ledger, ids = Ledger(), list[str]()
    async with broker.running(broker.app(topic, ledger, then=reject)):
        for number, payload in enumerate(payloads, 1):
            ids.append((await broker.bus.publish(topic, payload, **publish)).id)
            await broker.letters(topic, count=number)
    return ids


@proves("dead_letters")
async def a_dead_letter_is_the_whole_message_and_why(broker: BrokerUnderTest) -> None:
    """Id, body, key, headers and content type are kept, with reason, cause, attempts, times and origin."""
    topic, app = broker.topic(type=bytes), App("billing", retry=RetryPolicy(2, fixed(0.2)))
    broker.uses(topic, "billing")
    handled: list[Message] = []

    @app.subscribe(topic)
    async def charge(_: bytes, delivery: Delivery[bytes]) -> None:
        handled.append(delivery.message)
        raise RuntimeError("the card was declined")

    started = datetime.now(UTC) - timedelta(seconds=1)
    async with app.running(broker.bus):
        await broker.bus.publish(topic, b"\xff\x00", key="ann", headers={"tenant": "größe 🦜", "empty": ""})
        (letter,) = await broker.letters(topic, count=1)
    assert letter.message == handled[0]
    assert letter.id == letter.message.id
    assert letter.cause == "max_attempts"
    assert "the card was declined" in letter.reason
    assert letter.error is not None
    assert letter.error.type.endswith("RuntimeError")
    assert "the card was declined" in letter.error.message
    assert (letter.attempts, letter.redrives) == (2, 0)
    assert letter.deliveries >= 2
    assert "charge" in letter.handler
    assert (letter.origin.topic, letter.origin.group) == (topic.name, "billing")
    assert letter.first_failed_at is not None
    assert letter.last_failed_at is not None
    assert started < letter.first_failed_at < letter.last_failed_at < started + timedelta(seconds=30)


@proves("dead_letters")
async def a_rejected_message_is_one_dead_letter(broker: BrokerUnderTest) -> None:
    """A Reject makes exactly one dead letter, at once, with the reason the handler gave and the cause `rejected`."""
    topic, ledger = broker.topic(), Ledger()
    app = broker.app(topic, ledger, then=reject, retry=RetryPolicy(5, fixed(0.05)))
    async with app.running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        letters = await broker.letters(topic, count=1)
        await ledger.quiet()
    assert ledger.attempts(receipt.id) == [1]
    assert [(one.id, one.reason, one.cause, one.attempts) for one in letters] == [
        (receipt.id, "unwanted", "rejected", 1)
    ]
    assert await broker.bus.dead_letters(topic, group="billing").count() == 1


@proves("dead_letters")
async def what_cannot_be_decoded_is_a_dead_letter_and_stops_nobody(broker: BrokerUnderTest) -> None:
    """A body that is no payload of the topic goes to the dead letters unhandled; those after it are handled."""
    topic, ledger = broker.topic(type=int), Ledger()
    untyped: Topic[Any] = Topic(topic.name, partitions=topic.partitions)
    async with broker.app(topic, ledger).running(broker.bus), broker.another_bus() as publisher:
        bad = [await publisher.publish(untyped, text) for text in ("no number", {"no": "number"})]
        good = await broker.bus.publish_many(topic, [1, 2, 3, 4])
        await ledger.handled(4)
        letters = await broker.letters(topic, count=2)
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in good])
    assert {letter.id for letter in letters} == {receipt.id for receipt in bad}
    assert {letter.cause for letter in letters} == {"deserialize"}


@proves("dead_letters")
async def browsing_consumes_nothing(broker: BrokerUnderTest) -> None:
    """Letters are shown oldest first, as often as one looks, with `limit` and `where`, and stay where they are."""
    topic = broker.topic(partitions=1)
    ids = await make_dead(broker, topic, [1, 2, 3])
    dead = broker.bus.dead_letters(topic, group="billing")
    for _ in range(2):
        assert [letter.id async for letter in dead.browse()] == ids
    assert [letter.id async for letter in dead.browse(limit=2)] == ids[:2]
    assert [letter.id async for letter in dead.browse(where=lambda one: one.message.body == b"3")] == ids[2:]
    assert await dead.count() == 3


@proves("dead_letters")
async def dead_letters_belong_to_one_group(broker: BrokerUnderTest) -> None:
    """What one group rejects is no dead letter of another, and neither can be seen or purged there."""
    topic, billing, search = broker.topic(), Ledger(), Ledger()
    async with broker.running(
        broker.app(topic, billing, then=reject), broker.app(topic, search, group="search")
    ):
        await broker.bus.publish(topic, 1)
        await broker.letters(topic, count=1)
        await search.handled(1)
    assert await broker.bus.dead_letters(topic, group="search").count() == 0
    assert await broker.bus.dead_letters(topic, group="search").purge() == 0
    assert await broker.bus.dead_letters(topic, group="billing").count() == 1


@proves("dead_letters")
async def purging_deletes_what_was_chosen(broker: BrokerUnderTest) -> None:
    """`purge` deletes by id, by condition, or all, says how many, and leaves the rest."""
    topic = broker.topic()
    ids = await make_dead(broker, topic, [1, 2, 3, 4])
    dead = broker.bus.dead_letters(topic, group="billing")
    assert await dead.purge(ids=[ids[0]]) == 1
    assert await dead.purge(where=lambda one: one.message.body == b"2") == 1
    assert {letter.id for letter in await broker.letters(topic)} == set(ids[2:])
    assert await dead.purge() == 2
    assert await dead.count() == 0


@proves("redrive")
async def a_redrive_reaches_only_its_group(broker: BrokerUnderTest) -> None:
    """A redriven message is handled again by its group, from attempt 1, and not seen again by any other (11)."""
    topic, billing, search = broker.topic(), Ledger(), Ledger()

    async def reject_first(delivery: Delivery[Any]) -> Outcome | None:
        first = delivery.payload == 1 and len(billing.of(delivery.message.id)) == 1
        return Reject("not yet") if first else Ack()

    async with broker.running(
        broker.app(topic, billing, then=reject_first), broker.app(topic, search, group="search")
    ):
        receipt = await broker.bus.publish(topic, 1)
        await broker.letters(topic, count=1)
        assert await broker.bus.dead_letters(topic, group="billing").redrive() == 1
        await billing.handled(2)
        sentinels = await broker.bus.publish_many(topic, ["sentinel"] * topic.partitions)
        await search.handled(1 + len(sentinels))
    assert billing.attempts(receipt.id) == [1, 1]
    assert search.attempts(receipt.id) == [1]
    assert await broker.letters(topic) == []


@proves("redrive")
async def a_letter_can_be_corrected_on_its_way_back(broker: BrokerUnderTest) -> None:
    """`redrive(edit=...)` changes body and headers; the id, the key and all else stay (11)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger, then=reject_what_is_bad).running(broker.bus):
        receipt = await broker.bus.publish(topic, "bad", key="ann", headers={"tenant": "ours"})
        await broker.letters(topic, count=1)

        def correct(message: Message) -> Message:
            return replace(message, body=b"good", headers={**message.headers, "corrected": "yes"})

        assert await broker.bus.dead_letters(topic, group="billing").redrive(edit=correct) == 1
        await ledger.handled(2)
    _, again = ledger.of(receipt.id)
    assert (again.payload, again.key, again.attempt) == ("good", "ann", 1)
    assert again.headers == {"tenant": "ours", "corrected": "yes"}
    assert await broker.letters(topic) == []


@proves("redrive")
async def a_redrive_takes_what_was_chosen(broker: BrokerUnderTest) -> None:
    """`ids` and `where` choose what is redriven; a dry run says how many and moves nothing."""
    topic, ledger = broker.topic(), Ledger()
    ids = await make_dead(broker, topic, [1, 2, 3, 4])
    dead = broker.bus.dead_letters(topic, group="billing")
    assert await dead.redrive(dry_run=True) == 4
    assert await dead.count() == 4
    assert await dead.redrive(ids=[ids[0]]) == 1
    assert await dead.redrive(where=lambda one: one.message.body == b"3") == 1
    async with broker.running(broker.app(topic, ledger)):
        await ledger.handled(2)
        await ledger.quiet()
    ledger.assert_each_once([ids[0], ids[2]])
    assert {letter.id for letter in await broker.letters(topic)} == {ids[1], ids[3]}


@proves("dead_letters")
async def what_is_absent_has_no_dead_letters_and_is_named(broker: BrokerUnderTest) -> None:
    """A topic or a group that is absent raises TopicNotFound, which names it."""
    topic, absent = broker.topic(), broker.topic("absent")
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    async with broker.another_bus() as operator:
        for spec, group, named in ((absent, "billing", absent.name), (topic, "nobody", "nobody")):
            dead = operator.dead_letters(spec, group=group)
            for look in (dead.count, dead.redrive, dead.purge):
                refused: Exception | None = None
                try:
                    await look()
                except MessagingError as error:
                    refused = error
                assert type(refused) is TopicNotFound, f"{look.__name__}: {refused!r}"
                assert named in str(refused)


@proves("redrive")
async def a_program_that_has_the_topic_wrong_moves_no_letter(broker: BrokerUnderTest) -> None:
    """Other partitions, or another order, than the broker's: a redrive is refused, and every letter stays (16)."""
    topic = broker.topic(ordered=True, partitions=3)
    keys = one_key_per_partition(3)
    ledger, after = Ledger(), Ledger()
    async with broker.running(broker.app(topic, ledger, then=reject)):
        ids = [(await broker.bus.publish(topic, 1, key=key)).id for key in keys]
        await broker.letters(topic, count=3)
    for wrong in (
        Topic(topic.name, ordered=True, partitions=8),
        Topic(topic.name, ordered=False, partitions=3),
    ):
        async with broker.another_bus() as operator:
            refused = False
            try:
                await operator.dead_letters(wrong, group="billing").redrive()
            except ConfigurationError:
                refused = True
            assert refused, repr(wrong)
    assert await broker.bus.dead_letters(topic, group="billing").redrive() == 3
    async with broker.running(broker.app(topic, after)):
        await after.handled(3)
    after.assert_each_once(ids)


@proves("redrive")
async def two_who_redrive_at_once_move_each_letter_once(broker: BrokerUnderTest) -> None:
    """What another took is not counted and is no error; together they have moved all, each once (11)."""
    topic = broker.topic()
    ids = await make_dead(broker, topic, list(range(8)))
    dead = broker.bus.dead_letters(topic, group="billing")
    after = Ledger()
    async with broker.another_bus() as other:
        moved = await asyncio.gather(  # the slow one has looked before the other takes
            dead.redrive(rate=20), other.dead_letters(topic, group="billing").redrive()
        )
    left = await dead.redrive()
    assert sum(moved) + left == len(ids), (moved, left)
    async with broker.running(broker.app(topic, after)):
        await after.handled(len(ids))
        await after.quiet()
    after.assert_each_once(ids)


@proves("redrive")
async def a_redrive_may_be_slow(broker: BrokerUnderTest) -> None:
    """`rate` bounds how many letters a second go back."""
    topic, ledger = broker.topic(), Ledger()
    ids = await make_dead(broker, topic, [1, 2, 3, 4])
    started = time.monotonic()
    async with broker.running(broker.app(topic, ledger)):
        assert await broker.bus.dead_letters(topic, group="billing").redrive(rate=10) == 4
        assert time.monotonic() - started >= 0.3
        await ledger.handled(4)
    ledger.assert_each_once(ids)


@proves("redrive")
async def a_redriven_message_may_die_again(broker: BrokerUnderTest) -> None:
    """A message that fails again is one letter again, with the attempts of both lives and its redrives counted."""
    topic, ledger = broker.topic(), Ledger()
    app = broker.app(topic, ledger, then=reject, retry=ONCE)
    async with app.running(broker.bus):
        receipt = await broker.bus.publish(topic, 1)
        for lives in (1, 2, 3):
            await ledger.begun(lives)
            (letter,) = await broker.letters(topic, count=1)
            assert (letter.id, letter.redrives, letter.attempts) == (receipt.id, lives - 1, lives)
            assert letter.reason == "unwanted"
            if lives < 3:
                assert await broker.bus.dead_letters(topic, group="billing").redrive() == 1
    assert ledger.attempts(receipt.id) == [1, 1, 1]


@proves("redrive")
async def a_redriven_message_waits_its_turn(broker: BrokerUnderTest) -> None:
    """On an ordered group a redriven message is never handled at the same time as another of its key (7, 11)."""
    topic, ledger = broker.topic(ordered=True), Ledger()

    async def reject_first(delivery: Delivery[Any]) -> Outcome | None:
        await asyncio.sleep(0.002)
        if delivery.payload == 0 and len(ledger.of(delivery.message.id)) == 1:
            return Reject("not yet")
        return Ack()

    async with broker.app(topic, ledger, then=reject_first, concurrency=8).running(broker.bus):
        dead = await broker.bus.publish(topic, 0, key="ann")
        await broker.letters(topic, count=1)
        others = [await broker.bus.publish(topic, number, key="ann") for number in range(1, 20)]
        assert await broker.bus.dead_letters(topic, group="billing").redrive() == 1
        others += [await broker.bus.publish(topic, number, key="ann") for number in range(20, 40)]
        await ledger.handled(2 + len(others))
    ledger.assert_each_once([dead.id, *(receipt.id for receipt in others)], duplicates=1)
    assert ledger.attempts(dead.id) == [1, 1]
    assert ledger.most_at_once() == 1
    assert await broker.letters(topic) == []


@proves("redrive")
async def a_redriven_message_waits_for_a_member(broker: BrokerUnderTest) -> None:
    """A redrive needs no member: the message is handled when one comes."""
    topic, ledger = broker.topic(), Ledger()
    ids = await make_dead(broker, topic, [1], key="ann")
    assert await broker.bus.dead_letters(topic, group="billing").redrive() == 1
    assert await broker.letters(topic) == []
    async with broker.running(broker.app(topic, ledger)):
        await ledger.handled(1)
    ledger.assert_each_once(ids)
