"""A handler's context variables are its own: the next message that its worker handles does not see them."""

from __future__ import annotations

from contextvars import copy_context
from types import coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")

_OVER = object()
"""What a piece of work waits for in the end: nothing."""


class Apart(Generic[T]):
    """Does one coroutine after the other, each in a copy of its task's context variables.

    One generator awaits them all: one for each, and the exception with which it would return, cost more than most
    handlers.
    """

    __slots__ = ("_send", "_steps", "result")

    result: T
    """Of the last one that is over."""

    def __init__(self) -> None:
        self._renew()

    def begin(self, work: Awaitable[T]) -> Awaitable[None] | None:
        """Do it until it waits for something; what to await then, in the same task. None: `result` is there."""
        run = copy_context().run
        try:
            waited = run(self._send, work)
        except BaseException:
            self._renew()
            raise
        return None if waited is _OVER else self._go_on(run, waited)

    @coroutine
    def _go_on(self, run: Callable[..., Any], waited: Any) -> Generator[Any, Any, None]:
        steps = self._steps
        step: Callable[[Any], Any]
        try:
            while waited is not _OVER:
                try:
                    step, argument = steps.send, (yield waited)
                except GeneratorExit:
                    run(steps.close)
                    raise
                except BaseException as error:  # a cancellation too is for what it waits for
                    step, argument = steps.throw, error
                waited = run(step, argument)
        except BaseException:
            self._renew()
            raise

    def _renew(self) -> None:
        """What has raised goes on no more."""
        steps: Any = self._each()
        self._steps: Generator[Any, Any, None] = steps
        self._send: Callable[[Any], Any] = self._steps.send
        self._send(None)

    @coroutine
    def _each(self) -> Generator[Any, Any, None]:
        work = yield None
        while True:
            self.result = yield from work
            work = yield _OVER
