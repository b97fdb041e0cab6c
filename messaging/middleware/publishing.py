"""The middleware of publishing: functions around the hand-over of one message to its broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from messaging.calls import overtaking
from messaging.errors import ConfigurationError, PublishError
from messaging.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.turns import Turn

PublishHandler: TypeAlias = Callable[[Message], Awaitable[Receipt]]
"""Publishes one message; raises PublishError."""
PublishMiddleware: TypeAlias = Callable[[PublishHandler], PublishHandler]


async def publish_through(
    middleware: Sequence[PublishMiddleware],
    send: PublishHandler,
    messages: Sequence[Message],
    turn: Turn,
    *,
    ordered: bool,
) -> Sequence[Receipt | PublishError]:
    """Publish each through the middleware, outermost first; one result each, in order.

    Messages of an ordered topic go one after the other, behind the calls before this one, and one that fails fails its
    successors of the same key (7); others go at once. An error that is no PublishError is raised when nothing is under
    way any more.
    """
    handler = _through(middleware, send)
    if ordered:
        return await _one_by_one(handler, messages, turn)
    under_way = [_published(handler, message, turn) for message in messages]
    results = await asyncio.gather(*under_way, return_exceptions=True)
    return [_result(result) for result in results]


def _through(middleware: Sequence[PublishMiddleware], send: PublishHandler) -> PublishHandler:
    handler = send
    for one in reversed(middleware):
        handler = one(handler)
        if not callable(handler):  # pyright: ignore[reportUnnecessaryComparison]  a forgotten return
            raise ConfigurationError(
                f"publish middleware {one!r} returned a {type(handler).__name__}: it must return a function that "
                f"publishes a message"
            )
    return handler


async def _published(handler: PublishHandler, message: Message, turn: Turn) -> Receipt:
    """Raises TypeError for what is no receipt: its caller would take the message for published."""
    receipt = await turn.through(handler, message)
    if not isinstance(receipt, Receipt):  # pyright: ignore[reportUnnecessaryIsInstance]  a forgotten return
        raise TypeError(
            f"publish middleware returned {type(receipt).__name__}, which is no Receipt, for message {message.id} of "
            f"{message.topic}, which may have been published or not: return what `next` returned"
        )
    return receipt


async def _one_by_one(
    handler: PublishHandler, messages: Sequence[Message], turn: Turn
) -> Sequence[Receipt | PublishError]:
    results: list[Receipt | PublishError] = []
    try:
        for message in messages:
            results.append(await _in_turn(handler, message, turn))  # noqa: PERF401  the error tells how far it came
    except Exception as error:
        for message in messages[len(results) + 1 :]:
            turn.fail(message, error)
        raise
    return results


async def _in_turn(handler: PublishHandler, message: Message, turn: Turn) -> Receipt | PublishError:
    try:
        if (failed := await turn.begin(message)) is not None:
            return overtaking(message, *failed)
        receipt = await _published(handler, message, turn)
    except Exception as error:
        turn.fail(message, error)
        return _result(error)
    turn.published(message)
    return receipt


def _result(result: Receipt | BaseException) -> Receipt | PublishError:
    if isinstance(result, BaseException) and not isinstance(result, PublishError):
        raise result
    return result
