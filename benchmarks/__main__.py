"""`python -m benchmarks`: measure, print, and write docs/benchmarks.md, with its figures beside it.

The brokers' URLs come from the environment, as `python -m messaging_contracts run` sets them; a path whose broker is
not there is left out.
"""

# pyright: reportMissingImports=false
# What is compared with is installed by `make bench` only.
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
import warnings
from pathlib import Path as File
from typing import TYPE_CHECKING

import uvloop

from benchmarks import report
from benchmarks.measure import idle
from benchmarks.path import OURS
from benchmarks.paths import PATHS
from benchmarks.run import misses, ratio, run
from messaging import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.path import Path
    from benchmarks.run import Result

PAGE = File(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> int:
    options = _parser().parse_args()
    logging.disable(logging.CRITICAL)  # peers tell of every start and stop
    warnings.simplefilter("ignore")
    chosen = [path for path in PATHS if options.only.lower() in path.name.lower() and url_of(path.broker)]
    if not chosen:
        print("no path of that name has a broker here", file=sys.stderr)
        return 1
    start = time.monotonic()
    results: dict[Path, list[Result]] = {}
    for at, path in enumerate(chosen):
        # Each path gets its part of the time that is left.
        left = options.minutes * 60 - (time.monotonic() - start)
        found = run(
            path,
            url_of(path.broker),
            rounds=options.rounds,
            scale=options.scale,
            loop=asyncio.run if options.standard_loop else uvloop.run,
            until=time.monotonic() + left / (len(chosen) - at),
        )
        results[path] = found
        _show(path, found)
    rounds = min(len(one.rounds) for found in results.values() for one in found if not one.failure)
    seconds, brokers = time.monotonic() - start, asyncio.run(_versions(chosen))
    loop = "asyncio's own loop" if options.standard_loop else "uvloop"
    page = report.write(results, brokers=brokers, rounds=rounds, seconds=seconds, loop=loop)
    if options.output is not None:
        options.output.write_text(page)
        options.output.with_suffix(".json").write_text(
            report.figures(results, brokers=brokers, loop=loop, idle=idle())
        )
    missed = [line for path, found in results.items() for line in misses(path, found)]
    print("\nnot reached:" if missed else "\nall targets are reached", *missed, sep="\n  ")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="that are counted (default 9)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of messages (default 1)")
    parser.add_argument("--minutes", type=float, default=13.0, help="in all (default 13)")
    parser.add_argument("--only", default="", metavar="TEXT", help="paths whose name holds this")
    parser.add_argument("--standard-loop", action="store_true", help="asyncio's own loop instead of uvloop")
    parser.add_argument(
        "--output",
        type=File,
        metavar="FILE",
        help=f"the page to write, {PAGE.name}; its figures go beside it",
    )
    return parser


def url_of(broker: str) -> str:
    """Empty where it was not started."""
    return "memory://" if broker == "memory" else os.environ.get(f"MESSAGING_TEST_{broker.upper()}_URL", "")


def _show(path: Path, results: Sequence[Result]) -> None:
    print(f"{path.name}: {path.what}")
    for result in results:
        if result.failure:
            print(f"    {result.contender.name:34} failed: {result.failure}")
            continue
        figure = (
            f"p50 {result.latency(50) * 1000:7.2f} ms   p99 {result.latency(99) * 1000:7.2f} ms"
            if path.latency
            else f"{result.rate:12,.0f}/s"
        )
        compared = "" if result.contender.name == OURS else f"   ratio {ratio(path, results, result):6.2f}"
        print(
            f"    {result.contender.name:34}{figure}{compared}   duplicates {result.duplicates}", flush=True
        )


async def _versions(paths: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for broker in dict.fromkeys(path.broker for path in paths if path.broker != "memory"):
        async with connect(url_of(broker)) as bus:
            capabilities = bus.capabilities
            found[capabilities.broker] = capabilities.version
    return found


if __name__ == "__main__":
    sys.exit(main())
