"""What is recorded of an exception, in bounded text: type, message, stack, fingerprint, and the leaves of a group."""

from __future__ import annotations

import json
import linecache
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from messaging.texts import leaves_of, message_of, summary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

_OUTER_FRAMES = 5
_INNER_FRAMES = 15
_CHAIN = 4
_LEAVES = 8


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as it was recorded.

    `fingerprint` is made of the type and of the functions on the stack, without line numbers and messages:
    the same defect has the same fingerprint. `leaves` are the exceptions in a group, each as `type: message`.
    """

    type: str
    message: str = ""
    stack: str = ""
    fingerprint: str = ""
    leaves: tuple[str, ...] = ()


def describe(error: BaseException) -> ErrorInfo:
    """Describe an exception and what caused it. Never raises, whatever the exception's own methods do."""
    try:
        return _described(error)
    except Exception:  # its class, or a module that it passed through, can answer anything
        return ErrorInfo(type=type(error).__name__, message=message_of(error))


def _described(error: BaseException) -> ErrorInfo:
    leaves = tuple(leaf for leaf in leaves_of(error, _LEAVES) if leaf is not error)
    stack = "\ncaused by\n".join(_stack(link) for link in _chain(error))
    if leaves:
        stack = "\nin the group\n".join([stack, *(_stack(leaf) for leaf in leaves)])
    return ErrorInfo(
        type=_type_name(error),
        message=message_of(error),
        stack=stack,
        fingerprint=_fingerprint(error, *leaves),
        leaves=tuple(summary(leaf) for leaf in leaves),
    )


def clip(text: str, limit: int, *, middle: bool = False) -> str:
    """`text` cut so that it takes at most `limit` bytes as ASCII JSON; at its end, or in its middle."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be printed or stored
    if 12 * len(text) <= limit:
        return text
    mark = "\n[...]\n" if middle else "..."
    keep = len(text)
    kept = text if keep <= limit else ""
    excess = len(json.dumps(text)) - 2 - limit if kept else keep - limit
    while excess > 0 and keep > 0:
        # One character takes one to twelve bytes: cut as many as surely are too many, at least one.
        keep = min(keep - max(1, excess // 12), limit)
        head = keep // 3 if middle else keep
        kept = text[:head] + mark + text[len(text) - (keep - head) :]
        excess = len(json.dumps(kept)) - 2 - limit
    return kept


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what caused it, as far as a reader needs."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < _CHAIN:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _stack(error: BaseException) -> str:
    entries = [(frame.tb_frame, frame.tb_lineno) for frame in _frames(error.__traceback__)]
    left_out = len(entries) - _OUTER_FRAMES - _INNER_FRAMES
    lines: list[str] = []
    for index, (frame, number) in enumerate(entries):
        if left_out > 0 and _OUTER_FRAMES <= index < _OUTER_FRAMES + left_out:
            if index == _OUTER_FRAMES:
                lines.append(f"  ({left_out} frames left out)")
            continue
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {number or "?"}, in {code.co_qualname}')
        if source := _source(frame, number):
            lines.append(f"    {source}")
    return "\n".join([*lines, summary(error)])


def _source(frame: FrameType, number: int | None) -> str:
    if number is None:  # code that was made, not compiled
        return ""
    try:
        return linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
    except Exception:  # the loader of the module
        return ""


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _fingerprint(*errors: BaseException) -> str:
    names: list[str] = []
    for error in errors:
        names.append(_type_name(error))
        for frame in _frames(error.__traceback__):
            module = str(frame.tb_frame.f_globals.get("__name__", ""))
            name = f"{module}:{frame.tb_frame.f_code.co_qualname}"
            # Our own frames change with the configured middleware, repeated ones with a recursion's depth.
            if module.partition(".")[0] != "messaging" and name != names[-1]:
                names.append(name)
    return sha256("\n".join(names).encode("utf-8", "replace")).hexdigest()[:16]


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
