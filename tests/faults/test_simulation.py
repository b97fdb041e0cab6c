"""The portable layer keeps its promises in random histories, and a failing one can be replayed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from messaging_contracts.cli import main
from messaging_contracts.faults import Begun, Redriven, Struck
from messaging_contracts.simulation import simulate
from messaging_contracts.simulation import world as module
from messaging_contracts.simulation.report import many, told

SEEDS = 300
BLOCK = 50
DIGESTS = """
import sys
from messaging_contracts.simulation import simulate
print(*(simulate(seed).digest for seed in range(int(sys.argv[1]))))
"""


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_promises_are_kept_in_random_histories(first: int):
    failed = [result for seed in range(first, first + BLOCK) if not (result := simulate(seed)).held]
    assert not failed, "\n".join(map(told, failed))


def test_the_histories_have_what_they_are_to_prove_something_about():
    results = [simulate(seed) for seed in range(60)]
    assert sum(result.verdict.messages for result in results) > 1000
    assert sum(result.verdict.duplicates for result in results) > 10
    assert sum(result.verdict.dead_letters for result in results) > 10
    kinds = {event.kind for result in results for event in result.events if isinstance(event, Struck)}
    assert {"crash", "the lease ended before they were settled"} <= kinds
    redriven = [event for result in results for event in result.events if isinstance(event, Redriven)]
    assert any(event.fate == "confirmed" for event in redriven)
    assert any(result.scenario.once for result in results)
    assert any(result.scenario.bulks for result in results)
    assert any(result.verdict.expired for result in results)
    assert any(event.attempt > 1 for result in results for event in result.events if isinstance(event, Begun))


def test_a_seed_gives_the_same_history_in_every_process():
    here = [simulate(seed).digest for seed in range(10)]
    for hashes in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", DIGESTS, "10"],
            env={"PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split() == here


def test_seeds_differ():
    assert len({simulate(seed).digest for seed in range(10)}) == 10


def test_the_command_tells_figures_and_replays_one_seed(capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "--number", "3"]) == 0
    assert "3 histories" in capsys.readouterr().out
    assert main(["simulate", "--seed", "1"]) == 0
    assert '"event": "begun"' in capsys.readouterr().out


def test_processes_share_the_seeds(capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "--number", "3", "--first", "5"]) == 0
    alone = capsys.readouterr().out.partition(";")[0]
    assert main(["simulate", "--number", "3", "--first", "5", "--processes", "2"]) == 0
    assert capsys.readouterr().out.partition(";")[0] == alone


def test_a_failure_is_told_with_the_way_to_replay_it(monkeypatch: pytest.MonkeyPatch):
    ended = module.World._end

    async def broken(self, observer):
        self.problem("something is wrong")
        await ended(self, observer)

    monkeypatch.setattr(module.World, "_end", broken)
    said: list[str] = []
    assert many(7, 1, None, said.append) == 1
    assert "something is wrong" in said[0]
    assert said[-1] == "replay: python -m messaging_contracts simulate --seed 7"
