"""`python -m benchmarks.guard`: what a message costs in parts of what it costs by hand, against `limits.json`.

Counted are instructions (valgrind's callgrind), between two numbers of messages, so that the start cancels out; one
process does all of the work, which takes half a minute. The work by hand does the same encoding and validation through
a plain queue; the ratio to it is nearly the same on every machine. Without valgrind, times of the processor stand in,
and only the order of magnitude is judged.
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
import tempfile
from pathlib import Path

from benchmarks.guard.workload import REFERENCE, WORKLOADS, work

LIMITS = Path(__file__).with_name("limits.json")
FEW, MANY = 200, 1_200
FEW_BY_TIME, MANY_BY_TIME = 2_000, 6_000
MARK = "Py_SetRecursionLimit"
"""The C function whose calls separate the pieces of work."""
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
    cost = _instructions() if by_instructions else {name: _time(name) for name in WORKLOADS}
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


def _instructions() -> dict[str, float]:
    """A message's, by callgrind, for each piece of work."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--dump-before={MARK}"]
        command += [f"--callgrind-out-file={folder}/counts"]
        command += [sys.executable, "-m", "benchmarks.guard.workload", str(FEW), str(MANY)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        # The first count ends where the first piece begins; the last is what follows the last mark.
        files = sorted(Path(folder).glob("counts.*"), key=lambda file: int(file.suffix[1:]))
        counts = [_total(file) for file in files][1:]
    if done.returncode or len(counts) < 2 * len(WORKLOADS):
        raise RuntimeError(f"nothing could be counted ({len(counts)} counts):\n{done.stderr[-2000:]}")
    few, many = counts[0 : 2 * len(WORKLOADS) : 2], counts[1 : 2 * len(WORKLOADS) : 2]
    return {name: (more - less) / (MANY - FEW) for name, less, more in zip(WORKLOADS, few, many, strict=True)}


def _total(file: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", file.read_text(errors="replace"), re.MULTILINE)
    return 0 if found is None else int(found[1])


def _time(name: str) -> float:
    """A message's, in microseconds: the least of what several rounds took is nearest to what it needs."""
    work(name, FEW_BY_TIME)
    return statistics.median(sorted(work(name, MANY_BY_TIME) for _ in range(7))[:3]) / MANY_BY_TIME * 1e6


if __name__ == "__main__":
    sys.exit(main())
