import asyncio
import contextvars
import functools
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest

from messaging import Ack, ConfigurationError, Delivery, Reject, Release, Retry
from messaging.clock import SystemClock
from messaging.parameters import bind, concluded, name_of

if TYPE_CHECKING:
    from decimal import Decimal


class Db:
    pass


class Replica(Db):
    pass


class Cache(dict[str, int]):
    pass


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2, thread_name_prefix="handlers") as executor:
        yield executor


@pytest.fixture
def bound(executor):
    def make(function, *provided):
        return bind(function, provided, executor, SystemClock(), concluded)

    return make


def a_delivery(payload: Any = "x"):
    return Delivery(payload, attempt=2)


# what fills a parameter


async def test_the_first_parameter_is_the_payload_whatever_its_name_and_annotation(bound):
    seen = []

    async def handle(order: Db, /):
        seen.append(order)

    await bound(handle)(a_delivery("the payload"))

    assert seen == ["the payload"]


async def test_the_others_are_filled_by_their_annotation(bound):
    db, cache, seen = Db(), Cache(), []

    async def handle(order, *, cache: Mapping[str, int], db: Db, delivery: Delivery[str], bare: Delivery):
        seen.append((order, cache, db, delivery, bare))

    delivery = a_delivery()
    await bound(handle, cache, db)(delivery)

    assert seen == [("x", cache, db, delivery, delivery)]


async def test_a_subclass_is_what_is_asked_for(bound):
    replica, seen = Replica(), []

    async def handle(order, db: Db):
        seen.append(db)

    await bound(handle, replica)(a_delivery())

    assert seen == [replica]


async def test_one_of_several_kinds_is_what_is_asked_for(bound):
    """The default of `Db | None = None` is for tests and other callers."""
    db, seen = Db(), []

    async def handle(
        order,
        union: Db | None = None,
        optional: Optional[Db] = None,  # noqa: UP045  as older programs have it
        text: "Db | None" = None,
        unseen: "unseen.Db | None" = None,  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        annotated: Annotated[Db | None, "of the shop"] = None,
        delivery: Delivery[str] | None = None,
    ):
        seen.append((union, optional, text, unseen, annotated, delivery))

    delivery = a_delivery()
    await bound(handle, db)(delivery)

    assert seen == [(db, db, db, db, db, delivery)]


async def test_a_default_stands_where_nothing_is_provided(bound):
    seen = []

    async def handle(order, db: Db | None = None, limit: int = 3, *rest: str, **others: str):
        seen.append((db, limit, rest, others))

    await bound(handle)(a_delivery())

    assert seen == [(None, 3, (), {})]


async def test_what_is_provided_goes_before_a_default(bound):
    db, other, seen = Db(), Db(), []

    async def handle(order, db: Db = other):
        seen.append(db)

    await bound(handle, db)(a_delivery())

    assert seen == [db]


async def test_annotations_that_are_text_are_resolved(bound):
    """As every annotation is in a module with `from __future__ import annotations`."""
    db, seen = Db(), []

    class Local:
        pass

    local = Local()

    async def handle(order: "str", db: "Db", local: "Local", delivery: "Delivery[str]"):
        seen.append((db, local, delivery.attempt, Local))

    await bound(handle, db, local)(a_delivery())

    assert seen == [(db, local, 2, Local)]


async def test_annotations_of_names_that_only_the_type_checker_imports_are_matched_by_name(bound):
    from decimal import Decimal as Number

    number, seen = Number(3), []

    async def handle(order, amount: "Decimal", delivery: "unseen.Delivery[str]"):  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        seen.append((amount, delivery.attempt))

    await bound(handle, number)(a_delivery())

    assert seen == [(number, 2)]


@pytest.mark.parametrize(
    "annotation",
    [
        "Decimal | None",
        "Optional[Decimal]",
        "typing.Annotated[Decimal, 'exact']",
        "Union[Fraction, 'numbers.Decimal']",
        "Decimal[Any]",
    ],
)
async def test_names_that_only_the_type_checker_imports_are_matched_whatever_is_around_them(
    bound, annotation
):
    from decimal import Decimal as Number

    async def handle(order, amount):
        return Ack(amount)

    handle.__annotations__["amount"] = annotation

    assert await bound(handle, Number(3))(a_delivery()) == Ack(Number(3))


async def test_a_name_that_the_enclosing_function_assigns_later_is_matched_by_name(bound):
    async def handle(order, later: "Later"):  # pyright: ignore[reportInvalidTypeForm]
        return Ack(type(later) is Later)

    made = type("Later", (), {})()
    handler = bound(handle, made)
    Later = type(made)

    assert await handler(a_delivery()) == Ack(True)


async def test_a_parameter_without_annotation_cannot_be_filled(bound):
    async def handle(order, db): ...

    told = "Parameter 'db' of handler .*[.]handle cannot be filled: it has no annotation; there are: Db, Delivery"
    for function in (handle, functools.partial(handle)):
        with pytest.raises(ConfigurationError, match=told):
            bound(function, Db())


async def test_what_nothing_provides_is_named_with_what_there_is(bound):
    async def handle(order, db: Db): ...

    with pytest.raises(
        ConfigurationError, match=r"nothing provides a Db; there are: Cache, Delivery\. The lifespan"
    ):
        bound(handle, Cache())


async def test_what_is_provided_twice_is_refused(bound):
    async def handle(order, db: Db): ...

    with pytest.raises(ConfigurationError, match="2 of the things that are provided are a Db"):
        bound(handle, Db(), Replica())


async def test_an_annotation_that_is_no_class_cannot_be_filled(bound):
    async def handle(order, wanted: "Db or 3"): ...  # pyright: ignore[reportInvalidTypeForm]

    async def other(order, wanted: 3): ...  # pyright: ignore[reportInvalidTypeForm, reportGeneralTypeIssues]

    for function, shown in ((handle, "Db"), (other, "3")):
        with pytest.raises(ConfigurationError, match=f"nothing provides a {shown}"):
            bound(function)


async def test_a_handler_takes_a_payload(bound):
    async def nothing(): ...

    async def by_keyword(*, order): ...

    async def by_keywords(**orders): ...

    for function in (nothing, by_keyword, by_keywords):
        with pytest.raises(ConfigurationError, match=f"{function.__name__} takes no payload"):
            bound(function)


async def test_a_generator_is_no_handler(bound):
    async def yields(order):
        yield order

    def yields_too(order):
        yield order

    for function in (yields, yields_too):
        with pytest.raises(ConfigurationError, match="is a generator"):
            bound(function)


async def test_only_the_payload_may_be_positional_only(bound):
    async def handle(order, db: Db, /): ...

    with pytest.raises(ConfigurationError, match="'db' of handler .* is positional-only"):
        bound(handle, Db())


# how it is called


async def test_a_coroutine_function_in_any_dress_runs_on_the_loop(bound):
    db, threads = Db(), set()

    class Handler:
        async def __call__(self, order, db: Db):
            threads.add(threading.current_thread())

        async def method(self, order, db: Db):
            threads.add(threading.current_thread())

    @functools.wraps(Handler().method)
    def wrapped(*args, **kwargs):
        return Handler().method(*args, **kwargs)

    partial = functools.partial(Handler().method, db=db)
    for function in (Handler(), Handler().method, wrapped, partial, functools.partial(Handler())):
        assert await bound(function, db)(a_delivery()) == Ack()

    assert threads == {threading.current_thread()}


async def test_what_a_plain_function_returns_to_be_awaited_is_awaited_on_the_loop(bound):
    threads = []

    async def handle(order: str):
        threads.append(threading.current_thread())
        return Reject(order)

    outcome = await bound(lambda order: handle(order))(a_delivery())

    assert outcome.reason == "x"
    assert threads == [threading.current_thread()]


async def test_what_a_partial_has_bound_stays_though_something_of_its_kind_is_provided(bound):
    mine, seen = Db(), []

    def handle(order: str, db: Db, other: Db):
        seen.extend((db, other))

    provided = Db()
    await bound(functools.partial(handle, db=mine), provided)(a_delivery())

    assert seen == [mine, provided]


async def test_a_plain_function_runs_in_a_thread_with_the_callers_context(bound):
    tenant = contextvars.ContextVar("tenant")
    tenant.set("acme")
    seen = []

    def handle(order: str, db: Db):
        seen.append((threading.current_thread().name.split("_")[0], tenant.get(), order))

    assert await bound(handle, Db())(a_delivery()) == Ack()
    assert seen == [("handlers", "acme", "x")]


@pytest.mark.parametrize("outcome", [Ack("reply"), Release(), Retry("later"), Reject("no")])
async def test_an_outcome_is_what_the_handler_returns(bound, outcome):
    async def handle(order):
        return outcome

    def plain(order):
        return outcome

    assert await bound(handle)(a_delivery()) is outcome
    assert await bound(plain)(a_delivery()) is outcome


async def test_what_is_no_outcome_is_the_handlers_mistake(bound):
    async def handle(order):
        return True

    with pytest.raises(TypeError, match="this one returned a bool"):
        await bound(handle)(a_delivery())


async def test_what_a_handler_raises_is_raised(bound):
    async def handle(order):
        raise KeyError("mine")

    def plain(order):
        raise KeyError("mine")

    for function in (handle, plain):
        with pytest.raises(KeyError, match="mine"):
            await bound(function)(a_delivery())


async def test_a_stop_iteration_of_a_thread_is_a_failure_and_no_hang(bound):
    def handle(order):
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await bound(handle)(a_delivery())


async def test_a_cancellation_that_somebody_asked_for_is_one(bound):
    async def handle(order):
        await asyncio.sleep(3600)

    task = asyncio.create_task(bound(handle)(a_delivery()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()


async def test_a_cancellation_that_nobody_asked_for_is_a_failure(bound):
    async def handle(order):
        raise asyncio.CancelledError

    def plain(order):
        raise asyncio.CancelledError

    for function in (handle, plain):
        with pytest.raises(RuntimeError, match="waited for something that was cancelled"):
            await bound(function)(a_delivery())


async def test_a_thread_that_runs_is_waited_for_however_often_it_is_cancelled(bound):
    started, gate, ended = threading.Event(), threading.Event(), []

    def handle(order):
        started.set()
        gate.wait(10)
        ended.append(order)

    task = asyncio.create_task(bound(handle)(a_delivery()))
    await asyncio.to_thread(started.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()

    gate.set()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert ended == ["x"]


async def test_a_call_that_has_not_begun_never_begins_once_cancelled(bound, executor):
    gate, ran = threading.Event(), []
    blockers = [executor.submit(gate.wait, 10) for _ in range(2)]
    task = asyncio.create_task(bound(ran.append)(a_delivery()))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait((task,), timeout=5)
    gate.set()
    await asyncio.to_thread(lambda: [blocker.result() for blocker in blockers])

    assert task.cancelled()
    assert ran == []


def test_a_handlers_name_has_its_module():
    class Handler:
        def __call__(self, order): ...

        def __repr__(self):
            return "<a handler>"

    assert name_of(a_delivery) == f"{__name__}.a_delivery"
    assert name_of(Handler()) == f"{__name__}.<a handler>"
