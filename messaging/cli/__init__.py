"""The `messaging` command: what is in force, the dead letters of a group, the generations of a topic."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

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
    """Run the command; 0 when it did what was asked, 1 for an error that it printed, 2 for a wrong call, 130 when it
    was interrupted. Who reads its output may leave early: that is 1, without a word.
    """
    chosen = parser().parse_args(arguments)
    output: Any = sys.stdout  # None where it was closed at the start
    if hasattr(output, "reconfigure"):  # a reason may have characters that the terminal has not
        output.reconfigure(errors="backslashreplace")
    try:
        chosen.run(chosen)
        if output is not None:
            output.flush()
    except MessagingError as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # What is left in the buffer would fail once more at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
