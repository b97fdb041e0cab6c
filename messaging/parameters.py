"""How a handler is called: the payload first, the other parameters by their annotations."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from messaging.annotations import evaluated, fits, is_delivery, kinds, shown
from messaging.errors import ConfigurationError
from messaging.message import OUTCOMES, Ack
from messaging.shielded import shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from messaging.clock import Clock
    from messaging.message import Delivery, Handler, Outcome

_DELIVERY = object()
_ACK = Ack()


def bind(
    function: Callable[..., Any],
    provided: Sequence[object],
    executor: Executor,
    clock: Clock,
    conclude: Callable[[Any], Outcome],
) -> Handler:
    """The function as a Handler: called with the payload and what its annotations ask for.

    `provided` are the bus and what the lifespan yields; `conclude` makes an outcome of what the function returns. A
    synchronous function runs in a thread of the executor, with the caller's context variables; what it returns to be
    awaited, as a plain function around a coroutine function does, is awaited on the loop.
    Raises ConfigurationError for a parameter that nothing can fill.
    """
    arguments = _arguments(function, provided)
    only_payload = not arguments

    def values(delivery: Delivery[Any]) -> dict[str, Any]:
        return {name: delivery if value is _DELIVERY else value for name, value in arguments.items()}

    if _is_coroutine_function(function):
        nothing = conclude(None)  # what most handlers return

        async def call(delivery: Delivery[Any]) -> Outcome:
            try:
                if only_payload:
                    result = await function(delivery.payload)
                else:
                    result = await function(delivery.payload, **values(delivery))
                return nothing if result is None else conclude(result)
            except asyncio.CancelledError as error:
                _check_asked(function, error)
                raise

        return call

    async def call_in_thread(delivery: Delivery[Any]) -> Outcome:
        context = contextvars.copy_context()

        def run() -> Any:
            try:
                return context.run(function, delivery.payload, **values(delivery))
            except StopIteration as error:
                raise RuntimeError("the handler raised StopIteration") from error  # no future carries it

        try:
            with clock.busy():
                result = await _result(executor.submit(run))
            return conclude(await result if inspect.isawaitable(result) else result)
        except asyncio.CancelledError as error:
            _check_asked(function, error)
            raise

    return call_in_thread


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    plain = _behind_partials(inspect.unwrap(function))
    if inspect.iscoroutinefunction(inspect.unwrap(plain)):
        return True
    return inspect.iscoroutinefunction(getattr(plain, "__call__", None))  # noqa: B004  of an object


def _behind_partials(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the partials around it call in the end."""
    while isinstance(function, partial):
        function = function.func
    return function


def _given_by_name(function: Any) -> Any:
    """The arguments that a partial brings by their names."""
    return function.keywords if isinstance(function, partial) else ()


async def _result(job: Future[Any]) -> Any:
    """What the thread returns or raises. It cannot be stopped: cancelled, this waits for its end all the same, so
    that neither the next attempt nor the next message of the key runs beside it (7).
    """
    thread = asyncio.wrap_future(job)
    try:
        return await shielded(thread)
    except asyncio.CancelledError:
        job.cancel()  # where it has not begun
        while not thread.done():
            with suppress(asyncio.CancelledError):  # raised below, once; no thread can be cancelled
                await asyncio.wait((thread,))
        raise


def _check_asked(function: Callable[..., Any], error: asyncio.CancelledError) -> None:
    """A cancellation that nobody asked for, of something the handler waited for, is the handler's failure."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise RuntimeError(f"Handler {name_of(function)} waited for something that was cancelled") from error


def concluded(result: Any) -> Outcome:
    """The outcome of a subscriber: None is Ack. Anything else is a mistake in the handler."""
    if result is None:
        return _ACK
    if isinstance(result, OUTCOMES):
        return result
    raise TypeError(
        f"A handler returns None, Ack, Release, Retry or Reject; this one returned a {type(result).__name__}"
    )


def _arguments(function: Callable[..., Any], provided: Sequence[object]) -> dict[str, Any]:
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(
            f"Handler {name_of(function)} is a generator, whose body nobody would run: it must return, not yield"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind in {
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    }:
        raise ConfigurationError(
            f"Handler {name_of(function)} takes no payload: its first parameter must be positional"
        )
    given = _given_by_name(function)
    arguments: dict[str, Any] = {}
    for parameter in parameters[1:]:
        if parameter.name in given or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"Parameter {parameter.name!r} of handler {name_of(function)} is positional-only: "
                "only the payload may be"
            )
        found = _find(function, parameter, provided)
        if found is not parameter.empty:
            arguments[parameter.name] = found
    return arguments


def _find(function: Callable[..., Any], parameter: inspect.Parameter, provided: Sequence[object]) -> Any:
    """What fills the parameter, or `Parameter.empty` where its default does."""
    wanted = evaluated(function, parameter.annotation)
    allowed = kinds(wanted)
    if any(map(is_delivery, allowed)):
        return _DELIVERY
    matching = [value for value in provided if any(fits(value, kind) for kind in allowed)]
    if len(matching) == 1:
        return matching[0]
    if len(matching) > 1:
        reason = f"{len(matching)} of the things that are provided are a {shown(wanted)}"
    elif parameter.default is not parameter.empty:
        return parameter.empty
    else:
        known = ", ".join(sorted({type(value).__name__ for value in provided} | {"Delivery"}))
        missing = (
            "it has no annotation" if wanted is parameter.empty else f"nothing provides a {shown(wanted)}"
        )
        reason = f"{missing}; there are: {known}. The lifespan of the App yields resources"
    raise ConfigurationError(
        f"Parameter {parameter.name!r} of handler {name_of(function)} cannot be filled: {reason}"
    )


def name_of(function: Callable[..., Any]) -> str:
    """The function's name with its module, for logs and dead letters."""
    plain = inspect.unwrap(_behind_partials(function))
    return f"{getattr(plain, '__module__', '')}.{getattr(plain, '__qualname__', repr(plain))}"
