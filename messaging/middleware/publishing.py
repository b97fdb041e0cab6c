"""The middleware of publishing: functions around the hand-over of one message to its broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from messaging.calls import overtaking
from messaging.errors import PublishError
from messaging.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Key

PublishHandler: TypeAlias = Callable[[Message], Awaitable[Receipt]]
"""Publishes one message; raises PublishError."""
PublishMiddleware: TypeAlias = Callable[[PublishHandler], PublishHandler]


async def publish_through(
    middleware: Sequence[PublishMiddleware],
    send: PublishHandler,
    messages: Sequence[Message],
    *,
    ordered: bool,
) -> Sequence[Receipt | PublishError]:
    """Publish each through the middleware, outermost first; one result each, in order.

    Messages of an ordered topic go one after the other, and one that fails fails its successors of the same key (7);
    others go at once. An error that is no PublishError is raised when nothing is under way any more.
    """
    handler = send
    for one in reversed(middleware):
        handler = one(handler)
    if ordered:
        return await _in_order(handler, messages)
    results = await asyncio.gather(*(handler(message) for message in messages), return_exceptions=True)
    return [_result(result) for result in results]


async def _in_order(handler: PublishHandler, messages: Sequence[Message]) -> Sequence[Receipt | PublishError]:
    results: list[Receipt | PublishError] = []
    failed: dict[Key | None, tuple[Message, PublishError]] = {}
    for message in messages:
        if message.key in failed:
            result: Receipt | PublishError = overtaking(message, *failed[message.key])
        else:
            try:
                result = await handler(message)
            except PublishError as error:
                result = error
                failed[message.key] = message, error
        results.append(result)
    return results


def _result(result: Receipt | BaseException) -> Receipt | PublishError:
    if isinstance(result, BaseException) and not isinstance(result, PublishError):
        raise result
    return result
