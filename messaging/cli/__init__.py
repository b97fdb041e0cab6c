"""The `messaging` command: what is in force, the dead letters of a group, the generations of a topic."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from messaging.cli import config, dead_letters, generations
from messaging.errors import MessagingError
from messaging.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    made = argparse.ArgumentParser(prog="messaging", description=__doc__)
    commands = made.add_subparsers(required=True)
    config.add(commands)
    dead_letters.add(commands)
    generations.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what was asked, 1 for an error that it printed, 2 for a wrong call."""
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except MessagingError as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    return 0
