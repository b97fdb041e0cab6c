"""`soak`: minutes of load with faults, in which what processes take must not grow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts.cli.output import show, silence

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )

SOAKED = ("redis", "rabbitmq", "kafka", "sqs")
"""The brokers of `soak`: in memory, the checker's own growth would be measured."""


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `soak` to the commands."""
    command = commands.add_parser(
        "soak", help="minutes of load with faults: what processes take must not grow"
    )
    command.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long (default 10)")
    command.add_argument(
        "--only",
        action="append",
        default=[],
        choices=SOAKED,
        metavar="BROKER",
        help="on this one (default: all)",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the Markdown file to write the figures to"
    )
    command.set_defaults(run=_soak)


def _soak(options: Namespace) -> int:
    from messaging_contracts.faults.soak import page, soak

    silence()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    seconds = options.minutes * 60
    found = soak(options.only or SOAKED, seconds, folder, show)
    flat = all(one.flat for one in found)
    if options.output is not None:
        options.output.write_text(page(found, seconds), encoding="utf-8")
    show(f"{'flat' if flat else 'NOT FLAT, or broken'}; the histories are in {folder}")
    return 0 if flat else 1
