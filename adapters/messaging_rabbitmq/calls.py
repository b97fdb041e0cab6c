"""Calls to the broker, each to its end: whoever waits for one may give up, and the channel stays whole.

aiormq closes a channel on which a call is cancelled, and waits for no answer. Where the broker closes it in the same
moment, or its number belongs to a new channel by then, the broker closes the connection, with all that was consumed
on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Channel

from messaging.errors import ConnectionFailed
from messaging.shielded import shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiormq.abc import AbstractChannel

T = TypeVar("T")

_AWAY = ("is down or inaccessible", "is stopped by supervisor", "has crashed and failed to restart")
"""How RabbitMQ ends what it says of a queue that is there and cannot be used, with the code of one that is not."""


class NodeAway(ConnectionFailed):
    """The queue is there, and the node of the cluster that has it is not."""


class Calls:
    """What is being asked on the channels of one link."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Make this call, whoever waits for it."""
        task = asyncio.create_task(call, name="rabbitmq-call")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it, or is gone

    def keep_whole(self, channel: AbstractChannel) -> None:
        """From now on nobody cancels a call on this channel: all that wait for an answer go through these."""
        for name in ("rpc", "basic_get"):
            setattr(channel, name, self._whole(getattr(channel, name)))

    def _whole(self, call: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
        async def whole(*args: Any, **options: Any) -> T:
            if args and isinstance(args[0], Channel.Close):
                # Behind a longer call aiormq would send none, and the broker give the channel messages for ever.
                options.pop("timeout", None)
            try:
                return await shielded(self.start(call(*args, **options)))
            except ChannelNotFoundEntity as error:
                if any(words in str(error) for words in _AWAY):
                    raise NodeAway(f"RabbitMQ cannot use the queue now: {error}") from error
                raise

        return whole

    async def end(self, within: float) -> None:
        """Wait for what is under way, which ends with its connection."""
        if self._running:
            _, unfinished = await asyncio.wait(self._running, timeout=within)
            for task in unfinished:
                task.cancel()
