"""What a command says. Where it provokes failures, the library's warnings are no part of that."""

from __future__ import annotations

import logging
import sys


def silence() -> None:
    """Log nothing of what is provoked."""
    logging.getLogger("messaging").setLevel(logging.CRITICAL)
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def show(text: str, *, error: bool = False) -> None:
    """Print a line at once, to standard error where it is an error."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
