import asyncio
from contextlib import suppress

import pytest

from messaging import Ack, ConfigurationError, LeaseLost, Reject, Release, Retry, connect
from messaging.adapter import Capability
from messaging.errors import AuthenticationFailed, Closed, MessagingError, UnsupportedCapability
from tests.unit.topics import jobs, orders


@pytest.fixture
async def bus(clock):
    async with connect("memory://", clock=clock) as bus:
        await bus.declare(orders, groups=["audit"])
        await bus.declare(jobs, groups=["audit"])
        yield bus


async def taken(pull, clock):
    """What can be taken now."""
    found = []
    while True:
        task = asyncio.create_task(anext(pull))
        await clock.settle()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return found
        found.append(task.result())


async def lag(bus, topic="jobs"):
    return next(group.lag for group in await bus.groups() if group.topic == topic)


async def test_a_start_that_is_none_is_refused(bus):
    with pytest.raises(ConfigurationError, match="start='Latest'"):
        bus.consume(jobs, group="new", start="Latest")


async def test_each_delivery_is_settled_by_hand(bus, clock):
    await bus.publish_many(jobs, ["a", "b"])
    async with bus.consume(jobs, group="audit") as pull:
        first, second = await taken(pull, clock)
        await pull.settle(first, Ack())
        await pull.settle(second, Reject("no"))

    assert await lag(bus) == 0
    assert await bus.dead_letters(jobs, group="audit").count() == 1


async def test_it_cannot_be_opened_while_it_is_open(bus, clock):
    pull = bus.consume(jobs, group="audit")
    first, second = await asyncio.gather(pull.__aenter__(), pull.__aenter__(), return_exceptions=True)
    assert first is pull
    assert isinstance(second, ConfigurationError)
    with pytest.raises(ConfigurationError, match="open already"):
        await pull.__aenter__()
    await pull.__aexit__(None, None, None)

    assert [group.members for group in await bus.groups() if group.topic == "jobs"] == [0]
    await bus.publish(jobs, "a")
    async with pull:
        assert [one.payload for one in await taken(pull, clock)] == ["a"]


async def test_one_that_another_part_of_the_program_cancels_ends_with_an_error_not_as_if_cancelled(
    bus, clock
):
    with pytest.raises(MessagingError, match="was cancelled by another part of this program"):
        async with bus.consume(jobs, group="audit") as pull:
            waiting = asyncio.create_task(anext(pull))
            await clock.settle()
            (task,) = (one for one in asyncio.all_tasks() if one.get_name() == "messaging-consume-jobs")

            task.cancel()

            await waiting


async def test_what_is_not_settled_at_exit_goes_back_uncounted(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (left,) = await taken(pull, clock)
    assert await lag(bus) == 1

    async with bus.consume(jobs, group="audit") as next_pull:
        (again,) = await taken(next_pull, clock)

    assert again.attempt == 1
    with pytest.raises(LeaseLost):
        await pull.settle(left, Ack())


async def test_at_most_prefetch_are_unsettled(bus, clock):
    await bus.publish_many(jobs, ["a", "b", "c"])
    async with bus.consume(jobs, group="audit", prefetch=2) as pull:
        first, _ = await taken(pull, clock)
        await pull.settle(first, Ack())

        assert len(await taken(pull, clock)) == 1


async def test_the_next_of_a_key_comes_after_the_former_is_settled(bus, clock):
    await bus.publish_many(orders, ["a1", "a2", "b1"])
    async with bus.consume(orders, group="audit") as pull:
        found = await taken(pull, clock)
        assert {one.payload for one in found} == {"a1", "b1"}

        await pull.settle(next(one for one in found if one.payload == "a1"), Ack())

        assert [one.payload for one in await taken(pull, clock)] == ["a2"]


async def test_a_retry_waits_and_is_handed_out_again_without_a_limit(bus, clock):
    await bus.publish(orders, "a1")
    async with bus.consume(orders, group="audit") as pull:
        for attempt in range(1, 6):
            (delivery,) = await taken(pull, clock)
            assert delivery.attempt == attempt
            await pull.settle(delivery, Retry("not yet", after=60))
            assert await taken(pull, clock) == []
            await clock.advance(60)

        assert len(await taken(pull, clock)) == 1


async def test_what_has_expired_is_dropped_and_counted(bus, clock):
    await bus.publish(jobs, "too late", expires=10)
    await clock.advance(10)
    await bus.publish(jobs, "in time", expires=10)
    async with bus.consume(jobs, group="audit") as pull:
        assert [one.payload for one in await taken(pull, clock)] == ["in time"]
        (health,) = (await bus.health()).subscriptions

    assert health.expired == 1
    assert await bus.dead_letters(jobs, group="audit").count() == 0


async def test_what_expires_while_it_waits_is_not_handed_out(bus, clock):
    async with bus.consume(jobs, group="audit") as pull:
        await bus.publish(jobs, "too late", expires=10)
        await clock.settle()
        await clock.advance(10)

        assert await taken(pull, clock) == []
        assert await lag(bus) == 0


async def test_what_expires_is_not_retried(bus, clock):
    await bus.publish(jobs, "a", expires=10)
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        await pull.settle(delivery, Retry("not yet", after=20))
        await clock.advance(20)

        assert await taken(pull, clock) == []
        assert await lag(bus) == 0


async def test_settling_twice_is_a_no_op(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)

        await asyncio.gather(pull.settle(delivery, Ack()), pull.settle(delivery, Reject("too late")))
        await pull.settle(delivery, Reject("too late"))

    assert await bus.dead_letters(jobs, group="audit").count() == 0
    assert await lag(bus) == 0


async def test_settling_what_was_lost_is_refused_whenever_it_is_tried(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        bus.native.restart()
        await clock.settle()

        with pytest.raises(LeaseLost, match=f"Message {delivery.message.id} of jobs was not settled"):
            await pull.settle(delivery, Ack())
        await pull.settle(delivery, Ack())
        await clock.advance(6)
        (again,) = await taken(pull, clock)
        await pull.settle(again, Ack())

    assert again.message.id == delivery.message.id
    assert await lag(bus) == 0


async def test_a_loss_during_settle_is_told(bus, clock, monkeypatch):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        settling = asyncio.create_task(pull.settle(delivery, Ack()))
        await asyncio.sleep(0)

        bus.native.restart()

        with pytest.raises(LeaseLost):
            await settling


async def test_a_delivery_that_was_given_back_for_another_member_is_refused(bus, clock):
    await bus.publish_many(orders, [f"{letter}1" for letter in "abcdefghijkl"])
    async with bus.consume(orders, group="audit") as pull:
        held = await taken(pull, clock)
        async with bus.consume(orders, group="audit") as other:
            await clock.advance(60)
            theirs = {one.payload for one in await taken(other, clock)}
            assert theirs

            for delivery in held:
                if delivery.payload in theirs:
                    with pytest.raises(LeaseLost):
                        await pull.settle(delivery, Ack())
                else:
                    await pull.settle(delivery, Ack())


async def test_what_the_program_decided_too_late_is_not_taken_for_settled(bus, clock):
    """The outcome is given in the very moment in which the delivery is taken back."""
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        pull._dispatcher.stop()
        while not pull._dispatcher._dispatchers[1]._workers._interrupted:
            await asyncio.sleep(0)

        with pytest.raises(LeaseLost, match="given back"):
            await pull.settle(delivery, Ack())

    assert await lag(bus) == 1


async def test_cancelling_the_iteration_loses_nothing(bus, clock):
    async with bus.consume(jobs, group="audit") as pull:
        waiting = asyncio.create_task(anext(pull))
        await clock.settle()
        waiting.cancel()
        await bus.publish(jobs, "a")

        assert [one.payload for one in await taken(pull, clock)] == ["a"]


async def test_what_waited_for_longer_than_its_lease_is_not_given_out_and_comes_again(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        await clock.settle()
        (waiting,) = pull._open.values()
        waiting.raw.lease.deadline = clock.monotonic()
        assert await taken(pull, clock) == []

        await clock.advance(60)
        assert [one.payload for one in await taken(pull, clock)] == ["a"]


async def test_two_tasks_may_take_deliveries(bus, clock):
    async with bus.consume(jobs, group="audit") as pull:
        tasks = [asyncio.create_task(anext(pull)) for _ in range(2)]
        await clock.settle()

        await bus.publish_many(jobs, ["a", "b"])

        assert {(await task).payload for task in tasks} == {"a", "b"}


async def test_cancelling_settle_leaves_the_delivery_to_the_broker(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        settling = asyncio.create_task(pull.settle(delivery, Ack()))
        await asyncio.sleep(0)

        settling.cancel()
        await clock.settle()

    assert await lag(bus) == 0


async def fail_for_good(bus, clock, pull):
    async def refused(*_):
        raise AuthenticationFailed("the password was changed")

    pull._dispatcher._dispatchers[1]._consumer.receive = refused
    await clock.advance(2)


async def test_what_ends_the_subscription_is_raised_by_the_iteration_and_by_the_exit(bus, clock):
    with pytest.raises(AuthenticationFailed):
        async with bus.consume(jobs, group="audit") as pull:
            await clock.settle()
            await fail_for_good(bus, clock, pull)
            with pytest.raises(AuthenticationFailed):
                await anext(pull)


async def test_no_settle_hangs_when_the_subscription_ends_for_good(bus, clock):
    await bus.publish(jobs, "a")
    with pytest.raises(AuthenticationFailed):
        async with bus.consume(jobs, group="audit") as pull:
            (delivery,) = await taken(pull, clock)
            await fail_for_good(bus, clock, pull)

            with pytest.raises(LeaseLost, match="has ended"):
                await pull.settle(delivery, Ack())


async def test_an_error_of_the_body_goes_before_the_subscriptions(bus, clock):
    with pytest.raises(KeyError):
        async with bus.consume(jobs, group="audit") as pull:
            await clock.settle()
            await fail_for_good(bus, clock, pull)
            raise KeyError("mine")


async def test_the_iteration_ends_with_the_subscription(bus, clock):
    async with bus.consume(jobs, group="audit") as pull:
        waiting = asyncio.create_task(anext(pull, "the end"))
        await clock.settle()

    assert await waiting == "the end"
    assert bus.dispatchers == []


async def test_a_cancelled_exit_leaves_nothing_running(bus, clock):
    pull = bus.consume(jobs, group="audit")
    await pull.__aenter__()
    await clock.settle()
    pull._dispatcher._dispatchers[1]._consumer.close = asyncio.Event().wait
    leaving = asyncio.create_task(pull.__aexit__(None, None, None))
    await clock.settle()
    assert not leaving.done()

    leaving.cancel()
    await asyncio.wait((leaving,))
    del pull._dispatcher._dispatchers[1]._consumer.close

    assert leaving.cancelled()
    assert pull._task.done()


async def test_a_release_with_a_delay_comes_back_after_it(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        await pull.settle(delivery, Release(after=30))
        await clock.advance(29)
        assert await taken(pull, clock) == []
        await clock.advance(1)

        (again,) = await taken(pull, clock)
        assert again.attempt == 1


async def test_it_is_opened_before_deliveries_are_taken(bus):
    with pytest.raises(Closed):
        await anext(bus.consume(jobs, group="audit"))


async def test_what_cannot_be_asked_for_is_refused(bus, monkeypatch):
    with pytest.raises(ConfigurationError, match="prefetch"):
        bus.consume(jobs, group="audit", prefetch=0)
    capabilities = bus.capabilities
    for name, pull in (
        ("order", bus.consume(orders, group="new")),
        ("history", bus.consume(jobs, group="new", start="earliest")),
    ):
        object.__setattr__(capabilities, name, Capability("unsupported", "it cannot"))
        monkeypatch.setattr(type(bus.adapter), "capabilities", capabilities)
        with pytest.raises(UnsupportedCapability, match=f"asks memory:// for {name}: it cannot"):
            await pull.__aenter__()


async def test_only_so_many_lost_deliveries_are_remembered(bus, clock, monkeypatch):
    monkeypatch.setattr("messaging.pull.REMEMBERED", 1)
    await bus.publish_many(jobs, ["a", "b"])
    async with bus.consume(jobs, group="audit") as pull:
        await taken(pull, clock)

        bus.native.restart()
        await clock.settle()

        assert len(pull._gone) == 1


async def test_what_is_no_outcome_is_refused_and_the_delivery_stays_open(bus, clock):
    await bus.publish(jobs, "a")
    async with bus.consume(jobs, group="audit") as pull:
        (delivery,) = await taken(pull, clock)
        for nonsense in (None, "ack", Ack):
            with pytest.raises(TypeError, match="Ack, Release, Retry or Reject"):
                await pull.settle(delivery, nonsense)
        await pull.settle(delivery, Ack())

    assert await lag(bus) == 0


@pytest.mark.parametrize("prefetch", [1, 2, 32])
async def test_one_that_is_open_when_its_bus_closes_gives_back_and_ends(clock, prefetch):
    async with connect("memory://shared", clock=clock) as other:
        async with connect("memory://shared", clock=clock) as bus:
            await bus.declare(jobs, groups=["audit"])
            await bus.publish_many(jobs, ["a", "b"])
            pull = bus.consume(jobs, group="audit", prefetch=prefetch)
            before = asyncio.all_tasks()
            await pull.__aenter__()
            left = await anext(pull)

        assert asyncio.all_tasks() == before, "its tasks ended with the bus"
        with pytest.raises(Closed):
            async with asyncio.timeout(10):
                await anext(pull)
        await pull.__aexit__(None, None, None)

        async with other.consume(jobs, group="audit") as next_pull:
            again = await taken(next_pull, clock)
    assert [one.payload for one in again] == ["a", "b"]
    assert again[0].attempt == left.attempt
