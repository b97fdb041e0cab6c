"""What is published arrives: whole, once, at every group, and at nobody else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from messaging import Ack, App, Delivery, Outcome, Receipt, Retry
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest

EVERY_BYTE = bytes(range(256))


@proves("delivery")
async def every_message_arrives_whole_and_once(broker: BrokerUnderTest) -> None:
    """A hundred messages arrive, each once, with the id, payload and headers they were sent with (1)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        receipts = [
            await broker.bus.publish(topic, number, headers={"number": str(number)}) for number in range(100)
        ]
        await ledger.handled(100)
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])
    for number, receipt in enumerate(receipts):
        (handling,) = ledger.of(receipt.id)
        assert handling.payload == number
        assert handling.headers == {"number": str(number)}
        assert handling.attempt == 1


@proves("delivery")
async def a_message_keeps_its_attributes(broker: BrokerUnderTest) -> None:
    """Id, key, type, source, time and expiry arrive as they were published."""
    topic = broker.topic(type=bytes)
    broker.uses(topic, "billing")
    app, arrived = App("billing"), asyncio.Queue[Delivery[bytes]](10)

    @app.subscribe(topic)
    async def handle(_: bytes, delivery: Delivery[bytes]) -> None:
        await arrived.put(delivery)

    before = datetime.now(UTC) - timedelta(seconds=1)
    async with app.running(broker.bus):
        await broker.bus.publish(topic, b"body", id="an-id/of ours", key="customer 1", expires=60)
        delivery = await asyncio.wait_for(arrived.get(), Patience.seconds)
    message = delivery.message
    assert (message.id, message.topic, message.body) == ("an-id/of ours", topic.name, b"body")
    assert message.key == delivery.key == "customer 1"
    assert message.type == topic.name
    assert message.content_type == "application/octet-stream"
    assert message.source
    assert message.time is not None
    assert before < message.time < before + timedelta(seconds=30)
    assert message.expires_at is not None
    assert timedelta(seconds=55) < message.expires_at - message.time < timedelta(seconds=65)
    assert delivery.group == "billing"


@proves("delivery")
async def a_message_without_an_id_is_given_one_of_its_own(broker: BrokerUnderTest) -> None:
    """The receipt names the id, the handler sees the same one, and no two are alike."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        receipts = [await broker.bus.publish(topic, "same payload") for _ in range(20)]
        await ledger.handled(20)
    assert all(receipt.id for receipt in receipts)
    assert len({receipt.id for receipt in receipts}) == 20
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("delivery")
async def any_bytes_are_a_body(broker: BrokerUnderTest) -> None:
    """Empty, binary, not UTF-8, and a quarter of a megabyte: a body arrives as the very bytes it was."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    bodies = [b"", b"\x00", EVERY_BYTE, b"\xff\xfe", b"{", b"\r\n", EVERY_BYTE * 1024]
    async with broker.app(topic, ledger).running(broker.bus):
        receipts = [await broker.bus.publish(topic, body) for body in bodies]
        await ledger.handled(len(bodies))
    arrived = {one.id: one.payload for one in ledger.handlings}
    assert [arrived[receipt.id] for receipt in receipts] == bodies


@proves("delivery")
async def headers_arrive_as_they_were_written(broker: BrokerUnderTest) -> None:
    """Slashes, quotes, case, white space, unicode and emoji in names and values arrive unchanged."""
    topic, ledger = broker.topic(), Ledger()
    headers = {
        "plain": "value",
        "Case-Kept": "Case Kept",
        "a/path\\and \"quotes'": "\"'\\/:,;=&%",
        "größe 🦜": "日本語 🦜 \u200b",
        "empty": "",
        "spaces": "  around  ",
        "lines": "one\ntwo\ttabbed",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "long": "x" * 8000,
    }
    async with broker.app(topic, ledger).running(broker.bus):
        await broker.bus.publish(topic, 1, headers=headers)
        await ledger.handled(1)
    assert ledger.handlings[0].headers == headers


@proves("delivery")
async def any_key_arrives_as_it_was_given(broker: BrokerUnderTest) -> None:
    """Text, bytes that are no text, an empty key and none at all stay what they are (10)."""
    topic, ledger = broker.topic(), Ledger()
    keys: list[str | bytes | None] = ["customer", "größe 🦜", b"\xff\x00\xfe", "", None]
    async with broker.app(topic, ledger).running(broker.bus):
        receipts = [await broker.bus.publish(topic, number, key=key) for number, key in enumerate(keys)]
        await ledger.handled(len(keys))
    arrived = {one.id: one.key for one in ledger.handlings}
    assert [arrived[receipt.id] for receipt in receipts] == keys


@proves("sharing")
async def members_of_a_group_share_its_messages(broker: BrokerUnderTest) -> None:
    """Of two members with many handlers each, both take part, and each message is handled by one of them."""
    topic, ledger = broker.topic(), Ledger()

    async def work(_: Delivery[Any]) -> Ack:
        await asyncio.sleep(0.005)
        return Ack()

    receipts: list[Receipt] = []

    async def both_take_part() -> bool:
        receipts.extend(await broker.bus.publish_many(topic, list(range(300))))
        await ledger.handled(len(receipts))
        return bool(ledger.by("one") and ledger.by("two"))

    one = broker.app(topic, ledger, member="one", then=work, concurrency=5, prefetch=5)
    two = broker.app(topic, ledger, member="two", then=work, concurrency=5, prefetch=5)
    async with broker.running(one, two):
        await broker.eventually(both_take_part, "both members take part")  # one may still be joining
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("groups")
async def every_group_gets_every_message(broker: BrokerUnderTest) -> None:
    """Two groups of one topic each handle all its messages, each message once."""
    topic, billing, search = broker.topic(), Ledger(), Ledger()
    async with broker.running(
        broker.app(topic, billing, group="billing"), broker.app(topic, search, group="search")
    ):
        receipts = await broker.bus.publish_many(topic, list(range(50)))
        await billing.handled(50)
        await search.handled(50)
        await billing.quiet()
    billing.assert_each_once([receipt.id for receipt in receipts])
    search.assert_each_once([receipt.id for receipt in receipts])


@proves("groups")
async def a_group_that_was_declared_gets_what_came_while_nobody_listened(broker: BrokerUnderTest) -> None:
    """A group declared by a publisher keeps every message from then on, members present or not."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(20)))
    async with broker.app(topic, ledger).running(broker.bus):
        await ledger.handled(20)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("groups")
async def a_group_begins_when_it_is_declared(broker: BrokerUnderTest) -> None:
    """What was published before the group was declared is not delivered to it; what comes after is."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "early", "billing")
    await broker.bus.declare(topic, groups=["early"])
    await broker.bus.publish_many(topic, ["before"] * 10)
    async with broker.app(topic, ledger).running(broker.bus):
        receipts = await broker.bus.publish_many(topic, ["after"] * 10)
        await ledger.handled(10)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("history")
async def a_new_group_may_start_at_the_earliest_message(broker: BrokerUnderTest) -> None:
    """A group that starts at `earliest` gets what was published before it was declared; unsupported raises."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "early", "billing")
    await broker.bus.declare(topic, groups=["early"])
    receipts = await broker.bus.publish_many(topic, list(range(10)))
    async with broker.app(topic, ledger, start="earliest").running(broker.bus):
        await ledger.handled(10)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("history")
async def a_new_group_may_start_at_a_time(broker: BrokerUnderTest) -> None:
    """A group that starts at a time gets what was published from then on; unsupported raises."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "early", "billing")
    await broker.bus.declare(topic, groups=["early"])
    await broker.bus.publish(topic, "before")
    await asyncio.sleep(0.05)  # the broker's clock and ours are one, to the millisecond
    start = datetime.now(UTC)
    await asyncio.sleep(0.05)
    receipts = await broker.bus.publish_many(topic, list(range(10)))
    async with broker.app(topic, ledger, start=start).running(broker.bus):
        await ledger.handled(10)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("delivery")
async def only_the_topics_that_are_subscribed_arrive(broker: BrokerUnderTest) -> None:
    """One app gets the messages of its two topics, complete, and nothing of a third."""
    orders, clicks, other = broker.topic("orders"), broker.topic("clicks"), broker.topic("other")
    from_orders, from_clicks, app = Ledger(), Ledger(), App("billing")
    for topic in (orders, clicks, other):
        broker.uses(topic, "billing", "search")

    @app.subscribe(orders)
    async def order(_: Any, delivery: Delivery[Any]) -> None:
        with from_orders.handling(delivery):
            pass

    @app.subscribe(clicks)
    async def click(_: Any, delivery: Delivery[Any]) -> None:
        with from_clicks.handling(delivery):
            pass

    await broker.bus.declare(other, groups=["search"])
    async with app.running(broker.bus):
        sent = {
            topic.name: await broker.bus.publish_many(topic, list(range(30)))
            for topic in (orders, other, clicks)
        }
        await from_orders.handled(30)
        await from_clicks.handled(30)
    from_orders.assert_each_once([receipt.id for receipt in sent[orders.name]])
    from_clicks.assert_each_once([receipt.id for receipt in sent[clicks.name]])


@proves("delivery")
async def a_burst_of_publishes_loses_nothing(broker: BrokerUnderTest) -> None:
    """A thousand publishes at once are all confirmed and all arrive, each once (20)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger, concurrency=50, prefetch=200).running(broker.bus):
        async with asyncio.TaskGroup() as publishes:
            tasks = [publishes.create_task(broker.bus.publish(topic, number)) for number in range(1000)]
        await ledger.handled(1000)
        await ledger.quiet()
    ledger.assert_each_once([task.result().id for task in tasks])


@proves("delivery")
async def a_confirmed_message_needs_its_publisher_no_more(broker: BrokerUnderTest) -> None:
    """Once `publish` has returned, the publisher may close: the message arrives (20)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    async with broker.another_bus() as publisher:
        await publisher.declare(topic, groups=["billing"])
        receipt = await publisher.publish(topic, 1)
    async with broker.app(topic, ledger).running(broker.bus):
        await ledger.handled(1)
    ledger.assert_each_once([receipt.id])


@proves("delivery")
async def a_group_that_comes_and_goes_misses_nothing(broker: BrokerUnderTest) -> None:
    """Members that leave and come back mid-stream have, together, handled every message, each once."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(60)))
    for stop_at in (10, 30, 60):
        async with broker.running(broker.app(topic, ledger, concurrency=2, prefetch=5)):
            await ledger.handled(stop_at)
    ledger.assert_each_once([receipt.id for receipt in receipts])
    await broker.nothing_left(topic)


@proves("expiry")
async def an_expired_message_is_never_handled(broker: BrokerUnderTest) -> None:
    """A message that expired before it could be handled is dropped; one that has time left is handled (6)."""
    topic, ledger = broker.topic(), Ledger()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    await broker.bus.publish(topic, "too late", expires=0.1)
    in_time = await broker.bus.publish(topic, "in time", expires=60)
    await asyncio.sleep(0.2)
    async with broker.app(topic, ledger).running(broker.bus):
        await ledger.handled(1)
        sentinels = await broker.bus.publish_many(topic, ["sentinel"] * topic.partitions)
        await ledger.handled(1 + len(sentinels))
    ledger.assert_each_once([in_time.id, *(sentinel.id for sentinel in sentinels)])
    assert await broker.letters(topic) == []


@proves("expiry")
async def an_expired_message_becomes_a_dead_letter_where_that_is_asked(broker: BrokerUnderTest) -> None:
    """With `on_expired="dead_letter"` it is kept, with the attempts that began, and it expires no more."""
    topic, ledger = broker.topic(), Ledger()

    async def wait(_: Delivery[Any]) -> Outcome | None:
        return Retry(after=2.2)

    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    late = await broker.bus.publish(topic, "too late", key="one partition", expires=0.1)
    await asyncio.sleep(0.2)
    async with broker.app(topic, ledger, then=wait, on_expired="dead_letter").running(broker.bus):
        await broker.letters(topic, count=1)
        waits = await broker.bus.publish(topic, "expires while it waits", key="one partition", expires=2)
        await broker.letters(topic, count=2)
        await asyncio.sleep(0.2)
        letters = await broker.letters(topic)
    assert {letter.id: (letter.cause, letter.attempts) for letter in letters} == {
        late.id: ("expired", 0),
        waits.id: ("expired", 1),
    }
    assert ledger.ids == [waits.id]
