import asyncio
from contextvars import ContextVar

import pytest

from messaging import workers as module
from messaging.adapter import DONE, Hold, Lease
from messaging.current import current_delivery
from messaging.errors import MessagingError
from messaging.isolation import Isolation
from messaging.message import Ack, Reject, Release, Retry
from tests.unit.scripted import Bench, Work, raw, suspect


async def test_no_more_than_concurrency_run_at_once():
    work = Work()
    async with Bench(work, concurrency=3).running() as bench:
        await bench.put(*(raw(str(n)) for n in range(10)))
        for n in range(10):
            work.finish(str(n))
            await bench.clock.settle()

    assert work.most == 3
    assert bench.counters.acked == 10


async def test_a_key_runs_one_at_a_time_in_order_and_others_go_on():
    work = Work()
    async with Bench(work, concurrency=4).running() as bench:
        await bench.put(raw("a1", "a"), raw("a2", "a"), raw("b1", "b"))
        assert work.started == ["a1", "b1"]

        work.finish("a1")
        await bench.clock.settle()
        assert work.started == ["a1", "b1", "a2"]
        work.finish("a2")
        work.finish("b1")


async def test_a_handler_that_waits_for_nothing_lets_others_run_and_its_results_go_out_meanwhile():
    settled_when_handled = []

    async def handler(delivery):
        settled_when_handled.append(bench.counters.acked)
        return Ack()

    bench = Bench(handler, concurrency=1, prefetch=1000, ordered=False)
    async with bench.running():
        await bench.put(*(raw(str(n)) for n in range(1000)))
        while bench.counters.acked < 1000:
            await bench.clock.settle()

    behind = [at - settled for at, settled in enumerate(settled_when_handled)]
    assert max(behind) < 4 * module.BURST


async def test_a_handler_knows_its_delivery_and_nobody_else_does():
    inside, before = [], []

    class Watcher:
        def started(self, delivery, raw):
            before.append(current_delivery.get())

        def settled(self, raw, result):
            before.append(current_delivery.get())

    async def handler(delivery):
        raw = current_delivery.get()
        assert raw is not None
        inside.append(raw.message.id)
        return Ack() if delivery.message.id == "1" else Retry(after=60)

    async with Bench(handler, concurrency=1, observer=Watcher()).running() as bench:
        await bench.put(raw("1"), raw("2"), raw("3"))

    assert inside == ["1", "2", "3"]
    assert before == [None] * 6


async def test_a_body_that_cannot_be_read_is_a_dead_letter_and_is_not_handled():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", body=b"{"))

    ((_, outcome),) = bench.consumer.settled
    assert isinstance(outcome, Reject)
    assert outcome.cause == "deserialize"
    assert outcome.__cause__ is not None
    assert work.started == []


async def test_a_delivery_whose_lease_ended_is_dropped_unstarted():
    work = Work()
    async with Bench(work, concurrency=1).running() as bench:
        await bench.put(raw("1"), raw("2", lease=Lease(5)))
        await bench.clock.advance(5)
        work.finish("1")
        await bench.clock.settle()

        assert work.started == ["1"]
        assert bench.counters.lost == 1
        assert bench.health.held == 0


async def test_a_handler_that_is_interrupted_gives_back_and_its_worker_lives_on():
    work = Work()
    async with Bench(work, concurrency=1).running() as bench:
        await bench.put(one := raw("1"), raw("2"))

        bench.dispatcher._workers.interrupt(one)
        bench.dispatcher._workers.interrupt(one)
        await bench.clock.settle()
        work.finish("2")
        await bench.clock.settle()

        assert bench.consumer.settled == [("1", Release()), ("2", Ack())]
        assert not any(task.cancelling() for task in bench.dispatcher._workers._tasks)


async def test_a_handler_that_swallows_its_interruption_is_taken_at_its_word():
    async def stubborn(delivery):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Ack()

    async with Bench(stubborn).running() as bench:
        await bench.put(one := raw("1"))
        bench.dispatcher._workers.interrupt(one)
        await bench.clock.settle()

        assert bench.consumer.settled == [("1", Ack())]


@pytest.mark.parametrize("how", ["and waits", "and returns", "later"])
async def test_a_handler_that_cancels_its_task_ends_no_worker(how):
    async def handler(delivery):
        if delivery.message.id == "last":
            return Ack()
        own = asyncio.current_task()
        assert own is not None
        if how == "later":
            asyncio.get_running_loop().call_soon(own.cancel)
            return Ack()
        own.cancel()
        return Ack() if how == "and returns" else await asyncio.sleep(0)

    async with Bench(handler, concurrency=2).running() as bench:
        await bench.put(*(raw(str(n)) for n in range(5)))
        await bench.put(raw("last"))

        assert "last" in bench.consumer.outcomes(Ack)
        assert len(bench.consumer.settled) == 6


async def test_a_cancellation_that_nobody_asked_for_is_a_failure_and_comes_no_second_time():
    async def handler(delivery):  # what is around a handler: middleware, a key function, a validator
        raise asyncio.CancelledError

    async with Bench(handler, concurrency=2).running() as bench:
        await bench.put(raw("1"))

        ((id, outcome),) = bench.consumer.settled
        assert (id, outcome.reason) == ("1", "waited for something that was cancelled")


async def test_what_a_handler_sets_in_a_context_variable_is_not_seen_by_the_next():
    tenant = ContextVar("tenant", default="nobody")
    seen = []

    async def handler(delivery):
        seen.append(tenant.get())
        tenant.set(delivery.message.id)
        await asyncio.sleep(0)
        seen.append(tenant.get())
        return Ack()

    async with Bench(handler, concurrency=1).running() as bench:
        await bench.put(raw("1"), raw("2"))

    assert seen == ["nobody", "1", "nobody", "2"]


@pytest.mark.parametrize("part", ["settle", "workers", "receive"])
async def test_a_part_that_another_part_of_the_program_cancels_ends_the_subscription_with_an_error(part):
    async def handler(delivery):
        return Ack()

    bench = Bench(handler)
    running = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))
    (task,) = (one for one in asyncio.all_tasks() if one.get_name() == f"messaging-{part}")

    task.cancel()
    await asyncio.wait((running,))

    with pytest.raises(
        MessagingError, match=f"messaging-{part} was cancelled by another part of this program"
    ):
        running.result()


async def test_a_handler_that_swallows_the_end_starts_nothing_more(monkeypatch):
    started = []

    async def stubborn(delivery):
        started.append(delivery.message.id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Ack()

    bench = Bench(stubborn, concurrency=1)
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"), raw("2"))

    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert started == ["1"]
    assert bench.consumer.settled == [("1", Ack())]
    assert bench.consumer.closed


async def test_a_handler_that_ignores_its_cancellation_is_left_behind_and_named(monkeypatch, caplog):
    monkeypatch.setattr(module, "ABANDON_AFTER", 0.01)
    release = asyncio.Event()

    async def deaf(delivery):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Ack()

    bench = Bench(deaf)
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))

    task.cancel()
    await asyncio.wait((task,))

    assert "Handler handler ignores its cancellation and is left behind; message 1" in caplog.text
    assert bench.consumer.closed
    release.set()
    await asyncio.wait(bench.dispatcher._workers._tasks)


class Fatal(BaseException):
    pass


async def test_what_is_no_exception_ends_the_subscription_and_gives_back(monkeypatch):
    async def handler(delivery):
        raise Fatal

    bench = Bench(handler)
    task = asyncio.create_task(bench.dispatcher.run())
    await bench.put(raw("1"))

    with pytest.raises(Fatal):
        await task
    assert bench.consumer.settled == []
    assert bench.consumer.closed


# the crash guard (3)


async def test_a_suspect_that_is_held_without_a_failure_is_marked_again_before_it_runs_again():
    work = Work()
    async with Bench(work).running() as bench:

        async def hold(settlements):
            return [Hold(5.0) if isinstance(one.outcome, Release) else DONE for one in settlements]

        async def mark(delivery):
            delivery.guard = "alone"
            return True

        bench.consumer.on_settle, bench.consumer.on_isolate = hold, mark
        await bench.put(suspect("s", key="a"))
        work.finish("s", Release(after=5))
        await bench.clock.advance(5)
        assert bench.consumer.isolated == ["s", "s"], "the broker forgot the mark with the release"
        work.finish("s")


async def test_a_suspect_runs_alone_after_it_is_marked():
    work = Work()
    async with Bench(work, concurrency=4).running() as bench:
        await bench.put(raw("1"))
        await bench.put(suspect("s"), raw("2"))
        assert work.started == ["1"]
        assert bench.consumer.isolated == []

        work.finish("1")
        await bench.clock.settle()
        assert work.running == {"s"}
        assert bench.consumer.isolated == ["s"]
        asked = len(bench.consumer.asked)
        await bench.clock.advance(10)
        assert len(bench.consumer.asked) <= asked + 1, "nothing is received beside a suspect"

        work.finish("s")
        await bench.clock.settle()
        assert work.running == {"2"}
        work.finish("2")


async def test_two_suspects_run_one_after_the_other():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(suspect("s1"), suspect("s2"))
        assert work.running == {"s1"}
        work.finish("s1", Retry(after=0))
        await bench.clock.settle()
        assert work.running == {"s2"}
        work.finish("s2")
        await bench.clock.settle()
        assert work.running == {"s1"}, "its failure is recorded: it is no suspect any more"
        assert bench.consumer.isolated == ["s1", "s2"]
        work.finish("s1")


async def test_no_two_subscriptions_of_a_program_run_a_suspect_at_once():
    isolation, guilty, innocent = Isolation(), Work(), Work()
    async with (
        Bench(guilty, isolation=isolation).running() as one,
        Bench(innocent, isolation=isolation).running() as other,
    ):
        await one.put(suspect("poison"))
        await other.put(suspect("s"), raw("2"))
        assert guilty.running == {"poison"}
        assert innocent.running == {"2"}, "what is no suspect goes on meanwhile"
        assert other.consumer.isolated == [], "a mark would bury it if the process ended now"

        guilty.finish("poison")
        await one.clock.settle()
        assert innocent.running == {"2"}
        innocent.finish("2")
        await other.clock.settle()
        assert innocent.running == {"s"}
        await one.put(suspect("later"))
        assert guilty.running == set()
        innocent.finish("s")
        await other.clock.settle()
        assert guilty.running == {"later"}
        guilty.finish("later")
        await one.clock.settle()


async def test_what_came_back_runs_beside_no_suspect_of_another_subscription():
    isolation, guilty, innocent = Isolation(), Work(), Work()
    async with (
        Bench(guilty, isolation=isolation).running() as one,
        Bench(innocent, isolation=isolation).running() as other,
    ):
        await one.put(raw("poison", returns=2))
        await other.put(suspect("s"))
        assert guilty.running == {"poison"}
        assert other.consumer.isolated == [], "a mark would bury it if the poison ended the process now"

        guilty.finish("poison")
        await one.clock.settle()
        assert innocent.running == {"s"}
        await one.put(raw("another", returns=1), raw("new"))
        assert guilty.running == {"new"}, "what never came back goes on meanwhile"

        innocent.finish("s")
        await other.clock.settle()
        assert guilty.running == {"new", "another"}
        guilty.finish("new")
        guilty.finish("another")
        await one.clock.settle()


async def test_all_that_waited_for_the_suspect_of_another_subscription_runs_when_it_is_over():
    isolation, suspected, many = Isolation(), Work(), Work()
    async with (
        Bench(suspected, isolation=isolation).running() as one,
        Bench(many, isolation=isolation, concurrency=8, ordered=False).running() as other,
    ):
        await one.put(suspect("s"))
        await other.put(*(raw(f"r{number}", returns=1) for number in range(8)))
        assert many.running == set()
        suspected.finish("s")
        await one.clock.settle()
        await other.clock.settle()
        assert len(many.running) == 8
        for id in list(many.running):
            many.finish(id)
        await other.clock.settle()


async def test_what_waits_for_the_suspect_of_another_subscription_goes_back_in_peace():
    isolation, work = Isolation(), Work()
    async with Bench(work, isolation=isolation).running() as one:
        await one.put(suspect("s"))
        async with Bench(Work(), isolation=isolation, grace=1.0).running() as other:
            await other.put(raw("waits", returns=1))
            assert other.counters.released == 0
        assert other.consumer.closed
        work.finish("s")
        await one.clock.settle()


async def test_a_subscription_that_ends_with_a_suspect_holds_up_no_other():
    isolation, left, work = Isolation(), Work(), Work()
    async with Bench(left, isolation=isolation, grace=0.0).running() as bench:
        await bench.put(suspect("s1"))
        assert left.running == {"s1"}
    assert left.cancelled == ["s1"]

    async with Bench(work, isolation=isolation).running() as bench:
        await bench.put(suspect("s2"))
        assert work.running == {"s2"}
        work.finish("s2")


async def test_a_marked_message_runs_alone_without_another_mark():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", guard="alone"), raw("2"))

        assert work.running == {"1"}
        assert bench.consumer.isolated == []
        work.finish("1")
        await bench.clock.settle()
        work.finish("2")


async def test_a_message_that_came_back_with_its_mark_is_a_dead_letter():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(raw("1", guard="tripped", deliveries=5))

    ((_, outcome),) = bench.consumer.settled
    assert isinstance(outcome, Reject)
    assert (outcome.cause, outcome.reason) == (
        "lease_lost",
        "its process ended 4 times while handling it, the last time alone",
    )
    assert work.started == []


async def test_a_suspect_that_is_lost_while_it_waits_holds_up_nobody():
    work = Work()
    async with Bench(work, concurrency=3).running() as bench:
        await bench.put(raw("long"))
        await bench.put(one := suspect("s"), raw("1"), raw("2"))
        assert work.started == ["long"]

        bench.dispatcher.on_lost([one], "gone")
        await bench.clock.settle()

        assert work.started == ["long", "1", "2"]
        for id in work.started[:]:
            work.finish(id)


async def test_a_suspect_whose_lease_ends_while_it_waits_is_not_started():
    work = Work()
    async with Bench(work, concurrency=2).running() as bench:
        await bench.put(raw("long"))
        await bench.put(suspect("s", guard="alone", lease=Lease(5)))
        await bench.clock.advance(6)
        work.finish("long")
        await bench.clock.settle()

        assert work.started == ["long"]
        assert bench.counters.lost == 1


async def test_a_suspect_that_is_lost_while_it_runs_lets_the_others_go_on():
    work = Work()
    async with Bench(work).running() as bench:
        await bench.put(one := suspect("s"), raw("1"))

        bench.dispatcher.on_lost([one], "gone")
        await bench.clock.settle()

        assert work.cancelled == ["s"]
        assert work.running == {"1"}
        work.finish("1")


async def test_waiting_workers_are_woken_once_each():
    bench = Bench(Work(), concurrency=2)
    async with bench.running():
        workers = bench.dispatcher._workers
        assert workers.idle
        workers.wake(1)
        workers.wake(5)
        await bench.clock.settle()
        assert len(workers._waiting) == 2


async def test_waking_workers_that_have_ended_is_harmless():
    bench = Bench(Work())
    async with bench.running():
        pass

    bench.dispatcher._workers.wake(5)


async def test_a_handler_that_was_left_behind_holds_up_no_suspect_and_ends_late_without_harm():
    isolation, freed = Isolation(), []
    gone, asking = object(), object()
    assert isolation.begin_returned(gone, lambda: None)
    assert not isolation.free_for(asking, lambda: freed.append(asking))

    isolation.gone(gone)
    isolation.end_returned(gone)

    assert freed == [asking]
    assert isolation.free_for(asking, lambda: None)
