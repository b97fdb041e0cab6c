"""Flow, leases, starting and stopping: how much runs, for how long it is ours, and what an end leaves behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from messaging import Ack, App, Closed, Delivery, Outcome, PublishError, Reject, RetryPolicy, fixed
from messaging.adapter import GroupSpec, RawDelivery, SettleError, Settlement, Subscription
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest


@proves("flow")
async def never_more_handlers_run_than_asked_for(broker: BrokerUnderTest) -> None:
    """As many handlers run at once as `concurrency` says: no more, and with enough work no fewer."""
    topic, ledger, full = broker.topic(), Ledger(), asyncio.Event()

    async def wait_for_all(_: Delivery[Any]) -> Outcome | None:
        if len(ledger.running) == 4:
            full.set()
        await asyncio.wait_for(full.wait(), Patience.seconds)
        await asyncio.sleep(0.01)
        return Ack()

    app = broker.app(topic, ledger, then=wait_for_all, concurrency=4, prefetch=40)
    async with app.running(broker.bus):
        receipts = await broker.bus.publish_many(topic, list(range(40)))
        await ledger.handled(40)
    ledger.assert_each_once([receipt.id for receipt in receipts])
    assert ledger.most_at_once() == 4


@proves("flow")
async def a_slow_member_holds_no_more_than_its_prefetch(broker: BrokerUnderTest) -> None:
    """At most `prefetch` messages wait in a member that is busy; all others go to one that has time."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    slow = broker.app(topic, ledger, member="slow", then=hang, concurrency=1, prefetch=5)
    async with broker.running(slow):
        first = await broker.bus.publish(topic, "first")
        await ledger.begun(1)
        receipts = await broker.bus.publish_many(topic, list(range(40)))
        async with broker.running(broker.app(topic, ledger, member="quick")):
            await ledger.handled(40 - 5)
            stuck.set()
            await ledger.handled(41)
    ledger.assert_each_once([first.id, *(receipt.id for receipt in receipts)])
    assert len(ledger.by("quick")) >= 40 - 5


@proves("leases")
async def a_slow_handler_keeps_its_message(broker: BrokerUnderTest) -> None:
    """A handler that takes longer than a lease, and the messages that wait behind it, stay its own (15)."""
    topic, ledger, longer_than_a_lease = broker.topic(), Ledger(), 2.5

    async def be_slow(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.payload == 0:
            await asyncio.sleep(longer_than_a_lease)
        return Ack()

    slow = broker.app(topic, ledger, member="slow", then=be_slow, concurrency=1, prefetch=5)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = [await broker.bus.publish(topic, number) for number in range(3)]
    async with broker.running(slow, short_lease=True):
        await ledger.begun(1)
        async with broker.running(broker.app(topic, ledger, member="other"), short_lease=True):
            await ledger.handled(3)
            await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("leases")
async def a_delivery_whose_lease_has_ended_belongs_to_another(broker: BrokerUnderTest) -> None:
    """What a member holds and does not extend goes to another, and its late settlement is refused (9, 15)."""
    topic, ledger, go_on = broker.topic(), Ledger(), asyncio.Event()
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipt = await broker.bus.publish(topic, 1)

    async def wait(_: Delivery[Any]) -> Outcome | None:
        await go_on.wait()
        return Ack()

    async with broker.another_bus(short_lease=True) as silent:
        await silent.declare(topic, groups=["billing"])
        group = GroupSpec(silent.catalogue.spec(topic), "billing")
        consumer = silent.adapter.consumer(Subscription(group, prefetch=1, concurrency=1), Silent())
        try:
            (delivery,) = await consumer.receive(1, Patience.seconds)
            if consumer.lease is None:
                return  # what ends this member's hold is the end of its connection: see the cases with processes
            async with broker.running(broker.app(topic, ledger, then=wait), short_lease=True):
                await ledger.begun(1)
                (late,) = await consumer.settle([Settlement(delivery, Reject("too late"), failure="{}")])
                go_on.set()
                await ledger.handled(1)
                await ledger.quiet()
        finally:
            await consumer.close()
    assert isinstance(late, SettleError) == broker.capabilities.fenced
    assert ledger.attempts(receipt.id) == [1]
    assert await broker.letters(topic) == []


class Silent:
    """A member that does nothing about what it is told."""

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        """Nothing runs here."""

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        """Nothing runs here."""


@proves("shutdown")
async def a_stop_waits_for_the_handlers_that_run(broker: BrokerUnderTest) -> None:
    """A graceful stop lets running handlers end, uncancelled and acknowledged, and starts nothing more."""
    topic, ledger, go_on = broker.topic(), Ledger(), asyncio.Event()

    async def wait(_: Delivery[Any]) -> Outcome | None:
        await go_on.wait()
        await asyncio.sleep(0.1)
        return Ack()

    async with broker.running(broker.app(topic, ledger, then=wait, concurrency=2, prefetch=10)):
        receipts = await broker.bus.publish_many(topic, list(range(6)))
        await ledger.begun(2)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert [one.how for one in ledger.handlings] == ["returned"] * 2
    async with broker.running(broker.app(topic, ledger)):
        await ledger.handled(6)
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("shutdown")
async def a_stop_cancels_what_does_not_end_in_time(broker: BrokerUnderTest) -> None:
    """After the grace period a handler is cancelled and its message given back, at attempt 1, to the next member."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    async with broker.running(broker.app(topic, ledger, then=hang), grace=0.1):
        receipt = await broker.bus.publish(topic, 1)
        await ledger.begun(1)
    assert [one.how for one in ledger.handlings] == ["cancelled"]
    async with broker.running(broker.app(topic, ledger)):
        await ledger.handled(1)
    assert ledger.attempts(receipt.id) == [1, 1]
    assert await broker.letters(topic) == []


@proves("shutdown")
async def what_waits_in_a_member_that_stops_goes_back_at_once(broker: BrokerUnderTest) -> None:
    """Prefetched messages of a member that stops are with the next one soon, at attempt 1, each once (2)."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    app = broker.app(topic, ledger, member="stops", then=hang, concurrency=1, prefetch=20)
    async with broker.running(app, grace=0.05):
        receipts = await broker.bus.publish_many(topic, list(range(20)))
        await ledger.begun(1)
    left = time.monotonic()
    async with broker.standstill(topic) as lost, broker.running(broker.app(topic, ledger, member="next")):
        await ledger.handled(20)
        late = Patience.seconds / 3 + 2 * lost.seconds
    ledger.assert_each_once([receipt.id for receipt in receipts], duplicates=1)
    assert {one.attempt for one in ledger.handlings} == {1}
    assert max(one.begin for one in ledger.handlings) - left < late


@proves("sharing")
async def a_member_that_joins_takes_part(broker: BrokerUnderTest) -> None:
    """A second member that joins mid-flow gets its share, and when it leaves the first goes on; nothing is lost."""
    topic, ledger = broker.topic(), Ledger()

    async def work(_: Delivery[Any]) -> Outcome | None:
        await asyncio.sleep(0.01)
        return Ack()

    def member(name: str) -> App:
        return broker.app(topic, ledger, member=name, then=work, concurrency=2, prefetch=4)

    async with broker.running(member("one")):
        receipts = list(await broker.bus.publish_many(topic, list(range(200))))

        async def second_takes_part() -> bool:
            receipts.extend(await broker.bus.publish_many(topic, list(range(20))))
            await ledger.handled(len(receipts) - 150)
            return len(ledger.by("two")) >= 10

        await ledger.handled(10)
        async with broker.running(member("two")):
            # It may take a while to join: the flow goes on until then, and when it leaves.
            await broker.eventually(second_takes_part, "the second member takes part")
        await ledger.handled(len(receipts))
        await ledger.quiet()
    ledger.assert_each_once([receipt.id for receipt in receipts])


@proves("shutdown")
async def a_closed_bus_says_so(broker: BrokerUnderTest) -> None:
    """Publishing or declaring after the close raises Closed, and so does opening it again; it is closed once."""
    topic = broker.topic()
    async with broker.another_bus() as bus:
        await bus.publish(topic, 1)
    uses: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.publish(topic, 2),
        lambda: bus.publish_many(topic, [3]),
        lambda: bus.declare(topic, groups=["billing"]),
        bus.groups,
        bus.__aenter__,
    ]
    for use in uses:
        closed = False
        try:
            await use()
        except Closed:
            closed = True
        assert closed
    await bus.__aexit__(None, None, None)


@proves("delivery")
async def a_cancelled_publish_breaks_nothing(broker: BrokerUnderTest) -> None:
    """Cancelling a publish leaves its own fate open and the connection whole: all others arrive, each once (20)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger, prefetch=200).running(broker.bus):
        cancelled = [asyncio.create_task(broker.bus.publish(topic, "cancelled")) for _ in range(50)]
        kept = [asyncio.create_task(broker.bus.publish(topic, "kept")) for _ in range(50)]
        await asyncio.sleep(0)
        for task in cancelled[::2]:
            task.cancel()
        await asyncio.sleep(0.001)
        for task in cancelled[1::2]:
            task.cancel()
        receipts = await asyncio.gather(*kept)
        await asyncio.gather(*cancelled, return_exceptions=True)
        last = await broker.bus.publish_many(topic, ["kept"] * topic.partitions)
        expected = {receipt.id for receipt in (*receipts, *last)}
        await ledger.until(lambda: expected <= {one.id for one in ledger.done})
    kept_ids = [one.id for one in ledger.handlings if one.payload == "kept"]
    assert sorted(kept_ids) == sorted(expected)
    others = [one.id for one in ledger.handlings if one.payload == "cancelled"]
    assert len(others) == len(set(others))


@proves("delivery")
async def a_publish_without_time_claims_nothing(broker: BrokerUnderTest) -> None:
    """A publish that ran out of time raises a PublishError; one that returned a receipt was confirmed (20)."""
    topic, ledger, confirmed, refused = broker.topic(), Ledger(), list[str](), 0
    async with broker.app(topic, ledger).running(broker.bus):
        for timeout in (0.0, 0.000001, 0.0001, 0.01) * 5:
            try:
                confirmed.append((await broker.bus.publish(topic, 1, timeout=timeout)).id)
            except PublishError:
                refused += 1
        confirmed.append((await broker.bus.publish(topic, 1)).id)
        await ledger.until(lambda: set(confirmed) <= set(ledger.ids))
    assert len(ledger.ids) <= len(confirmed) + refused
    assert len(ledger.handlings) == len(ledger.ids)


@proves("shutdown")
async def two_apps_of_one_bus_end_separately(broker: BrokerUnderTest) -> None:
    """When one app ends, another on the same bus goes on, and so does publishing."""
    topic, first, second = broker.topic(), Ledger(), Ledger()
    async with broker.app(topic, first, group="search").running(broker.bus):
        async with broker.app(topic, second).running(broker.bus):
            await broker.bus.publish(topic, 1)
            await first.handled(1)
            await second.handled(1)
        await broker.bus.publish(topic, 2)
        await first.handled(2)
    assert second.payloads == [1]


@proves("attempts", limit=60)
async def deployments_bring_no_message_nearer_to_the_dead_letters(broker: BrokerUnderTest) -> None:
    """However often members come and go while it waits, an unhandled message stays at attempt 1 (2)."""
    topic, ledger, stuck = broker.topic(), Ledger(), asyncio.Event()

    async def hang(_: Delivery[Any]) -> Outcome | None:
        await stuck.wait()
        return Ack()

    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    receipts = await broker.bus.publish_many(topic, list(range(4)))
    policy = RetryPolicy(2, fixed(0.1))
    for deployments in range(1, 9):
        app = broker.app(topic, ledger, then=hang, concurrency=1, prefetch=10, retry=policy)
        async with broker.running(app, grace=0.01):
            await ledger.begun(deployments)
    async with broker.running(broker.app(topic, ledger, member="last", retry=policy)):
        await ledger.handled(4)
    assert {one.attempt for one in ledger.handlings} == {1}
    assert {one.id for one in ledger.by("last")} == {receipt.id for receipt in receipts}
    assert await broker.letters(topic) == []
