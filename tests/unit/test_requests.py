import asyncio

import pytest

from messaging import Bus, Endpoint, Settings
from messaging.adapter import ReplyInbox
from messaging.clock import CATCH_UP, sleep
from messaging.codec import Codec
from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConnectionFailed,
    DecodeError,
    MessagingError,
    NoGroup,
    RemoteError,
    RequestTimeout,
)
from messaging.message import Ack, Reject, Release, Retry
from messaging.requests import ERROR_TYPE, Answer, Requester, answering, read_reply
from messaging.testing import VirtualClock
from tests.unit.scripted import ScriptedAdapter, message, raw


class Inbox(ReplyInbox):
    def __init__(self, clock):
        self.clock = clock
        self.address = "inbox"
        self.items = asyncio.Queue()
        self.closed = 0

    async def receive(self, limit, wait):
        item = await self.items.get()
        self.clock.touch()
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self):
        self.closed += 1


class Desk:
    def __init__(self):
        self.clock = VirtualClock()
        self.adapter = ScriptedAdapter(self.clock)
        self.inbox = Inbox(self.clock)
        self.opened = 0
        self.adapter.on_inbox = self.open
        self.requester = Requester(self.adapter, self.clock)
        self.sent = []

    async def open(self):
        self.opened += 1
        await asyncio.sleep(0)
        return self.inbox

    async def send(self, address, correlation_id):
        self.sent.append(correlation_id)

    async def ask(self, send=None, within=5.0):
        task = asyncio.create_task(self.requester.request("quote", send or self.send, within))
        await self.clock.settle()
        return task

    async def reply(self, *ids):
        self.inbox.items.put_nowait([message(f"re-{id}", correlation_id=id) for id in ids])
        await self.clock.settle()


@pytest.fixture
async def desk():
    desk = Desk()
    yield desk
    await desk.requester.close()
    assert not desk.requester._pending


async def test_each_reply_finds_its_request(desk):
    tasks = [await desk.ask() for _ in range(3)]

    await desk.reply(*reversed(desk.sent))

    assert [task.result().id for task in tasks] == [f"re-{id}" for id in desk.sent]
    assert desk.opened == 1


async def test_requests_that_begin_together_open_one_inbox(desk):
    tasks = [asyncio.create_task(desk.requester.request("quote", desk.send, 5)) for _ in range(3)]
    await desk.clock.settle()
    await desk.reply(*desk.sent)

    assert all(task.done() for task in tasks)
    assert desk.opened == 1


async def test_replies_are_received_again_after_another_part_of_the_program_cancelled_that(desk):
    lost = await desk.ask()
    (task,) = (one for one in asyncio.all_tasks() if one.get_name() == "messaging-replies")
    task.cancel()
    await desk.clock.settle()

    asked = await desk.ask()
    await desk.reply(*desk.sent)

    assert lost.done()
    assert asked.done()


async def test_a_reply_that_came_while_the_program_stood_still_is_read_before_the_request_times_out(desk):
    answered, unanswered = await desk.ask(), await desk.ask()
    desk.clock._now = 40
    await desk.clock.settle()
    await desk.reply(desk.sent[0])

    assert answered.result().id == f"re-{desk.sent[0]}"
    await desk.clock.advance(CATCH_UP)
    with pytest.raises(RequestTimeout):
        unanswered.result()


async def test_a_reply_is_read_first_too_where_the_program_stood_still_for_hardly_longer_than_the_timeout(
    desk,
):
    answered, unanswered = await desk.ask(), await desk.ask()
    desk.clock._now = 5.05
    await desk.clock.settle()
    await desk.reply(desk.sent[0])

    assert answered.result().id == f"re-{desk.sent[0]}"
    await desk.clock.advance(0.5)
    with pytest.raises(RequestTimeout):
        unanswered.result()


async def test_a_request_without_a_reply_times_out_and_its_late_reply_is_counted(desk):
    task = await desk.ask()
    await desk.clock.advance(5)
    with pytest.raises(RequestTimeout, match="No reply from quote within 5 s$"):
        await task
    assert not desk.requester._pending

    await desk.reply(desk.sent[0], None, "forged")

    assert desk.requester.late == 3


async def test_a_timeout_before_the_request_was_confirmed_says_so(desk):
    async def send_for_ever(address, correlation_id):
        await asyncio.Event().wait()

    task = await desk.ask(send_for_ever)
    await desk.clock.advance(5)

    with pytest.raises(
        RequestTimeout, match="No reply from quote within 5 s: its topic was not declared, or"
    ):
        await task


async def test_the_second_reply_is_dropped_and_counted(desk):
    task = await desk.ask()
    await desk.reply(desk.sent[0], desk.sent[0])

    assert task.done()
    assert desk.requester.late == 1


async def test_what_send_raises_is_raised_and_nothing_is_left(desk):
    async def refuse(address, correlation_id):
        raise NoGroup("nobody answers")

    with pytest.raises(NoGroup):
        await (await desk.ask(refuse))
    assert not desk.requester._pending


async def test_a_timeout_error_of_the_library_passes_unchanged(desk):
    async def refuse(address, correlation_id):
        raise RequestTimeout("of another request")

    with pytest.raises(RequestTimeout, match="of another request"):
        await (await desk.ask(refuse))


async def test_a_cancelled_request_leaves_nothing_behind(desk):
    task = await desk.ask()
    task.cancel()
    await asyncio.wait((task,))

    assert not desk.requester._pending
    assert task.cancelled()


async def test_requests_in_flight_fail_at_once_when_the_replys_connection_is_lost(desk):
    tasks = [await desk.ask() for _ in range(2)]

    desk.inbox.items.put_nowait(ConnectionFailed("cut"))
    await desk.clock.settle()

    for task in tasks:
        with pytest.raises(ConnectionFailed, match="cut"):
            await task
    again = await desk.ask()
    await desk.clock.advance(1)
    await desk.reply()
    await desk.reply(desk.sent[-1])
    assert (await again).id == f"re-{desk.sent[-1]}"


async def test_nothing_is_asked_while_replies_cannot_be_received(desk):
    await desk.ask()
    desk.inbox.items.put_nowait(ConnectionFailed("cut"))
    await desk.clock.settle()
    asking = [await desk.ask() for _ in range(2)]
    assert len(desk.sent) == 1

    desk.inbox.address = "another"
    await desk.clock.advance(1)
    await desk.reply()
    assert len(desk.sent) == 3
    await desk.reply(*desk.sent)
    assert [(await one).id for one in asking] == [f"re-{id}" for id in desk.sent[1:]]


async def test_a_request_hastens_the_next_attempt_to_receive_replies_and_fails_with_it(desk):
    await desk.ask()
    for _ in range(20):
        desk.inbox.items.put_nowait(ConnectionFailed("cut"))
        await desk.clock.advance(10)
    await desk.clock.settle()
    for number in range(3):
        task = await desk.ask(within=60)
        desk.inbox.items.put_nowait(ConnectionFailed(f"still cut {number}"))
        await desk.clock.advance(0.2)
        with pytest.raises(ConnectionFailed, match=f"still cut {number}"):
            await task
    assert len(desk.sent) == 1


async def test_a_request_that_is_cancelled_while_replies_cannot_be_received_leaves_nothing(desk):
    await desk.ask()
    desk.inbox.items.put_nowait(ConnectionFailed("cut"))
    await desk.clock.settle()
    cancelled, late = await desk.ask(), await desk.ask(within=0.1)
    cancelled.cancel()
    await desk.clock.advance(0.1)
    with pytest.raises(RequestTimeout, match="nothing was sent, replies cannot be received: cut"):
        await late
    assert cancelled.cancelled()
    assert not desk.requester._returning


async def test_a_connection_lost_while_sending_is_told_when_the_sending_ends(desk):
    going, go = asyncio.Event(), asyncio.Event()

    async def slow(address, correlation_id):
        going.set()
        await go.wait()
        desk.clock.touch()

    task = await desk.ask(slow)
    desk.inbox.items.put_nowait(ConnectionFailed("cut"))
    await desk.clock.settle()
    go.set()

    with pytest.raises(ConnectionFailed, match="cut"):
        await task


@pytest.mark.parametrize("error", [AuthenticationFailed("no"), ValueError("a defect")])
async def test_an_inbox_that_is_gone_for_good_fails_all_requests_and_the_next(desk, error):
    task = await desk.ask()
    desk.inbox.items.put_nowait(error)
    await desk.clock.settle()

    with pytest.raises(type(error)):
        await task
    with pytest.raises(type(error)):
        await (await desk.ask())
    assert str(error) in str(desk.requester.failing)


async def test_an_inbox_that_is_gone_keeps_nothing_of_the_requests_that_fail_by_it(desk):
    await desk.ask()
    desk.inbox.items.put_nowait(AuthenticationFailed("no"))
    await desk.clock.settle()

    depths = []
    for _ in range(3):
        with pytest.raises(AuthenticationFailed) as raised:
            await (await desk.ask())
        depths.append(len(raised.traceback))

    assert len(set(depths)) == 1


@pytest.mark.parametrize("error", [ConnectionFailed("cut"), MessagingError("a refusal that nobody knows")])
async def test_an_error_that_is_not_known_to_be_fatal_fails_what_waits_and_no_later_request(desk, error):
    task = await desk.ask()
    desk.inbox.items.put_nowait(error)
    await desk.clock.settle()
    with pytest.raises(type(error)):
        await task
    assert str(error) in str(desk.requester.failing)

    await desk.clock.advance(1)
    desk.inbox.items.put_nowait([])
    await desk.clock.settle()
    assert desk.requester.failing is None
    again = await desk.ask()
    await desk.reply(desk.sent[-1])
    assert (await again).id == f"re-{desk.sent[-1]}"


async def test_closing_fails_what_waits_and_closes_the_inbox(desk):
    task = await desk.ask()

    await desk.requester.close()

    with pytest.raises(Closed):
        await task
    assert desk.inbox.closed == 1


async def test_a_close_that_is_cancelled_closes_the_inbox_all_the_same(desk):
    waiting = await desk.ask()
    closing = asyncio.create_task(desk.requester.close())
    await asyncio.sleep(0)

    closing.cancel()
    await asyncio.wait((closing, waiting))

    assert desk.inbox.closed == 1


def opening_slowly(desk):
    """Its inbox opens with this event."""
    opened = asyncio.Event()

    async def slow():
        await opened.wait()
        desk.clock.touch()
        return desk.inbox

    desk.adapter.on_inbox = slow
    return opened


async def test_closing_while_the_inbox_opens_leaves_no_inbox_behind():
    desk = Desk()
    opened = opening_slowly(desk)
    task = await desk.ask()
    await desk.requester.close()
    opened.set()

    with pytest.raises(Closed):
        await task
    assert desk.inbox.closed == 1
    assert desk.requester._task is None


async def test_requests_that_fail_because_the_bus_closed_while_the_inbox_opened_keep_nothing_of_each_other():
    desk = Desk()
    opened = opening_slowly(desk)
    tasks = [await desk.ask() for _ in range(3)]
    await desk.requester.close()
    opened.set()

    depths = []
    for task in tasks:
        with pytest.raises(Closed) as raised:
            await task
        depths.append(len(raised.traceback))
    assert len(set(depths)) == 1


async def test_an_inbox_that_cannot_be_opened_fails_the_request_alone(desk):
    async def refuse():
        raise ConnectionFailed("down")

    desk.adapter.on_inbox, opening = refuse, desk.adapter.on_inbox
    with pytest.raises(ConnectionFailed):
        await (await desk.ask())

    desk.adapter.on_inbox = opening
    task = await desk.ask()
    await desk.reply(*desk.sent)
    assert task.done()


# replies


def answer(outcome, codec=None, **values):
    return answering(codec or Codec(int), source="me", clock=VirtualClock())(raw("q", **values), outcome)


def test_what_a_responder_returns_is_the_reply_none_too():
    for codec, value in ((Codec(int), 3), (Codec(int | None), None)):
        outcome, reply = answer(Ack(Answer(value)), codec)
        assert outcome == Ack(Answer(value))
        assert reply is not None
        assert read_reply(codec, reply) == value
        assert (reply.correlation_id, reply.causation_id) == ("q", "q")


def test_a_dropped_request_has_no_reply_and_a_release_neither():
    assert answer(Ack()) == (Ack(), None)
    assert answer(Release(3)) == (Release(3), None)


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("outcome", "cause", "said"),
    [
        (Reject("no"), None, "messaging.message.Reject: no"),
        (Retry("bad"), ValueError("why"), "ValueError: why"),
        (Reject("no"), Unspeakable(), "Unspeakable: (its text cannot be read)"),
        (Ack(Answer("no number")), None, "messaging.errors.InvalidMessage: "),
    ],
)
def test_a_failure_is_answered_and_over_with_it(outcome, cause, said):
    if cause is not None:
        outcome.__cause__ = cause

    result, reply = answer(outcome)

    assert result == Ack()
    assert reply is not None
    assert reply.type == ERROR_TYPE
    with pytest.raises(RemoteError) as raised:
        read_reply(Codec(int), reply)
    assert said in str(raised.value)


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"\xff", b'{"type": "x"}', b"[" * 100_000])
def test_a_failure_that_cannot_be_read_is_a_remote_error_all_the_same(body):
    with pytest.raises(RemoteError) as raised:
        read_reply(Codec(int), message("re", body=body, type=ERROR_TYPE))
    assert raised.value.remote_type == "unknown"


def test_a_foreign_reply_is_a_decode_error():
    with pytest.raises(DecodeError):
        read_reply(Codec(int), message("re", body=b"{", content_type="application/json"))


async def test_the_time_of_a_request_runs_while_its_inbox_opens():
    clock = VirtualClock()
    sent = []

    def slow(adapter):
        open_inbox, publish = adapter.reply_inbox, adapter.publish

        async def opening():
            await sleep(clock, 3.0)
            return await open_inbox()

        async def publishing(messages):
            sent.extend(messages)
            return await publish(messages)

        adapter.reply_inbox, adapter.publish = opening, publishing
        return adapter

    async with Bus(Settings(url="memory://"), clock=clock, wrap=slow) as bus:
        endpoint = Endpoint("quotes", str, str)
        await bus.declare(endpoint, groups=["responders"])
        asked = clock.time()
        asking = asyncio.create_task(bus.request(endpoint, "q", timeout=10))
        await clock.advance(10)
        with pytest.raises(RequestTimeout):
            await asking
    assert [one.message.expires_at.timestamp() - asked for one in sent] == [10.0]
