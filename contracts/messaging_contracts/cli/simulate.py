"""`simulate`: random histories with faults, in memory and virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging_contracts.cli.output import show

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `simulate` to the commands."""
    command = commands.add_parser(
        "simulate", help="run random histories with faults in memory and virtual time, each made by its seed"
    )
    command.add_argument("--seed", type=int, metavar="N", help="replay this one and show its events")
    command.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (default 0)")
    command.add_argument("--number", type=int, metavar="N", help="how many seeds (default: by time)")
    command.add_argument(
        "--seconds", type=float, metavar="S", help="stop after so long (default 60, unless --number is given)"
    )
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that share the seeds (default 1)"
    )
    command.set_defaults(run=_simulate)


def _simulate(options: Namespace) -> int:
    from messaging_contracts.simulation.report import many, replay

    if options.seed is not None:
        return replay(options.seed, show)
    seconds = 60.0 if options.seconds is None and options.number is None else options.seconds
    return many(options.first, options.number, seconds, show, options.processes)
