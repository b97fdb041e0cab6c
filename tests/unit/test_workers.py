import asyncio
from contextvars import ContextVar

import pytest

from messaging import workers as module
from messaging.adapter import Lease
from messaging.current import current_delivery
from messaging.errors import MessagingError
from messaging.message import Ack, Reject, Release, Retry
from tests.unit.scripted import Bench, Work, raw


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
