"""The logger `messaging`: quiet by default, and one line per event (27), whatever a message or an error holds."""

from __future__ import annotations

import logging
from contextlib import suppress


def one_line(text: str) -> str:
    """The text, with what is not printable in it escaped as in a string of Python."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


class _OneLine(logging.Filter):
    """What came over the wire could forge lines of a log, and command the terminal on which it is read."""

    def filter(self, record: logging.LogRecord) -> bool:
        with suppress(Exception):  # what cannot be shown is for `logging` to tell of
            text = record.getMessage()
            if not text.isprintable():
                record.msg, record.args = one_line(text), ()
        return True


def set_up() -> None:
    """Once, when the package is imported."""
    logger = logging.getLogger("messaging")
    logger.addHandler(logging.NullHandler())
    logger.addFilter(_OneLine())
