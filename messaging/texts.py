"""Texts that others give: plain ones, and what an exception says in a line; `messaging.stack` has all that is
recorded of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

_MESSAGE_CHARACTERS = 4000
_SUMMARY_CHARACTERS = 300


def plain(text: str) -> str:
    """The text as a str itself: a member of `class Color(str, Enum)` is a str, but has another length and hash."""
    return text if type(text) is str else str.__str__(text)


def summary(error: BaseException) -> str:
    """`Type: message`, or the type alone."""
    message = message_of(error)[:_SUMMARY_CHARACTERS]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def reason_of(given: object) -> str:
    """What a handler gave as its reason, as text; never raises."""
    if isinstance(given, str):
        return given
    if isinstance(given, BaseException):
        return summary(given)
    try:
        return "" if given is None else str(given)
    except Exception:
        return f"(a {type(given).__name__} that cannot be read)"


def message_of(error: BaseException) -> str:
    """The exception's own text, bounded, also where its `__str__` fails."""
    try:
        return str(error)[:_MESSAGE_CHARACTERS]
    except Exception:
        return "(its text cannot be read)"


def leaves_of(error: BaseException, most: int | None = None) -> Iterator[BaseException]:
    """The exceptions in a group, however nested, or the exception itself; at most `most`."""
    waiting = [error]
    while waiting and most != 0:
        current = waiting.pop()
        if isinstance(current, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", current)
            waiting.extend(reversed(group.exceptions))
        else:
            yield current
            most = None if most is None else most - 1
