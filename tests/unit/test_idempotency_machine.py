"""Two members, one store: whatever freezes, fails and comes late, the fencing token decides (23)."""

import asyncio
import logging
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from messaging.errors import ConnectionFailed
from messaging.message import Ack, Delivery, Message, Reject, Release, Retry
from messaging.middleware import idempotent
from messaging.store import Begun, Completed, IdempotencyStore, InProgress
from messaging.testing import VirtualClock
from messaging_memory.store import MemoryStore

# Two seconds of the processor in one test: a busy machine may take minutes to give them.
pytestmark = pytest.mark.timeout(600)

LEASE = 30.0
TTL = 300.0
KEYS = ("m1", "m2")
OUTCOMES = ("ack", "retry", "reject", "release", "raise")


@dataclass
class Key:
    """What a correct store knows of one key."""

    fence: int = 0
    token: str = ""
    until: float = 0.0
    state: str = "absent"
    result: bytes | None = None
    last_fence: int = 0


class Watched(IdempotencyStore):
    """One member's way to the store: nothing passes while the member is frozen, and every answer is checked.

    So many answers to `begin` as `losing` says are lost. What is wrong is written down: the middleware takes an
    exception for a store that is away.
    """

    shared = False

    def __init__(self, store, clock, model):
        self.store = store
        self.clock = clock
        self.model: dict[str, Key] = model
        self.wrong: list[str] = []
        self.losing = 0
        self.lost: list[tuple[str, dict[str, Any]]] = []
        self.thawed = asyncio.Event()
        self.thawed.set()

    @classmethod
    def from_url(cls, url, *, clock):
        raise NotImplementedError

    async def open(self): ...

    async def close(self): ...

    async def passing(self, name):
        while not self.thawed.is_set():
            await self.thawed.wait()
        self.clock.touch()
        key, now = self.model[name.rpartition(":")[2]], self.clock.monotonic()
        if key.state == "done" and key.until <= now:
            key.state = "absent"
        return key, now

    def check(self, right, what):
        if not right:
            self.wrong.append(what)

    async def begin(self, key, **values):
        begun = await self.begin_unseen(key, **values)
        if self.losing:
            self.losing -= 1
            self.lost.append((key, values))
            raise ConnectionFailed("the answer was lost")
        return begun

    async def begin_unseen(self, key, *, digest, lease, token):
        known, now = await self.passing(key)
        begun = await self.store.begin(key, digest=digest, lease=lease, token=token)
        if known.state == "progress" and known.token == token:
            self.check(begun == Begun(known.fence), f"begun {begun} where the same asks again")
            known.until = now + lease
        elif known.state == "done":
            self.check(begun == Completed(known.result), f"begun {begun} where it is done")
        elif known.state == "progress" and known.until > now:
            self.check(begun == InProgress(known.until - now), f"begun {begun} while it is in progress")
        elif not isinstance(begun, Begun):
            self.check(False, f"not begun, but {begun}")
        else:
            self.check(begun.fence > known.last_fence, f"fence {begun.fence} after {known.last_fence}")
            known.fence = known.last_fence = begun.fence
            known.state, known.until, known.token = "progress", now + lease, token
        return begun

    async def extend(self, key, fence, *, lease):
        known, now = await self.passing(key)
        extended = await self.store.extend(key, fence, lease=lease)
        self.check(extended == (known.state == "progress" and known.fence == fence), "extended")
        if extended:
            known.until = now + lease
        return extended

    async def complete(self, key, fence, *, result, ttl):
        known, now = await self.passing(key)
        completed = await self.store.complete(key, fence, result=result, ttl=ttl)
        self.check(completed == (known.state == "progress" and known.fence == fence), "completed")
        if completed:
            known.state, known.until, known.result = "done", now + ttl, result
        return completed

    async def clear(self, key, fence):
        known, _ = await self.passing(key)
        await self.store.clear(key, fence)
        if known.state == "progress" and known.fence == fence:
            known.state = "absent"


@dataclass(eq=False)
class Member:
    name: str
    store: Watched
    handle: Any = None
    freezes: int = 0
    unanswered: dict[str, str] = field(default_factory=dict[str, str])
    """By key, the token of its last question if that was never answered."""

    @property
    def frozen(self):
        return not self.store.thawed.is_set()


@dataclass(eq=False)
class Running:
    """A handler that has begun."""

    member: Member
    key: str
    gate: asyncio.Future[Any]
    freezes: int = field(default=0)


class Idempotency(RuleBasedStateMachine):
    store_class: type[MemoryStore] = MemoryStore

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.store = self.store_class("", clock=self.clock)
        self.model = {key: Key() for key in KEYS}
        self.running: list[Running] = []
        self.calls = []
        self.number = 0
        self.members = [self.member(name) for name in ("first", "second")]

    def run(self, call):
        return self.loop.run_until_complete(call)

    def member(self, name):
        member = Member(name, Watched(self.store, self.clock, self.model))
        member.handle = idempotent(
            member.store,
            scope="test",
            lease=LEASE,
            ttl=TTL,
            clock=self.clock,
            owner=name,
            encode_reply=str.encode,
            decode_reply=bytes.decode,
        )(lambda delivery: self.handler(member, delivery))
        return member

    async def handler(self, member, delivery):
        key = delivery.message.id
        assert self.model[key].state == "progress"
        running = Running(member, key, self.loop.create_future(), member.freezes)
        self.running.append(running)
        try:
            return await running.gate
        finally:
            self.running.remove(running)

    def pick(self, data, those):
        return data.draw(st.sampled_from(those))

    @property
    def awake(self):
        return [member for member in self.members if not member.frozen]

    @property
    def endable(self):
        return [one for one in self.running if not one.member.frozen and not one.gate.done()]

    @precondition(lambda self: self.awake)
    @rule(data=st.data(), key=st.sampled_from(KEYS), lost=st.sampled_from([0, 0, 0, 1, 2]))
    def deliver(self, data, key, lost=0):
        """A copy comes to a member that is awake: it runs, waits for another, or gets the stored reply.

        It asks twice where the first answer is lost, and the next copy of this member asks as it did.
        """
        member, known = self.pick(data, self.awake), self.model[key]
        before, now = len(self.running), self.clock.monotonic()
        token = member.unanswered.pop(key, None)
        of_another = known.state == "progress" and known.until > now and known.token != token
        member.store.losing = lost

        async def call():
            body = key.encode()
            task = asyncio.create_task(
                member.handle(Delivery(None, Message(id=key, topic="orders", body=body)))
            )
            await self.clock.settle()
            return task

        task = self.run(call())
        if task.done():
            assert len(self.running) == before
            outcome = task.result()
            if lost == 2:
                assert outcome == Release(after=1.0)
                member.unanswered[key] = member.store.lost[-1][1]["token"]
            elif known.state == "done":
                assert outcome == Ack(None if known.result is None else known.result.decode())
            else:
                assert of_another
                assert isinstance(outcome, Release)
                assert outcome.after == pytest.approx(known.until - self.clock.monotonic())
        else:
            assert len(self.running) == before + 1
            self.calls.append(task)

    @precondition(lambda self: any(member.store.lost for member in self.awake))
    @rule(data=st.data())
    def arrive_late(self, data):
        """A question whose answer nobody waits for any more comes to the store once more."""
        member = self.pick(data, [member for member in self.awake if member.store.lost])
        key, values = member.store.lost.pop()
        self.run(member.store.begin_unseen(key, **values))

    @precondition(lambda self: self.endable)
    @rule(data=st.data(), how=st.sampled_from(OUTCOMES), freezing=st.booleans())
    def end(self, data, how, freezing):
        """A handler ends; with `freezing`, its member stands still before the store hears of it."""
        one = self.pick(data, self.endable)
        self.number += 1
        if freezing:
            self.freeze_member(one.member)
        if how == "raise":
            one.gate.set_exception(KeyError("the handler's"))
        else:
            outcomes = {"ack": Ack(f"reply {self.number}"), "retry": Retry(), "reject": Reject()}
            one.gate.set_result(outcomes.get(how, Release()))
        self.run(self.clock.settle())

    @precondition(lambda self: self.endable)
    @rule(data=st.data())
    def cancel(self, data):
        one = self.pick(data, self.endable)
        one.gate.cancel()
        self.run(self.clock.settle())

    def freeze_member(self, member):
        member.freezes += 1
        member.store.thawed.clear()

    @precondition(lambda self: self.awake)
    @rule(data=st.data())
    def freeze(self, data):
        self.freeze_member(self.pick(data, self.awake))

    @precondition(lambda self: len(self.awake) < len(self.members))
    @rule(data=st.data())
    def thaw(self, data):
        member = self.pick(data, [member for member in self.members if member.frozen])
        member.store.thawed.set()
        self.run(self.clock.settle())

    @rule(seconds=st.sampled_from([1, LEASE / 2, LEASE + 1, TTL + 1]))
    def pass_time(self, seconds):
        self.run(self.clock.advance(seconds))

    @invariant()
    def only_a_member_that_stood_still_overlaps_with_another(self):
        for key in KEYS:
            handlers = [one for one in self.running if one.key == key]
            for former in handlers[:-1]:
                assert former.member.freezes > former.freezes or former.member.frozen

    @invariant()
    def nothing_went_wrong_on_the_way(self):
        assert [member.store.wrong for member in self.members] == [[], []]
        for task in [task for task in self.calls if task.done()]:
            self.calls.remove(task)
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), KeyError), task.exception()

    def teardown(self):
        for member in self.members:
            member.store.thawed.set()
        for one in self.running:
            if not one.gate.done():
                one.gate.set_result(Ack())
        try:
            self.run(self.clock.advance(2 * LEASE))
            assert not self.running
            assert all(task.done() for task in self.calls)
            assert self.clock._next_due() is None
            self.nothing_went_wrong_on_the_way()
        finally:
            self.loop.close()


Idempotency.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestIdempotency = Idempotency.TestCase


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, "messaging")


class Unfenced(MemoryStore):
    """A former owner completes what another has taken over."""

    def _own(self, key, fence):
        return self._table.states.get(key)


class Forgetful(MemoryStore):
    """What is done can begin again."""

    async def begin(self, key, **values):
        state = self._table.states.get(key)
        if state is not None and state.done:
            del self._table.states[key]
        return await super().begin(key, **values)


class Strange(MemoryStore):
    """Who asks again is not known."""

    async def begin(self, key, *, token="", **values):
        return await super().begin(key, **values)


class Trusting(MemoryStore):
    """Whoever asks is taken for the owner."""

    async def begin(self, key, *, token="", **values):
        return await super().begin(key, token="anybody", **values)


class Renumbering(MemoryStore):
    """A question that comes late overtakes the handler that began with its second asking."""

    async def begin(self, key, *, token="", **values):
        state = self._table.states.get(key)
        if state is not None and not state.done and state.token == token:
            del self._table.states[key]
        return await super().begin(key, token=token, **values)


class Impatient(MemoryStore):
    """A lease that is extended ends all the same."""

    async def extend(self, key, fence, *, lease):
        return self._own(key, fence) is not None


class Repeating(MemoryStore):
    """A key that was cleared sees an old fence again."""

    async def clear(self, key, fence):
        await super().clear(key, fence)
        self._table.fences = count(1)


class Stubborn(MemoryStore):
    """A failure does not clear the key."""

    async def clear(self, key, fence):
        return


def a_frozen_owner_ends_late(machine):
    machine.deliver(0, "m1")
    machine.freeze(0)
    machine.pass_time(LEASE + 1)
    machine.deliver(0, "m1")
    machine.thaw(0)
    machine.end(0, "ack", freezing=False)


def the_same_comes_twice(machine):
    machine.deliver(0, "m1")
    machine.end(0, "ack", freezing=False)
    machine.deliver(1, "m1")


def the_same_comes_after_a_failure(machine):
    machine.deliver(0, "m1")
    machine.end(0, "retry", freezing=False)
    machine.deliver(1, "m1")


def a_copy_comes_after_a_lease(machine):
    machine.deliver(0, "m1")
    machine.pass_time(LEASE / 2)
    machine.pass_time(LEASE / 2)
    machine.deliver(1, "m1")


def the_answer_is_lost(machine):
    machine.deliver(0, "m1", lost=1)


def the_answers_are_lost_until_it_comes_again(machine):
    machine.deliver(0, "m1", lost=2)
    machine.pass_time(1)
    machine.deliver(0, "m1")


def another_asks_whose_answer_was_lost(machine):
    machine.deliver(0, "m1", lost=2)
    machine.deliver(1, "m1")


def a_lost_question_comes_late(machine):
    machine.deliver(0, "m1", lost=1)
    machine.arrive_late(0)
    machine.end(0, "ack", freezing=False)
    machine.deliver(1, "m1")


@pytest.mark.parametrize(
    ("store", "history"),
    [
        (Strange, the_answer_is_lost),
        (Strange, the_answers_are_lost_until_it_comes_again),
        (Trusting, another_asks_whose_answer_was_lost),
        (Renumbering, a_lost_question_comes_late),
        (Unfenced, a_frozen_owner_ends_late),
        (Forgetful, the_same_comes_twice),
        (Repeating, the_same_comes_after_a_failure),
        (Stubborn, the_same_comes_after_a_failure),
        (Impatient, a_copy_comes_after_a_lease),
    ],
)
def test_a_store_that_breaks_a_promise_is_seen(store, history):
    """The machine itself is tested: what a random history may find, this one must."""

    class Chosen(Idempotency):
        store_class = MemoryStore

        def pick(self, data, those):
            return those[data]

    class Broken(Chosen):
        store_class = store

    machine = Chosen()
    history(machine)
    machine.teardown()
    machine = Broken()
    with pytest.raises(AssertionError):
        history(machine)
        machine.nothing_went_wrong_on_the_way()
    for task in asyncio.all_tasks(machine.loop):
        task.cancel()
    machine.run(machine.clock.settle())
    machine.loop.close()
