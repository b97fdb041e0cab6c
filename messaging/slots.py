"""A bound on what is in use at once; who waits is served in order."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """So many of something, of which each user takes some and gives them back."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = number
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, wanted: int) -> bool:
        """Take them, if they are free and nobody waits."""
        if self._waiting or self._free < wanted:
            return False
        self._free -= wanted
        return True

    async def take(self, wanted: int) -> None:
        """Take them when they are free."""
        if self.take_now(wanted):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self.give_back(0 if turn.cancelled() else wanted)
            raise

    def give_back(self, number: int) -> None:
        self._free += number
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif wanted <= self._free:
                self._waiting.popleft()
                self._free -= wanted
                turn.set_result(None)
            else:
                return
