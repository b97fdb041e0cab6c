"""The calls that publish an ordered topic through middleware: each key has its turns, in the order of the calls (7)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Self, TypeAlias

from messaging.calls import unsent
from messaging.clock import timeout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from messaging.clock import Clock
    from messaging.errors import PublishError
    from messaging.message import Key, Message

Failed: TypeAlias = "tuple[Message, Exception]"
"""A message that was not published, and why: what is behind it of its key fails with it."""
End: TypeAlias = "asyncio.Future[Failed | None]"
"""Done when a call, and those before it, have nothing more of one key to publish."""


class Turns:
    """The last call for each key, while one is under way."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last: dict[tuple[str, Key | None], End] = {}

    def enter(self, topic: str, messages: Sequence[Message], within: float) -> Turn:
        """A call of `within` seconds, behind those that entered before it: use it as a context."""
        return Turn(self, topic, messages, within)


class Turn:
    """One call. Whoever leaves before the end lets those behind go on after those before."""

    __slots__ = ("_before", "_ends", "_failed", "_left", "_topic", "_turns", "_until", "_within")

    def __init__(self, turns: Turns, topic: str, messages: Sequence[Message], within: float) -> None:
        self._turns = turns
        self._topic = topic
        self._within = within
        self._until = turns.clock.monotonic() + within
        self._left = Counter(message.key for message in messages)
        self._before = {key: turns.last.get((topic, key)) for key in self._left}
        self._failed: dict[Key | None, Failed] = {}
        self._ends: dict[Key | None, End] = {}
        loop = asyncio.get_running_loop()
        for key in self._left:
            self._ends[key] = turns.last[topic, key] = loop.create_future()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in list(self._ends):
            self._end(key)

    def left(self, message: Message) -> float:
        """The seconds that are left for it. Raises PublishError where there are none."""
        left = self._until - self._turns.clock.monotonic()
        if left <= 0:
            raise self._late(message)
        return left

    async def begin(self, message: Message) -> Failed | None:
        """Wait for the calls before this one; what failed before it, of its key. Raises PublishError in the end."""
        key = message.key
        if key not in self._failed and (before := self._before[key]) is not None:
            try:
                async with timeout(self._turns.clock, self.left(message)):
                    await asyncio.wait((before,))  # awaited itself, it would be cancelled with this one
            except TimeoutError:
                raise self._late(message) from None
            if (failed := before.result()) is not None:
                self._failed[key] = failed
        return self._failed.get(key)

    def published(self, message: Message) -> None:
        """It is; where it was the last of its key, those behind this call go on."""
        self._left[message.key] -= 1
        if not self._left[message.key]:
            self._end(message.key)

    def fail(self, message: Message, error: Exception) -> None:
        """It is not, nor is what is behind it of its key."""
        self._failed[message.key] = message, error
        self._end(message.key)

    def _late(self, message: Message) -> PublishError:
        return unsent(message, f"{self._within:g} s were over before its turn came")

    def _end(self, key: Key | None) -> None:
        end, before = self._ends.pop(key), self._before[key]
        if before is None or before.done():
            self._pass_on(key, end)
        else:
            before.add_done_callback(lambda _: self._pass_on(key, end))

    def _pass_on(self, key: Key | None, end: End) -> None:
        before = self._before[key]
        end.set_result(self._failed.get(key) or (None if before is None else before.result()))
        if self._turns.last.get((self._topic, key)) is end:
            del self._turns.last[self._topic, key]
