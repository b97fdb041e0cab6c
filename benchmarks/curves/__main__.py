"""`python -m benchmarks.curves`: measure each point in a process of its own, and write docs/scaling.md with its plots.

The brokers' URLs come from the environment, as `python -m messaging_contracts run` sets them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path as File

from benchmarks.__main__ import url_of
from benchmarks.curves import report
from benchmarks.curves.curve import CURVES, MESSAGES, Curve
from benchmarks.curves.point import Point
from benchmarks.run import LONGEST_ROUND

LONGEST_POINT = 7 * LONGEST_ROUND
"""Seconds."""


def main() -> int:
    options = _parser().parse_args()
    start, found, broken = time.monotonic(), {}, False
    for curve in CURVES:
        if options.only.lower() not in curve.name:
            continue
        for broker in curve.brokers:
            url = url_of(broker)
            points = (
                []
                if not url
                else [_point(curve, broker, url, x, options.scale) for x in curve.points(broker)]
            )
            broken |= None in points
            found.setdefault(curve, {})[broker] = [point for point in points if point is not None]
    if options.output is not None:
        report.write(found, options.output, seconds=time.monotonic() - start)
    return 1 if broken else 0


def _point(curve: Curve, broker: str, url: str, x: int, scale: float) -> Point | None:
    messages = max(100, int(MESSAGES[broker] * scale))
    command = [sys.executable, "-m", "benchmarks.curves.point", curve.name, str(x), str(messages)]
    environment = {**os.environ, "MESSAGING_URL": url}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LONGEST_POINT, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{curve.name:10} {broker:10} {x:>9,} failed: {type(error).__name__}", flush=True)
        return None
    point = Point(**json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{curve.name:10} {broker:10} {x:>9,} {point.rate:12,.0f}/s {point.cost * 1e6:8.1f} us of the processor "
        f"{point.memory / 2**20:7.0f} MiB   duplicates {point.duplicates}",
        flush=True,
    )
    return point


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of messages (default 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="curves whose name holds this")
    parser.add_argument("--output", type=File, metavar="FILE", help="the page to write; plots go beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
