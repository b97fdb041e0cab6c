"""Requests: each gets its own reply, an error, or a timeout, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time

from messaging import App, NoGroup, RemoteError, RequestTimeout
from messaging_contracts.case import proves
from messaging_contracts.ledger import Patience
from messaging_contracts.under_test import BrokerUnderTest


@proves("requests")
async def a_request_is_answered(broker: BrokerUnderTest) -> None:
    """The reply of a responder comes back as the type that the endpoint says, `None` included (22)."""
    double, app = broker.endpoint("double", int, int | None), App("prices")

    @app.respond(double)
    async def answer(number: int) -> int | None:
        return number * 2 if number else None

    async with app.running(broker.bus), broker.another_bus() as requester:
        assert await requester.request(double, 21, timeout=Patience.seconds) == 42
        assert await requester.request(double, 0, timeout=Patience.seconds) is None


@proves("requests")
async def everyone_gets_their_own_reply(broker: BrokerUnderTest) -> None:
    """Of two requesters with two hundred requests in flight, each gets the answers to its own questions (22)."""
    echo, app = broker.endpoint("echo", str, str), App("prices")

    @app.respond(echo, concurrency=50)
    async def answer(question: str) -> str:
        await asyncio.sleep(0.001 * (len(question) % 3))
        return question

    async with app.running(broker.bus), broker.another_bus() as one, broker.another_bus() as two:
        asked = [
            (bus, f"{name} {'x' * number}")
            for number in range(100)
            for name, bus in (("one", one), ("two", two))
        ]
        replies = await asyncio.gather(
            *(bus.request(echo, question, timeout=Patience.seconds) for bus, question in asked)
        )
    assert replies == [question for _, question in asked]


@proves("requests")
async def responders_share_the_requests(broker: BrokerUnderTest) -> None:
    """Each request is handled by one of two responders, once (22)."""
    echo = broker.endpoint("echo", int, int)
    handled: list[tuple[str, int]] = []

    def responder(name: str) -> App:
        app = App("prices")

        @app.respond(echo, concurrency=2, prefetch=2)
        async def answer(number: int) -> int:
            handled.append((name, number))
            await asyncio.sleep(0.005)
            return number

        return app

    asked = 0

    async def both_take_part() -> bool:
        nonlocal asked
        numbers = range(asked, asked + 60)
        asked += len(numbers)
        replies = await asyncio.gather(
            *(broker.bus.request(echo, number, timeout=Patience.seconds) for number in numbers)
        )
        assert replies == list(numbers)
        return {name for name, _ in handled} == {"one", "two"}

    async with broker.running(responder("one"), responder("two")):
        await broker.eventually(both_take_part, "both responders take part")  # one may still be joining
    assert sorted(number for _, number in handled) == list(range(asked))


@proves("requests")
async def a_late_reply_reaches_nobody(broker: BrokerUnderTest) -> None:
    """A request without a reply in time raises RequestTimeout; its late reply is dropped, the next is right (22)."""
    echo, app = broker.endpoint("echo", str, str), App("prices")
    heard, given_up, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.respond(echo, concurrency=2)
    async def answer(question: str) -> str:
        if question == "slow":
            heard.set()
            await given_up.wait()
            answered.set()
        return question

    async with app.running(broker.bus), broker.another_bus() as requester:
        timeout = 1.0
        while not heard.is_set():  # the question of a machine that stands still expires before it is heard
            asked, timed_out = time.monotonic(), False
            try:
                await requester.request(echo, "slow", timeout=timeout)
            except RequestTimeout:
                timed_out = True
            assert timed_out
            assert timeout <= time.monotonic() - asked < timeout + 2 + Patience.seconds / 3
            timeout *= 2
        given_up.set()
        assert await requester.request(echo, "quick", timeout=Patience.seconds) == "quick"
        await asyncio.wait_for(answered.wait(), Patience.seconds)
        assert await requester.request(echo, "quick again", timeout=Patience.seconds) == "quick again"


@proves("requests")
async def a_request_that_expired_is_not_answered(broker: BrokerUnderTest) -> None:
    """A request whose requester has given up is not handled by a responder that comes later (22)."""
    echo = broker.endpoint("echo", str, str)
    handled: list[str] = []

    def responder() -> App:
        app = App("prices")

        @app.respond(echo)
        async def answer(question: str) -> str:
            handled.append(question)
            return question

        return app

    async with broker.running(responder()):
        assert await broker.bus.request(echo, "first", timeout=Patience.seconds) == "first"
    timed_out = False
    try:
        await broker.bus.request(echo, "expired", timeout=0.2)
    except RequestTimeout:
        timed_out = True
    assert timed_out
    async with broker.running(responder()):
        assert await broker.bus.request(echo, "last", timeout=Patience.seconds) == "last"
    assert handled == ["first", "last"]


@proves("requests")
async def an_error_of_the_responder_reaches_the_requester(broker: BrokerUnderTest) -> None:
    """A failing responder is run once; the requester gets its error's type and text; there is no dead letter (22)."""
    quote, app = broker.endpoint("quote", str, str), App("prices")
    handled: list[str] = []

    @app.respond(quote)
    async def answer(question: str) -> str:
        handled.append(question)
        raise LookupError("no price for " + question)

    async with app.running(broker.bus), broker.another_bus() as requester:
        error: RemoteError | None = None
        try:
            await requester.request(quote, "tea", timeout=Patience.seconds)
        except RemoteError as raised:
            error = raised
        assert error is not None
        assert error.remote_type.endswith("LookupError")
        assert error.remote_message == "no price for tea"
        await asyncio.sleep(0.3)  # a retry would come by then
    assert handled == ["tea"]
    assert await broker.letters(quote.topic, "responders") == []


@proves("requests")
async def a_reply_that_is_too_large_fails_the_request_at_once(broker: BrokerUnderTest) -> None:
    """A reply beyond `max_message_bytes` is a RemoteError that says so, long before the request's timeout (22)."""
    blob, app = broker.endpoint("blob", int, bytes), App("blobs")
    too_many = broker.capabilities.max_message_bytes + 1

    @app.respond(blob)
    async def answer(size: int) -> bytes:
        return bytes(size)

    async with app.running(broker.bus), broker.another_bus() as requester:
        try:
            await requester.request(blob, too_many, timeout=Patience.seconds)
        except RemoteError as error:
            assert error.remote_type.endswith("MessageTooLarge")
        else:
            raise AssertionError("a reply that is larger than a publish may be was sent")
        assert await requester.request(blob, 3, timeout=Patience.seconds) == bytes(3)


@proves("no_group")
async def a_request_that_nobody_could_answer_fails_at_once(broker: BrokerUnderTest) -> None:
    """Without any responders a request raises NoGroup, long before its timeout (22)."""
    quote = broker.endpoint("quote", str, str)
    asked, refused = time.monotonic(), False
    try:
        await broker.bus.request(quote, "tea", timeout=Patience.seconds)
    except NoGroup:
        refused = True
    assert refused
    assert time.monotonic() - asked < Patience.seconds / 2


@proves("requests")
async def a_cancelled_request_leaves_nothing_behind(broker: BrokerUnderTest) -> None:
    """After requests were cancelled, their replies reach nobody and others on the same bus are answered (22)."""
    echo, app = broker.endpoint("echo", str, str), App("prices")
    asked, go_on = asyncio.Event(), asyncio.Event()

    @app.respond(echo, concurrency=20)
    async def answer(question: str) -> str:
        if question == "cancelled":
            asked.set()
            await go_on.wait()
        return question

    async with app.running(broker.bus), broker.another_bus() as requester:
        tasks = [
            asyncio.create_task(requester.request(echo, "cancelled", timeout=Patience.seconds))
            for _ in range(5)
        ]
        await asyncio.wait_for(asked.wait(), Patience.seconds)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        go_on.set()
        replies = await asyncio.gather(
            *(requester.request(echo, f"{n}", timeout=Patience.seconds) for n in range(20))
        )
    assert replies == [f"{number}" for number in range(20)]


@proves("requests")
async def a_requester_that_starts_again_gets_only_its_own_replies(broker: BrokerUnderTest) -> None:
    """A reply to a requester that is gone does not reach the one that came after it (22)."""
    echo, app = broker.endpoint("echo", str, str), App("prices")
    asked, go_on = asyncio.Event(), asyncio.Event()

    @app.respond(echo, concurrency=4)
    async def answer(question: str) -> str:
        if question == "old":
            asked.set()
            await go_on.wait()
        return question

    async with app.running(broker.bus):
        async with broker.another_bus() as old:
            task = asyncio.create_task(old.request(echo, "old", timeout=Patience.seconds))
            await asyncio.wait_for(asked.wait(), Patience.seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with broker.another_bus() as new:
            go_on.set()
            for number in range(5):
                assert await new.request(echo, f"new {number}", timeout=Patience.seconds) == f"new {number}"
