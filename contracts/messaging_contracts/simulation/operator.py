"""A simulated process of an operator, who looks at the group, and redrives and purges its dead letters."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from messaging import PublishManyError, Receipt
from messaging.errors import ConnectionFailed
from messaging_contracts.faults import Buried
from messaging_contracts.simulation.loop import EPOCH
from messaging_contracts.simulation.process import GROUP, Process

if TYPE_CHECKING:
    from messaging import DeadLetter, DeadLetters

PAUSES = (0.2, 2.0, 10.0)
PURGING = 0.2
"""How often letters are purged, and not redriven."""


class Operator(Process):
    """Leaves alone what became a dead letter because it ends processes: it would again."""

    async def run(self, rounds: int) -> None:
        """So often, with pauses. Who cannot reach the broker tries again the next time."""
        random = self.world.random
        with suppress(ConnectionFailed):
            async with self.bus:
                letters = self.bus.dead_letters(self.world.topic, group=GROUP)
                for _ in range(rounds):
                    await asyncio.sleep(random.choice(PAUSES) * random.random())
                    with suppress(ConnectionFailed):
                        await self._round(letters)

    async def _round(self, letters: DeadLetters) -> None:
        random = self.world.random
        await self.bus.health()
        await self.bus.groups()
        found = [letter async for letter in letters.browse(where=_innocent)]
        ids = [letter.id for letter in found if random.random() < 0.7]
        if random.random() < PURGING:
            await self._purge(letters, {letter.id: letter for letter in found if letter.id in ids})
        else:
            await self._redrive(letters, ids)

    async def _redrive(self, letters: DeadLetters, ids: list[str]) -> None:
        before = self.adapter.redriven
        rate = self.world.random.choice((None, 1.0, 50.0))
        try:
            told = await letters.redrive(ids=ids, where=_innocent, rate=rate)
        except PublishManyError as error:
            told = sum(isinstance(result, Receipt) for result in error.results)
        if told != self.adapter.redriven - before:
            self.world.problem(f"{told} redriven, it is told; {self.adapter.redriven - before} were")

    async def _purge(self, letters: DeadLetters, chosen: dict[str, DeadLetter]) -> None:
        self.adapter.purged.clear()
        told = 0
        try:
            told = await letters.purge(ids=chosen, where=_innocent)
        finally:
            gone, look = self.adapter.purged, next(self.world.looks)
            for id in gone:
                self.record(buried(chosen[id], self.now(), look=look))
        if told != len(gone):
            self.world.problem(f"{told} purged, it is told; {len(gone)} were")


def buried(letter: DeadLetter, at: float, *, look: int = 0) -> Buried:
    """How a history tells of this letter."""
    failed = letter.last_failed_at
    return Buried(
        at=at,
        id=letter.id,
        group=GROUP,
        reason=letter.reason,
        cause=letter.cause,
        attempts=letter.attempts,
        failed_at=None if failed is None else failed.timestamp() - EPOCH,
        look=look,
    )


def _innocent(letter: DeadLetter) -> bool:
    return letter.cause != "lease_lost"
