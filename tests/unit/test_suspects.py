"""The crash guard: what may have killed a process runs alone, after a durable mark (3)."""

from contextlib import asynccontextmanager

from messaging.adapter import DONE, Hold, Lease
from messaging.isolation import Isolation
from messaging.message import Reject, Release, Retry
from messaging.workers import KEPT_WAITING
from tests.unit.scripted import Bench, Work, raw, suspect


@asynccontextmanager
async def two_subscriptions(work, other_work):
    """Of one program."""
    isolation = Isolation()
    async with (
        Bench(work, isolation=isolation).running() as one,
        Bench(other_work, isolation=isolation).running() as other,
    ):
        yield one, other


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
    guilty, innocent = Work(), Work()
    async with two_subscriptions(guilty, innocent) as (one, other):
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
    guilty, innocent = Work(), Work()
    async with two_subscriptions(guilty, innocent) as (one, other):
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


async def test_health_tells_of_what_came_back_and_has_waited_long_for_another_subscription():
    slow, held_up = Work(), Work()
    async with two_subscriptions(slow, held_up) as (one, other):
        await one.put(raw("slow", returns=1))
        await other.put(suspect("s"))
        await other.clock.advance(KEPT_WAITING - 1)
        assert other.health.stuck is None
        await other.put(raw("2", returns=1))
        held_up.finish("2")
        await other.clock.advance(1)
        assert other.health.stuck is not None
        assert other.health.stuck.startswith(
            "messages of orders/billing that came back (1, message s among them) wait until what came back to "
            "orders/billing in this program is over"
        )
        assert one.health.stuck is None

        slow.finish("slow")
        await one.clock.settle()
        await other.clock.settle()
        assert held_up.running == {"s"}
        await other.clock.advance(2 * KEPT_WAITING)
        assert other.health.stuck is None, "it runs"
        held_up.finish("s")


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


async def test_a_handler_that_was_left_behind_holds_up_no_suspect_and_ends_late_without_harm():
    isolation, freed = Isolation(), []
    gone, asking = object(), object()
    assert isolation.begin_returned(gone, lambda: None)
    assert not isolation.free_for(asking, lambda: freed.append(asking))

    isolation.gone(gone)
    isolation.end_returned(gone)

    assert freed == [asking]
    assert isolation.free_for(asking, lambda: None)
