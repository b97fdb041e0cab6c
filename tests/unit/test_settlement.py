import asyncio
import contextlib
import logging
from typing import Any

import pytest

from messaging.adapter import DONE, SettleError, Settlement
from messaging.codec import Codec
from messaging.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    LeaseLost,
    MessageTooLarge,
    PublishError,
    RemoteError,
    TopicNotFound,
)
from messaging.message import Ack, Message
from messaging.requests import read_reply
from messaging.settlement import BATCH, Settler
from messaging.testing import VirtualClock
from tests.unit.scripted import message, raw

LOST = SettleError(LeaseLost("gone"))
DOWN = SettleError(ConnectionFailed("down"))


class Desk:
    """A settler between functions of a test."""

    def __init__(self):
        self.clock = VirtualClock()
        self.log = []
        self.results = []
        self.unwanted = set()
        self.answers: list[Any] = []
        self.reply_answers: list[Any] = []
        self.replies: list[Message] = []
        self.gate: asyncio.Event | None = None
        self.settler = Settler(
            settle=self.settle,
            reply=self.reply,
            settled=self.settled,
            wanted=lambda batch: [one for one in batch if one.delivery.message.id not in self.unwanted],
            clock=self.clock,
        )

    def settled(self, batch, results):
        ids = [one.delivery.message.id for one in batch]
        self.results += zip(ids, results, strict=True)

    async def settle(self, batch):
        self.log.append([one.delivery.message.id for one in batch])
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if self.gate is not None:
            await self.gate.wait()
        return answer or [DONE] * len(batch)

    async def reply(self, replies):
        self.log.append(("replies", [message.id for _, message in replies]))
        self.replies += [message for _, message in replies]
        answer = self.reply_answers.pop(0) if self.reply_answers else None
        if isinstance(answer, Exception):
            raise answer
        if self.gate is not None:
            await self.gate.wait()
        return answer or [None] * len(replies)

    def add(self, *ids, reply=False):
        for id in ids:
            self.settler.add(Settlement(raw(id), Ack()), ("inbox", message(f"re-{id}")) if reply else None)


@pytest.fixture
async def desk():
    desk = Desk()
    task = asyncio.create_task(desk.settler.run())
    await desk.clock.settle()
    yield desk
    task.cancel()
    await asyncio.wait((task,))


async def test_what_gathers_during_an_exchange_goes_together_in_the_next(desk):
    desk.gate = asyncio.Event()
    desk.add("a")
    await desk.clock.settle()

    desk.add("b", "c")
    desk.gate.set()
    await desk.clock.settle()

    assert desk.log == [["a"], ["b", "c"]]
    assert desk.results == [("a", DONE), ("b", DONE), ("c", DONE)]


async def test_an_exchange_is_bounded(desk):
    desk.add(*(str(number) for number in range(BATCH + 1)))

    await desk.clock.settle()

    assert [len(batch) for batch in desk.log] == [BATCH, 1]


async def test_what_the_broker_did_not_take_is_settled_again_with_growing_waits(desk):
    desk.answers = [[DOWN, DONE], [DOWN], [DOWN]]
    desk.add("a", "b")

    await desk.clock.settle()
    assert desk.log == [["a", "b"]]
    await desk.clock.advance(10)

    assert desk.log == [["a", "b"], ["a"], ["a"], ["a"]]
    assert desk.results == [("b", DONE), ("a", DONE)]


async def test_what_an_adapter_raises_for_a_whole_batch_is_settled_again_unless_it_is_fatal(desk):
    desk.answers = [ConnectionFailed("down"), PublishError("full")]
    desk.add("a", "b")

    await desk.clock.settle()
    assert desk.settler.error == "down"
    await desk.clock.advance(60)

    assert desk.log == [["a", "b"]] * 3
    assert desk.results == [("a", DONE), ("b", DONE)]
    assert desk.settler.error is None

    desk.answers = [LeaseLost("gone")]
    desk.add("c")
    await desk.clock.settle()
    assert [(id, type(result)) for id, result in desk.results[2:]] == [("c", SettleError)]


@pytest.mark.parametrize(
    "error", [AuthenticationFailed("no"), TopicNotFound("gone"), RuntimeError("a defect")]
)
async def test_a_settlement_that_no_trying_again_heals_ends_it(error):
    desk = Desk()
    desk.answers = [error]
    desk.add("a")

    with pytest.raises(type(error)):
        await desk.settler.run()


async def test_a_lost_delivery_is_told_and_not_settled_again(desk):
    desk.answers = [[LOST]]
    desk.add("a")

    await desk.clock.advance(60)

    assert desk.log == [["a"]]
    assert desk.results == [("a", LOST)]


async def test_what_is_no_longer_ours_is_not_settled_again(desk):
    desk.answers = [[DOWN]]
    desk.add("a")
    await desk.clock.settle()

    desk.unwanted.add("a")
    await desk.clock.advance(60)
    desk.add("b")
    await desk.clock.settle()

    assert desk.log == [["a"], ["b"]]
    assert desk.results == [("b", DONE)]


async def test_the_log_names_the_error_that_makes_it_try_again(desk, caplog):
    desk.answers = [[LOST, DOWN]]
    desk.add("a", "b")

    with caplog.at_level(logging.WARNING, "messaging"):
        await desk.clock.settle()

    (record,) = caplog.records
    assert "down" in record.getMessage()
    assert (record.message_id, record.unsettled) == ("b", 1)


async def test_a_reply_is_sent_before_its_request_is_settled(desk):
    desk.add("a", reply=True)
    desk.add("b")

    await desk.clock.settle()

    assert desk.log == [("replies", ["re-a"]), ["a", "b"]]


async def test_a_reply_is_sent_once_although_its_request_is_settled_again(desk):
    desk.answers = [[DOWN]]
    desk.add("a", reply=True)

    await desk.clock.advance(1)

    assert desk.log == [("replies", ["re-a"]), ["a"], ["a"]]


async def test_a_broken_connection_delays_the_reply_and_the_settlement_behind_it(desk):
    desk.reply_answers = [ConnectionFailed("down")]
    desk.add("a", reply=True)

    await desk.clock.settle()
    assert desk.results == []
    await desk.clock.advance(1)

    assert desk.log == [("replies", ["re-a"]), ("replies", ["re-a"]), ["a"]]
    assert desk.results == [("a", DONE)]


async def test_no_reply_is_sent_for_a_request_that_somebody_else_has_now(desk):
    desk.unwanted.add("a")
    desk.add("a", reply=True)

    await desk.clock.settle()

    assert desk.log == []
    assert not desk.settler._replies


async def test_a_reply_that_cannot_be_sent_is_logged_and_its_request_is_done(desk, caplog):
    desk.reply_answers = [[PublishError("too large")]]
    desk.add("a", reply=True)

    with caplog.at_level(logging.WARNING, "messaging"):
        await desk.clock.settle()

    assert "too large" in caplog.text
    assert desk.results == [("a", DONE)]


async def test_the_requester_is_told_of_a_reply_that_is_too_large(desk):
    desk.reply_answers = [[None, MessageTooLarge("it has 5 MiB, 1 MiB fits")], ConnectionFailed("down")]
    desk.add("a", "b", reply=True)
    await desk.clock.settle()
    assert desk.results == []

    await desk.clock.advance(60)

    first, second, told, again = desk.replies
    assert (first.id, second.id) == ("re-a", "re-b")
    assert told == again  # and nothing else of the batch is sent twice
    with pytest.raises(RemoteError, match="it has 5 MiB") as failure:
        read_reply(Codec(str), told)
    assert failure.value.remote_type.endswith("MessageTooLarge")
    assert desk.results == [("a", DONE), ("b", DONE)]


async def test_a_failure_that_does_not_fit_either_is_given_up(desk, caplog):
    desk.reply_answers = [[MessageTooLarge("no room")], [MessageTooLarge("no room")]]
    desk.add("a", reply=True)

    with caplog.at_level(logging.WARNING, "messaging"):
        await desk.clock.settle()

    assert len(desk.replies) == 2
    assert "will time out" in caplog.text
    assert desk.results == [("a", DONE)]


@pytest.mark.parametrize("reply", [False, True])
async def test_what_was_cancelled_midway_is_left_to_flush(reply):
    desk = Desk()
    desk.gate = asyncio.Event()
    task = asyncio.create_task(desk.settler.run())
    desk.add("a", reply=reply)
    await desk.clock.settle()
    before = list(desk.log)

    task.cancel()
    await asyncio.wait((task,))
    desk.gate = None
    await desk.settler.flush(5)

    assert desk.log[len(before) :] == [*([("replies", ["re-a"])] if reply else []), ["a"]]
    assert desk.results == [("a", DONE)]


async def test_flush_settles_all_that_is_left_and_tries_once():
    desk = Desk()
    desk.add(*(str(number) for number in range(BATCH + 2)))
    desk.answers = [None, [DOWN, DONE]]

    await desk.settler.flush(5)

    assert [len(batch) for batch in desk.log] == [BATCH, 2]
    assert len(desk.results) == BATCH + 1


async def test_it_ends_though_a_cancellation_was_lost_on_its_way():
    desk = Desk()

    async def deaf(replies):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ConnectionFailed("down")

    desk.settler._reply = deaf
    task = asyncio.create_task(desk.settler.run())
    desk.add("a", reply=True)
    await desk.clock.settle()
    task.cancel()

    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
