"""`python -m benchmarks.guard`: what a message costs in parts of what it costs by hand, against `limits.json`.

Counted are instructions (valgrind's callgrind), between two numbers of messages, so that the start cancels out. The
work by hand does the same encoding and validation through a plain queue; the ratio to it is nearly the same on every
machine. Without valgrind, times of the processor stand in, and only the order of magnitude is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.guard.workload import REFERENCE, WORKLOADS, work

LIMITS = Path(__file__).with_name("limits.json")
FEW, MANY = 2_000, 6_000
LOST = 1.3
"""The factor that fails."""
LOST_BY_TIME = 2.0
"""The same where times stand in: they are noisy."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write what was found to {LIMITS.name}")
    options = parser.parse_args()
    by_instructions = shutil.which("valgrind") is not None
    if options.record and not by_instructions:
        parser.error("limits are recorded from instructions: valgrind is needed")
    cost = {name: _instructions(name) if by_instructions else _time(name) for name in WORKLOADS}
    ratios = {name: round(found / cost[REFERENCE], 2) for name, found in cost.items() if name != REFERENCE}
    if options.record:
        LIMITS.write_text(json.dumps(ratios, indent=2) + "\n")
    limits: dict[str, float] = json.loads(LIMITS.read_text())
    lost = LOST if by_instructions else LOST_BY_TIME
    failed = False
    for name, ratio in ratios.items():
        bad = ratio > lost * limits[name]
        failed = failed or bad
        print(
            f"{name:20} {cost[name]:12,.1f} {'instructions' if by_instructions else 'us'} a message, "
            f"{ratio:6.2f} x by hand, recorded {limits[name]:.2f}{'   LOST' if bad else ''}"
        )
    return int(failed)


def _instructions(name: str) -> float:
    """A message's, by callgrind."""
    few, many = (_counted(name, messages) for messages in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _counted(name: str, messages: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "benchmarks.guard.workload", name, str(messages)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{name} could not be counted:\n{done.stderr[-2000:]}")
    return int(found[1])


def _time(name: str) -> float:
    """A message's, in microseconds: the least of what several rounds took is nearest to what it needs."""
    work(name, FEW)
    return statistics.median(sorted(work(name, MANY) for _ in range(7))[:3]) / MANY * 1e6


if __name__ == "__main__":
    sys.exit(main())
