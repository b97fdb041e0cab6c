"""A process that redrives dead letters, some at a time, until it has to stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from messaging import MessagingError, PublishManyError, PublishUncertain, Receipt
from messaging_contracts.faults.history import Redriven, now
from messaging_contracts.faults.role import GROUP, TOPICS, topic_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging import Bus, DeadLetters
    from messaging_contracts.faults.history import Fate, Journal

PAGE = 40
"""Letters that are redriven by one call."""
RATE = 40.0
"""Letters a second: a call takes so long that a fault meets it."""
PAUSE = 0.1
"""Seconds between two looks."""


class Redriver:
    """Redrives whatever dead letters there are."""

    def __init__(self, bus: Bus, journal: Journal, stop: asyncio.Event) -> None:
        self._bus = bus
        self._journal = journal
        self._stop = stop

    async def redrive(self) -> None:
        """Redrive until it has to stop; what the broker refuses meanwhile is tried again."""
        async with asyncio.TaskGroup() as tasks:
            for name in TOPICS:
                tasks.create_task(self._all(self._bus.dead_letters(topic_of(name), group=GROUP)))

    async def _all(self, letters: DeadLetters) -> None:
        while not self._stop.is_set():
            try:
                page = [letter.id async for letter in letters.browse(limit=PAGE)]
            except MessagingError:
                page = []
            if page:
                await self._redrive(letters, page)
            await asyncio.sleep(PAUSE)

    async def _redrive(self, letters: DeadLetters, page: Sequence[str]) -> None:
        """Of a letter that is there twice, each is redriven, and recorded."""
        self._tell("sent", page)
        try:
            redriven = await letters.redrive(ids=page, rate=RATE)
        except PublishManyError as error:
            self._tell_apart(page, error)
        except MessagingError:
            self._tell("uncertain", page)
        else:
            # What was uncertain before had come after all, or is held for it; of some of them it is not said which.
            some: Fate = "uncertain" if redriven else "failed"
            self._tell("confirmed" if redriven == len(page) else some, page)

    def _tell_apart(self, page: Sequence[str], error: PublishManyError) -> None:
        taken = Counter(result.id for result in error.results if isinstance(result, Receipt))
        unknown = any(isinstance(one, PublishUncertain) for one in error.errors)
        unknown = unknown or len(error.results) != len(page)
        for id in page:
            taken[id] -= 1
            if taken[id] >= 0:
                self._tell("confirmed", [id])
            else:
                self._tell("uncertain" if unknown else "failed", [id])

    def _tell(self, fate: Fate, ids: Sequence[str]) -> None:
        for id in ids:
            self._journal.record(Redriven(at=now(), fate=fate, id=id, group=GROUP))
