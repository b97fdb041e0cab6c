"""`faults`: break brokers, networks and members, and tell what was kept."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts.cli.output import show, silence

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `faults` to the commands."""
    command = commands.add_parser(
        "faults", help="break brokers, networks and members, and tell what was kept"
    )
    command.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="only this broker or this fault; several may be given. The table has what the journals have of the others",
    )
    command.add_argument(
        "--broker",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="try a broker of your own instead: a class below messaging_contracts.faults.Ground; several may be given",
    )
    command.add_argument("--whole", action="store_true", help="10 000 messages where the broker is restarted")
    command.add_argument(
        "--minutes", type=float, default=38.0, metavar="N", help="after which no fault is begun (default 38)"
    )
    command.add_argument(
        "--journals",
        type=Path,
        metavar="FOLDER",
        help="where what everybody wrote down is kept (default: a new folder, which is told)",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the Markdown file to write the table to"
    )
    command.set_defaults(run=_faults)


def _faults(options: Namespace) -> int:
    from messaging_contracts.faults.grounds import ours, theirs
    from messaging_contracts.faults.report import page
    from messaging_contracts.faults.run import Run, kept

    silence()
    folder = options.journals or Path(tempfile.mkdtemp(prefix="faults-"))
    wanted = [name for given in options.only for name in given.split(",")]
    grounds = [theirs(name) for name in options.broker] or ours()
    began = time.monotonic()
    rows = Run(wanted, options.whole, folder, show, options.minutes * 60, grounds).all()
    held = sum(row.held for row in rows)
    show(
        f"{held} of {len(rows)} held in {(time.monotonic() - began) / 60:.1f} min; their histories are in {folder}"
    )
    if options.output is not None:
        options.output.write_text(page(kept(folder, grounds)), encoding="utf-8")
    return 0 if held == len(rows) else 1
