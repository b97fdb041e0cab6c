"""Calls of `publish` that wait for their topic: one that fails takes what is behind it of its keys with it (7)."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Self

from messaging.calls import overtaking
from messaging.lasting import this_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from messaging.calls import Failed
    from messaging.errors import PublishError
    from messaging.message import Key, Message


class Waiting:
    """All that wait. Calls for an ordered topic are known by the keys of their messages."""

    def __init__(self, failed_before: Callable[[str, Key | None], Failed | None]) -> None:
        """`failed_before` tells of a message of this topic and key that failed, while its caller does not know yet."""
        self._numbers = count()
        self.failed_before = failed_before
        self.by_key: dict[tuple[str, Key | None], dict[Waiter, None]] = {}
        """In the order of their calls."""
        self.failed: dict[tuple[str, Key | None], dict[Waiter, Failed]] = {}
        """The calls whose callers do not know yet that a message failed: whoever comes then is behind it."""

    def call(self, topic: str, messages: Sequence[Message], *, ordered: bool) -> Waiter:
        """A call, until its end: use it as a context."""
        return Waiter(self, next(self._numbers), topic, messages if ordered else ())

    def fail_behind(self, topic: str, former: Message, error: Exception) -> None:
        """A message of a call that waits no more has failed: what waits of its key, all of it behind it, fails too."""
        for waiter in list(self.by_key.get((topic, former.key), ())):
            waiter.fail(former, error)


class Waiter:
    """One call: what failed of it counts inside `with`, it waits inside `async with`.

    When all of its messages have failed with those before them, the body that waits is cancelled, and the context ends
    without an error.
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

    def __enter__(self) -> Self:
        for key in {message.key for message in self._messages}:
            calls = self._waiting.failed.get((self._topic, key), {})
            failed = next(iter(calls.values()), None) or self._waiting.failed_before(self._topic, key)
            if failed is not None:
                self._hold(*failed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in {self._messages[at].key for at in self.failed}:
            calls = self._waiting.failed[self._topic, key]
            del calls[self]
            if not calls:
                del self._waiting.failed[self._topic, key]

    @property
    def over(self) -> bool:
        """Whether all of it has failed."""
        return 0 < len(self._messages) == len(self.failed)

    async def __aenter__(self) -> Self:
        self._task = this_task()
        self._cancelling = self._task.cancelling()
        for at, message in enumerate(self._messages):
            if at not in self.failed:
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

    def fail(self, former: Message, error: Exception) -> None:
        """One before this call has failed: `former` is its first message of a key, and the error is that one's."""
        self._hold(former, error)
        self._leave(former.key)
        if self.over:
            self._interrupted = True
            self._task.cancel()

    def _hold(self, former: Message, error: Exception) -> None:
        behind = [(at, message) for at, message in enumerate(self._messages) if message.key == former.key]
        self.failed |= {at: overtaking(message, former, error) for at, message in behind}
        at, first = behind[0]
        known = self._waiting.failed.setdefault((self._topic, former.key), {})
        known[self] = first, self.failed[at]

    def _leave(self, key: Key | None) -> None:
        waiters = self._waiting.by_key.get((self._topic, key))
        if waiters is not None:
            waiters.pop(self, None)
            if not waiters:
                del self._waiting.by_key[self._topic, key]
