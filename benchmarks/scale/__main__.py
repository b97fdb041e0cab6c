"""`python -m benchmarks.scale`: write docs/scale.md from the figures that `make bench` has kept. Starts no broker."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path as File

from benchmarks.scale import report
from benchmarks.scale.assumptions import Assumptions
from benchmarks.scale.model import PATHS, measured

DOCS = File(__file__).parents[2] / "docs"


def main() -> int:
    options = _parser().parse_args()
    if not options.figures.exists():
        print(f"{options.figures} is not there: run `make bench` first", file=sys.stderr)
        return 1
    figures = json.loads(options.figures.read_text())
    known = measured(figures["paths"], figures["idle"] or 0.0)
    if missing := [broker for broker in PATHS if broker not in known]:
        print(f"left out, as not measured on a quiet machine: {', '.join(missing)}", file=sys.stderr)
    if not known:
        return 1
    options.output.write_text(report.write(figures, Assumptions()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--figures",
        type=File,
        metavar="FILE",
        default=DOCS / "benchmarks.json",
        help="what `make bench` has kept",
    )
    parser.add_argument(
        "--output", type=File, metavar="FILE", default=DOCS / "scale.md", help="the page to write"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
