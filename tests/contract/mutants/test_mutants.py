"""The suite sees every promise that is broken: each mutant fails the cases that are named with it."""

import pytest

from tests.contract.mutants.mutant import MUTANTS
from tests.contract.mutants.runs import CASES, SLOW, Lab

NAMED = {name for mutant in MUTANTS for name in mutant.cases}
UNMUTATED = {"quick": sorted(NAMED - SLOW.keys()), "slow": sorted(SLOW)}
ON = {None: [], "redis": [pytest.mark.redis]}


@pytest.fixture(scope="module")
def runs(request, messaging_server):
    """Every run that is asked for, started at once."""
    lab = Lab()
    asked = {
        value
        for item in request.session.items
        if item.module is request.module and hasattr(item, "callspec")
        for value in item.callspec.params.values()
    }
    started = {
        mutant: lab.start(mutant.name, mutant.cases, mutant.broker and messaging_server(mutant.broker))
        for mutant in MUTANTS
        if mutant in asked
    }
    started |= {which: lab.start(None, names, None) for which, names in UNMUTATED.items() if which in asked}
    yield started
    lab.close()


@pytest.mark.parametrize(
    "mutant", [pytest.param(mutant, id=mutant.name, marks=ON[mutant.broker]) for mutant in MUTANTS]
)
def test_the_suite_catches(mutant, runs):
    failures = runs[mutant].result()
    survived = set(mutant.cases) - failures.keys()
    assert not survived, f"{mutant.name} survives {survived}"
    broken = [text for ours, text in failures.values() if ours]
    assert not broken, broken


@pytest.mark.parametrize("which", UNMUTATED)
def test_the_broker_itself_passes_the_same_cases(which, runs):
    assert runs[which].result() == {}


def test_mutants_have_names_of_their_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert SLOW.keys() <= NAMED


def test_every_case_fails_on_some_mutant():
    """A case that none can fail would assert nothing."""
    assert set(CASES) == NAMED
