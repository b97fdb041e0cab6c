"""The suite sees every promise that is broken: each mutant fails the cases that are named with it."""

import asyncio
import secrets
from dataclasses import replace

import pytest

from messaging_contracts.case import cases
from messaging_contracts.ledger import Patience
from messaging_contracts.runner import run
from messaging_contracts.targets import target_of
from tests.contract.mutants import consuming, handling, publishing  # noqa: F401  they register their mutants
from tests.contract.mutants.mutant import MUTANTS

CASES = {case.name: case for case in cases()}
NAMED = {name for mutant in MUTANTS for name in mutant.cases}
PATIENCE = 0.6
"""Seconds that a case waits here for what must come: a mutant may make it wait for ever."""
SLOW = {
    "a_delayed_retry_outlives_the_member_that_failed": 1.2,
    "a_delivery_whose_lease_has_ended_belongs_to_another": 2.0,
    "a_failing_key_does_not_stall_other_keys": 1.4,
    "a_member_that_joins_takes_part": 1.6,
    "a_message_that_kills_its_process_ends_as_a_dead_letter_alone": 1.2,
    "a_policy_says_how_long_to_wait": 1.2,
    "a_release_waits_as_long_as_it_says": 1.0,
    "a_retry_is_never_early_and_hardly_late": 1.8,
    "a_slow_handler_keeps_its_message": 3.2,
    "an_attempt_survives_the_member_that_failed": 1.6,
    "failing_messages_do_not_stall_the_others": 0.9,
    "members_of_a_group_share_its_messages": 1.0,
}
"""Cases that need longer, when all is well."""
OURS = (AttributeError, NameError, TypeError, ImportError, RecursionError)
"""A mutant that fails in one of these ways is broken itself."""


@pytest.fixture
def target():
    return target_of(f"memory://{secrets.token_hex(6)}")


async def failures_of(names, target, at_once):
    """What the cases raise on this broker, by name; nothing for one that passes."""
    gate, failures = asyncio.Semaphore(at_once), {}

    async def one(name):
        async with gate:
            try:
                await run(replace(CASES[name], limit=4.0), target)
            except Exception as error:
                failures[name] = error

    async with asyncio.TaskGroup() as running:
        for name in names:
            running.create_task(one(name))
    return failures


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_suite_catches(mutant, target, monkeypatch):
    monkeypatch.setattr(Patience, "seconds", max(SLOW.get(name, PATIENCE) for name in mutant.cases))
    with mutant.applied():
        failures = asyncio.run(failures_of(mutant.cases, target, at_once=8))
    survived = set(mutant.cases) - failures.keys()
    assert not survived, f"{mutant.name} survives {survived}"
    broken = [failure for failure in failures.values() if isinstance(failure, OURS)]
    assert not broken, broken


@pytest.mark.parametrize(("names", "patience"), [(NAMED - SLOW.keys(), PATIENCE), (SLOW, max(SLOW.values()))])
def test_the_broker_itself_passes_the_same_cases(names, patience, target, monkeypatch):
    monkeypatch.setattr(Patience, "seconds", patience)
    assert asyncio.run(failures_of(sorted(names), target, at_once=3)) == {}


def test_mutants_have_names_of_their_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert set(CASES) >= NAMED
    assert SLOW.keys() <= NAMED


def test_cases_without_a_mutant_are_told(capsys):
    without = [name for name in CASES if name not in NAMED]
    with capsys.disabled():
        print(f"\n{len(MUTANTS)} mutants; {len(without)} of {len(CASES)} cases without one of their own:")
        for name in without:
            print(f"  {name}")
    assert len(without) < len(CASES) // 10
