"""The simulation finds a fault that is planted in the library: one of each kind that it is there for."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from messaging import Ack, subscription, workers
from messaging.adapter import DONE
from messaging.middleware import idempotency, retry
from messaging.pull import Pull
from messaging_contracts.simulation import simulate
from messaging_contracts.simulation.scenario import scenario
from messaging_memory.group import Group
from messaging_memory.store import MemoryStore

if TYPE_CHECKING:
    import pytest

SEEDS = 60


def found(kind: str) -> bool:
    """Whether one of the first histories shows a violation of this kind."""
    return any(kind in simulate(seed).verdict.violations for seed in range(SEEDS))


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

    async def generous(self, key, *, digest, lease):
        return await begin(self, key, digest=digest, lease=0.0)

    monkeypatch.setattr(MemoryStore, "begin", generous)
    assert found("keys_given_up")


def test_a_key_that_is_to_be_held_and_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subscription, "retrying", lambda policy, **_: retry.retrying(policy))
    held = (seed for seed in range(10 * SEEDS) if scenario(seed).hold_key)
    assert any(simulate(seed).problems for seed in held)


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
