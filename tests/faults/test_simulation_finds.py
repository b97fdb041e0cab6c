"""The simulation finds a fault that is planted in the library: one of each kind that it is there for."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

from messaging import Ack, DeadLetters, PublishError, Receipt, requests, subscription, workers
from messaging.adapter import DONE
from messaging.dispatch import Dispatcher
from messaging.middleware import idempotency, retry
from messaging.publish import Publisher
from messaging.pull import Pull
from messaging.requests import Requester
from messaging.sending import Sender
from messaging.waiting import Waiter
from messaging_contracts.simulation import Result, simulate
from messaging_contracts.simulation.scenario import scenario
from messaging_memory.group import Group
from messaging_memory.log import TopicLog
from messaging_memory.ownership import OwnedGroup
from messaging_memory.shared import SharedGroup
from messaging_memory.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

SEEDS = 60


def found(kind: str) -> bool:
    """Whether one of the first histories shows a violation of this kind."""
    return any(kind in simulate(seed).verdict.violations for seed in range(SEEDS))


def asking(most: int = 20) -> Iterator[Result]:
    """The first histories with requests."""
    seeds = (seed for seed in count() if scenario(seed).requests is not None)
    return map(simulate, islice(seeds, most))


def operated(most: int = 30) -> Iterator[Result]:
    """The first histories with an operator."""
    seeds = (seed for seed in count() if scenario(seed).operated)
    return map(simulate, islice(seeds, most))


def in_bulk(*, apart: bool = False, most: int = 40) -> Iterator[Result]:
    """The first histories with calls of `publish_many`; `apart`: on an ordered topic, that wait behind each other."""
    drawn = ((seed, scenario(seed)) for seed in count())
    seeds = (
        seed
        for seed, made in drawn
        if made.bulks is not None
        and (not apart or (made.ordered and made.bulks.apart and made.bulks.at_once > 1))
    )
    return map(simulate, islice(seeds, most))


def test_a_call_of_many_that_goes_past_what_failed_before_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Publisher, "_fail_successors", lambda *_: None)
    assert any("overtook_failed" in result.verdict.violations for result in in_bulk(apart=True))


def test_results_of_many_that_are_those_of_others(monkeypatch: pytest.MonkeyPatch):
    send = Sender.send

    async def confused(self, *call):
        return (await send(self, *call))[::-1]

    monkeypatch.setattr(Sender, "send", confused)
    assert any(result.problems for result in in_bulk())


def test_a_call_of_many_that_tells_what_failed_as_published(monkeypatch: pytest.MonkeyPatch):
    send = Sender.send

    async def hopeful(self, topic, payloads, *call):
        payloads = list(payloads)
        results = await send(self, topic, payloads, *call)
        if len(payloads) == 1:
            return results
        return [
            Receipt(payload[-1]) if isinstance(result, PublishError) else result
            for payload, result in zip(payloads, results, strict=True)
        ]

    monkeypatch.setattr(Sender, "send", hopeful)
    assert any("lost" in result.verdict.violations for result in in_bulk())


def test_a_call_of_many_that_does_not_end_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Publisher, "_give_up", lambda *_: None)
    assert any("took" in problem for result in in_bulk() for problem in result.problems)


def expiring(most: int = 40) -> Iterator[Result]:
    """The first histories with messages that expire, where nothing else looks at the time."""
    drawn = ((seed, scenario(seed)) for seed in count())
    seeds = (seed for seed, made in drawn if made.expiring and not (made.requests or made.idempotent))
    return map(simulate, islice(seeds, most))


def test_a_message_that_is_handled_after_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscription, "expiring", lambda *_, **__: lambda handler: handler)
    assert any("handled_expired" in result.verdict.violations for result in expiring())


def test_a_message_that_is_dropped_although_it_has_time_left(monkeypatch: pytest.MonkeyPatch):
    async def drop(_):
        return Ack()

    def hasty(*_, **__):
        return lambda handler: lambda one: drop(one) if one.message.expires_at else handler(one)

    monkeypatch.setattr(subscription, "expiring", hasty)
    assert any("lost" in result.verdict.violations for result in expiring())


def test_a_redriven_message_that_is_lost(monkeypatch: pytest.MonkeyPatch):
    def forget(*_):
        """Keep nothing."""

    for kind in (SharedGroup, OwnedGroup):
        monkeypatch.setattr(kind, "redrive", forget)
    assert any("lost" in result.verdict.violations for result in operated())


def test_a_redrive_that_is_told_and_was_refused(monkeypatch: pytest.MonkeyPatch):
    redrive = DeadLetters._redrive

    async def hopeful(self, page, messages):
        await redrive(self, page, messages)
        return [Receipt(message.id) for message in messages]

    monkeypatch.setattr(DeadLetters, "_redrive", hopeful)
    assert any(result.problems for result in operated())


def test_an_idempotent_publish_that_is_stored_again(monkeypatch: pytest.MonkeyPatch):
    def forget(*_):
        """Keep nothing."""

    monkeypatch.setattr(TopicLog, "remember", forget)
    seeds = islice((seed for seed in count() if scenario(seed).once), 30)
    assert any("duplicates_without_cause" in simulate(seed).verdict.violations for seed in seeds)


def test_a_message_that_is_handled_before_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "judge_early", lambda *_: None)
    assert found("before_due")


def test_a_delayed_message_that_is_taken_for_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "judge_early", lambda *_: Ack())
    assert found("lost")


def test_a_success_that_is_not_stored_as_done(monkeypatch: pytest.MonkeyPatch):
    async def complete(*_):
        """Tell nobody."""

    monkeypatch.setattr(idempotency._Entry, "complete", complete)
    assert found("handled_twice")


def test_a_store_that_gives_a_key_to_whoever_asks(monkeypatch: pytest.MonkeyPatch):
    begin = MemoryStore.begin

    async def generous(self, key, *, digest, lease, token):
        return await begin(self, key, digest=digest, lease=0.0, token=token)

    monkeypatch.setattr(MemoryStore, "begin", generous)
    seeds = (seed for seed in count() if scenario(seed).idempotent)
    assert any("keys_given_up" in simulate(seed).verdict.violations for seed in islice(seeds, 120))


def test_a_key_whose_lease_is_not_extended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idempotency._Entry, "_start_beating", lambda _: None)
    seeds = (seed for seed in count() if scenario(seed).idempotent and scenario(seed).key_lease == 1)
    assert any("keys_given_up" in simulate(seed).verdict.violations for seed in islice(seeds, 40))


def test_a_key_that_is_to_be_held_and_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscription, "retrying", lambda policy, **_: retry.retrying(policy))
    held = (seed for seed in range(10 * SEEDS) if scenario(seed).hold_key)
    assert any(simulate(seed).problems for seed in held)


def test_a_publish_that_goes_past_one_whose_time_was_over_before_their_topic_was_declared(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Waiter, "fail_behind", lambda *_: None)
    drawn = ((seed, scenario(seed)) for seed in range(10 * SEEDS))
    hasty = (seed for seed, made in drawn if made.ordered and made.burst and made.impatience)
    assert any("overtook_failed" in simulate(seed).verdict.violations for seed in hasty)


def test_consuming_by_hand_that_says_settled_what_it_has_lost(monkeypatch: pytest.MonkeyPatch):
    tell = Pull._tell
    monkeypatch.setattr(Pull, "_tell", lambda self, entry, _: tell(self, entry, DONE))
    assert found("settled_again")


def test_a_lease_that_ends_although_nothing_is_broken(monkeypatch: pytest.MonkeyPatch):
    extend = Group.extend
    calls = count(1)

    def forgetful(self, member, deliveries, seconds):
        if next(calls) % 7 == 0:
            self.lapse(member)
        return extend(self, member, deliveries, seconds)

    monkeypatch.setattr(Group, "extend", forgetful)
    assert found("duplicates_without_cause")


def test_a_member_that_leaves_and_gives_its_handlers_no_time(monkeypatch: pytest.MonkeyPatch):
    async def drain(self, receiver):
        self._draining = True
        self._workers.stop()
        receiver.cancel()
        self._withdraw(lambda _: True)
        for delivery in list(self._workers.running):
            self._workers.interrupt(delivery)
        await self._until(lambda: not self._lanes.started, self._clock.monotonic() + 5)

    monkeypatch.setattr(Dispatcher, "_drain", drain)
    drawn = ((seed, scenario(seed)) for seed in range(5 * SEEDS))
    leaving = (seed for seed, one in drawn if one.grace and "leave" in one.upheavals and not one.pulling)
    assert any("duplicates_without_cause" in simulate(seed).verdict.violations for seed in leaving)


def test_a_reply_that_goes_to_another_request(monkeypatch: pytest.MonkeyPatch):
    def mixed(self, reply):
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_result(reply)
                return

    monkeypatch.setattr(Requester, "_take_in", mixed)
    assert any(result.requests.foreign_replies for result in asking())


def test_a_request_that_ends_after_its_time(monkeypatch: pytest.MonkeyPatch):
    timeout = requests.timeout
    monkeypatch.setattr(
        requests, "timeout", lambda clock, within, **more: timeout(clock, within + 1.0, **more)
    )
    assert any(result.requests.unanswered for result in asking())


def test_a_request_that_waits_although_its_reply_cannot_come_any_more(monkeypatch: pytest.MonkeyPatch):
    def wait_on(self, error):
        """Tell nobody."""

    monkeypatch.setattr(Requester, "_fail", wait_on)
    assert any("wait although" in text for result in asking() for text in result.problems)


def test_a_late_reply_that_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    take_in = Requester._take_in

    def forget(self, reply):
        take_in(self, reply)
        self.late = 0

    monkeypatch.setattr(Requester, "_take_in", forget)
    assert any("counted as late" in text for result in asking() for text in result.problems)


def test_a_request_that_is_handled_when_it_has_expired(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscription, "expiring", lambda *_, **__: lambda handler: handler)
    assert any("which expired" in text for result in asking() for text in result.problems)


def test_a_responder_that_runs_again_after_it_failed(monkeypatch: pytest.MonkeyPatch):
    policy = subscription.RetryPolicy
    monkeypatch.setattr(subscription, "RetryPolicy", lambda attempts: policy(attempts + 1))
    monkeypatch.setattr(subscription, "answering", lambda *_, **__: lambda _, outcome: (outcome, None))
    assert any("with attempt 2" in text for result in asking() for text in result.problems)
