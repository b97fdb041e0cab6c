"""One fetches what several need at the same time; the others wait for it, and go on in the order of their calls."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

V = TypeVar("V")


class Together(Generic[V]):
    """Callers of `get` that come while one of them fetches share what it gets.

    A lock that each passes in turn would let them go one by one, and never empty while they come again.
    """

    def __init__(self) -> None:
        self._fetching = False
        self._waiting: deque[asyncio.Future[list[V]]] = deque()
        """Each gets the value, or nothing: then the fetching is its own."""
        self._found: list[V] = []
        self._going = 0
        """Callers who got the value and have not gone on yet: nobody overtakes them."""
        self._failing = 0
        """Callers who got an error and have not gone on yet: nobody goes on past them."""
        self._error: Exception | None = None

    async def get(self, fetch: Callable[[], Awaitable[V]]) -> V:
        """What `fetch` gives to the first of those who call together, or raises: none goes on past one that failed (7).

        Where the first is cancelled, the next one fetches.
        """
        if self._fetching:
            found = await self._turn()
            if found:
                return found[0]
        elif self._going:
            self._going += 1
            try:
                await asyncio.sleep(0)
            finally:
                self._going -= 1
            return self._found[0]
        elif self._failing and self._error is not None:
            raise self._error
        self._fetching = True
        try:
            value = await fetch()
        except Exception as error:
            self._fail(error)
            raise
        except BaseException:  # cancelled, it lets the next one fetch
            self._pass_on()
            raise
        self._fetching = False
        self._found = [value]
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._found)
                self._going += 1
        return value

    async def _turn(self) -> list[V]:
        turn: asyncio.Future[list[V]] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if _given(turn) == []:
                self._pass_on()  # it would have been ours
            raise
        finally:
            if _given(turn):
                self._going -= 1
            elif turn.done() and not turn.cancelled() and turn.exception() is not None:
                self._failing -= 1
                if not self._failing:
                    self._error = None

    def _fail(self, error: Exception) -> None:
        self._fetching = False
        self._error = error
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
                self._failing += 1

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result([])
                return
        self._fetching = False


def _given(turn: asyncio.Future[list[V]]) -> list[V] | None:
    """What this caller got; None where nothing came, or an error, which is read with that."""
    return None if not turn.done() or turn.cancelled() or turn.exception() else turn.result()
