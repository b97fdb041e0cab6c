"""The logger `messaging`: quiet by default, and one line per event (27), whatever a message or an error holds."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_QUIET = logging.NullHandler()
"""Makes the logger quiet by default, and tells of the errors of other handlers."""


LONGEST = 4000
"""Characters of a line: a reason may quote a whole payload."""


def one_line(text: str) -> str:
    """The text, with what is not printable in it escaped as in a string of Python."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


class _OneLine(logging.Filter):
    """What came over the wire could forge lines of a log, flood it, and command the terminal on which it is read."""

    def filter(self, record: logging.LogRecord) -> bool:
        with suppress(Exception):  # what cannot be shown is for `logging` to tell of
            text = record.getMessage()
            if len(text) > LONGEST or not text.isprintable():
                cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
                record.msg, record.args = one_line(cut), ()
        return True


def _harmless(handle: Callable[[logging.LogRecord], None]) -> Callable[[logging.LogRecord], None]:
    """`handle`, but an error of a program's filter or handler goes to `logging.Handler.handleError`.

    That prints it to `sys.stderr` unless `logging.raiseExceptions` is off. Whoever logged goes on: no consumer,
    settlement or publish ends of its log. Handlers after the broken one miss the record. What is no Exception, such
    as SystemExit, passes.
    """

    def guarded(record: logging.LogRecord) -> None:
        try:
            handle(record)
        except Exception:
            with suppress(Exception):  # there may be no stderr to print it to
                _QUIET.handleError(record)

    return guarded


def set_up() -> None:
    """Once, when the package is imported; the adapters log by the same logger."""
    logger = logging.getLogger("messaging")
    logger.addHandler(_QUIET)
    logger.addFilter(_OneLine())
    logger.handle = _harmless(logger.handle)  # type: ignore[assignment, method-assign]  # whatever its class is
