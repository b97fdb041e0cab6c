"""Calls of `publish` that wait for their topic: one that fails takes what is behind it of its keys with it (7)."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Self

from messaging.calls import overtaking
from messaging.lasting import this_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from messaging.errors import PublishError
    from messaging.message import Key, Message


class Waiting:
    """All that wait. Calls for an ordered topic are known by the keys of their messages."""

    def __init__(self) -> None:
        self._numbers = count()
        self.by_key: dict[tuple[str, Key | None], dict[Waiter, None]] = {}
        """In the order of their calls."""

    def call(self, topic: str, messages: Sequence[Message], *, ordered: bool) -> Waiter:
        """A call that begins to wait: use it as a context."""
        return Waiter(self, next(self._numbers), topic, messages if ordered else ())


class Waiter:
    """One call, which waits inside `async with`.

    When all of its messages have failed with those before them, the body is cancelled, and the context ends without an
    error.
    """

    __slots__ = (
        "_cancelling",
        "_interrupted",
        "_messages",
        "_task",
        "_topic",
        "_waiting",
        "failed",
        "number",
    )

    def __init__(self, waiting: Waiting, number: int, topic: str, messages: Sequence[Message]) -> None:
        self.failed: dict[int, PublishError] = {}
        """Of the messages that failed with one before them: by their number in the call."""
        self._waiting = waiting
        self.number = number
        """Grows in the order of the calls."""
        self._topic = topic
        self._messages = messages
        self._interrupted = False

    async def __aenter__(self) -> Self:
        self._task = this_task()
        self._cancelling = self._task.cancelling()
        for message in self._messages:
            self._waiting.by_key.setdefault((self._topic, message.key), {})[self] = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for message in self._messages:
            self._leave(message.key)
        if not self._interrupted:
            return False
        # As with a timeout: a cancellation from outside, which may come together with ours, is passed on.
        return self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)

    def fail_behind(self, error: PublishError) -> None:
        """This call has failed: what waits behind it of its keys fails too."""
        by_key = self._waiting.by_key
        for key, former in {message.key: message for message in reversed(self._messages)}.items():
            for waiter in list(by_key.get((self._topic, key), ())):
                if waiter.number > self.number:
                    waiter.fail(former, error)

    def fail(self, former: Message, error: PublishError) -> None:
        """One before this call has failed: `former` is its first message of a key, and the error is that one's."""
        for at, message in enumerate(self._messages):
            if message.key == former.key:
                self.failed[at] = overtaking(message, former, error)
        self._leave(former.key)
        if len(self.failed) == len(self._messages):
            self._interrupted = True
            self._task.cancel()

    def _leave(self, key: Key | None) -> None:
        waiters = self._waiting.by_key.get((self._topic, key))
        if waiters is not None:
            waiters.pop(self, None)
            if not waiters:
                del self._waiting.by_key[self._topic, key]
