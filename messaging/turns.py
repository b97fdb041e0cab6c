"""The calls that publish an ordered topic through middleware: each key has its turns, in the order of the calls (7)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Self, TypeAlias

from messaging.calls import nobody_waits, too_late
from messaging.clock import timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from messaging.calls import Failed
    from messaging.clock import Clock
    from messaging.errors import PublishError
    from messaging.message import Key, Message, Receipt
    from messaging.middleware.publishing import PublishHandler

GRACE = 0.1
"""Seconds by which middleware may take longer than the call: the hand-over, which ends in time, knows what it sent."""
End: TypeAlias = "asyncio.Future[Failed | None]"
"""Done when a call, and those before it, have nothing more of one key to publish."""


class Turns:
    """The last call for each key, while one is under way."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last: dict[tuple[str, Key | None], End] = {}
        self.failed: dict[tuple[str, Key | None], dict[Turn, Failed]] = {}
        """The calls whose callers do not know yet that a message failed: whoever comes then is behind it."""
        self.fail_behind: Callable[[str, Message, Exception], object] = nobody_waits
        """Told of each that fails: calls may wait that have not entered yet."""

    def enter(self, topic: str, messages: Sequence[Message], within: float) -> Turn:
        """A call of `within` seconds, behind those that entered before it: use it as a context."""
        return Turn(self, topic, messages, within)


class Turn:
    """One call. Whoever leaves before the end lets those behind go on after those before.

    Middleware that publishes to the key that it is called for waits for itself, until the time of the call is over.
    """

    __slots__ = (
        "_before",
        "_ends",
        "_failed",
        "_left",
        "_sent",
        "_topic",
        "_turns",
        "_until",
        "_within",
    )

    def __init__(self, turns: Turns, topic: str, messages: Sequence[Message], within: float) -> None:
        self._turns = turns
        self._topic = topic
        self._within = within
        self._until = turns.clock.monotonic() + within
        self._sent = False
        """Whether something was handed over."""
        self._left = Counter(message.key for message in messages)
        self._before = {key: turns.last.get((topic, key)) for key in self._left}
        self._failed: dict[Key | None, Failed] = {}
        self._ends: dict[Key | None, End] = {}
        loop = asyncio.get_running_loop()
        for key in self._left:
            self._ends[key] = turns.last[topic, key] = loop.create_future()
            if calls := turns.failed.get((topic, key)):
                self._hold(key, next(iter(calls.values())))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in self._failed:
            calls = self._turns.failed[self._topic, key]
            del calls[self]
            if not calls:
                del self._turns.failed[self._topic, key]
        for key, end in self._ends.items():
            if not end.done():
                self._end(key)

    def hand_over(self, message: Message) -> float:
        """The seconds that are left for it now. Raises PublishError where there are none."""
        left = self._until - self._turns.clock.monotonic()
        if left <= 0:
            raise self._late(message, sent=False)
        self._sent = True
        return left

    async def through(self, handler: PublishHandler, message: Message) -> Receipt:
        """Publish it through the middleware. Raises PublishError when the time of the call is over."""
        until = self._until + GRACE
        try:
            async with timeout(self._turns.clock, max(0.0, until - self._turns.clock.monotonic())):
                return await handler(message)
        except TimeoutError:
            if self._turns.clock.monotonic() < until:
                raise  # the middleware's own
            raise self._late(message, sent=self._sent) from None

    async def begin(self, message: Message) -> Failed | None:
        """Wait for the calls before this one; what failed before it, of its key. Raises PublishError in the end."""
        key = message.key
        if key not in self._failed and (before := self._before[key]) is not None:
            try:
                async with timeout(self._turns.clock, max(0.0, self._until - self._turns.clock.monotonic())):
                    await asyncio.wait((before,))  # awaited itself, it would be cancelled with this one
            except TimeoutError:
                raise self._late(message, sent=False) from None
            if (failed := before.result()) is not None:
                self._hold(key, failed)
                self._turns.fail_behind(self._topic, *failed)
        return self._failed.get(key)

    def published(self, message: Message) -> None:
        """It is; where it was the last of its key, those behind this call go on."""
        self._left[message.key] -= 1
        if not self._left[message.key]:
            self._end(message.key)

    def fail(self, message: Message, error: Exception) -> None:
        """It is not, nor is what is behind it of its key."""
        self._hold(message.key, (message, error))
        self._turns.fail_behind(self._topic, message, error)
        self._end(message.key)

    def _hold(self, key: Key | None, failed: Failed) -> None:
        self._failed[key] = failed
        self._turns.failed.setdefault((self._topic, key), {})[self] = failed

    def _late(self, message: Message, *, sent: bool) -> PublishError:
        return too_late(message, self._within, sent=sent)

    def _end(self, key: Key | None) -> None:
        before = self._before[key]
        if before is None or before.done():
            self._pass_on(key)
        else:
            before.add_done_callback(lambda _: self._pass_on(key))

    def _pass_on(self, key: Key | None) -> None:
        end, before = self._ends[key], self._before[key]
        if end.done():  # what failed was followed by the end of the call, while both waited for those before
            return
        end.set_result(self._failed.get(key) or (None if before is None else before.result()))
        if self._turns.last.get((self._topic, key)) is end:
            del self._turns.last[self._topic, key]
