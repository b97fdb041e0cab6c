"""The `messaging` command: what is in force, the dead letters of a group, the generations of a topic."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from messaging.cli import config, dead_letters, generations
from messaging.errors import MessagingError
from messaging.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    made = argparse.ArgumentParser(prog="messaging", description=__doc__)
    commands = made.add_subparsers(required=True)
    config.add(commands)
    dead_letters.add(commands)
    generations.add(commands)
    return made


class _Output:
    """Standard output that keeps why it could not be written: argparse swallows that, others raise it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None
        if hasattr(stream, "reconfigure"):  # a reason may have characters that the terminal has not
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> object:
        return self._kept(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._kept(self._stream.flush)

    def finish(self) -> None:
        """Write the rest; raises what kept anything from being written."""
        self.flush()
        if self.error is not None:
            raise self.error

    def discard(self) -> None:
        """Throw away what is left, which would fail once more at the end of the interpreter."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _kept(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            self.error = error
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what was asked, 1 for an error that it printed, 2 for a wrong call, 130 when it
    was interrupted. Who reads its output may leave early: that is 1, without a word.
    """
    stream: Any = sys.stdout
    if stream is None:  # closed at the start
        return _run(arguments)
    output: Any = _Output(stream)
    try:
        with redirect_stdout(output):
            try:
                return _run(arguments)
            finally:
                output.finish()
    except OSError as error:
        if output.error is None:
            raise
        output.discard()
        if not isinstance(error, BrokenPipeError):
            print(f"the output was not written: {error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except MessagingError as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
