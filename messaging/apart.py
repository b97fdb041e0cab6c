"""A handler's context variables are its own: the next message that its worker handles does not see them."""

from __future__ import annotations

from contextvars import copy_context
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


@coroutine
def apart(work: Awaitable[T]) -> Generator[Any, Any, T]:
    """What it returns or raises; it runs in this task, in a copy of its context variables."""
    steps, run = work.__await__(), copy_context().run
    step: Callable[[Any], Any] = steps.send
    argument: Any = None
    while True:
        try:
            waited = run(step, argument)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            step, argument = steps.send, (yield waited)
        except GeneratorExit:
            run(steps.close)
            raise
        except BaseException as error:  # a cancellation too is for what it waits for
            step, argument = steps.throw, error
