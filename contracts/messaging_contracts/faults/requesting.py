"""A process that asks: some requests at a time, each with a reply or an error in time, until it has to stop."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

from messaging import Endpoint, MessagingError, PublishError, PublishUncertain
from messaging_contracts.faults.history import Answered, Asked, Published, now

if TYPE_CHECKING:
    from messaging import Bus
    from messaging_contracts.faults.history import Journal
    from messaging_contracts.faults.role import Role

QUOTES = "quotes"
ENDPOINT: Endpoint[str, tuple[str, str]] = Endpoint(QUOTES, str, tuple[str, str])
"""A request is its own name; a reply names the request that it is of, and the handling that made it."""
WITHIN = 5.0
"""Seconds that a request may take."""
SLACK = 2.0
"""Seconds by which it may end late, on a machine with other work."""


class Requester:
    """Asks from as many tasks as its role has publishers."""

    def __init__(self, role: Role, bus: Bus, journal: Journal, stop: asyncio.Event) -> None:
        self._role = role
        self._bus = bus
        self._journal = journal
        self._stop = stop

    async def ask(self) -> None:
        """Ask until it has to stop; what waits for its reply then gets it."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._role.publishers):
                tasks.create_task(self._lane(f"{QUOTES}.{self._role.name}.{number}"))

    async def _lane(self, name: str) -> None:
        for sequence in count():
            if self._stop.is_set():
                return
            await self._request(f"{name}.{sequence}")
            await asyncio.sleep(self._role.pace)

    async def _request(self, id: str) -> None:
        role, record = self._role, self._journal.record
        record(Published(at=now(), fate="sent", id=id, publisher=role.name))
        record(Asked(at=now(), id=id, within=WITHIN + SLACK, member=role.name))
        error, told = "", ("", "")
        failed = False
        try:
            told = await self._bus.request(ENDPOINT, id, timeout=WITHIN)
        except MessagingError as raised:
            error = _public(raised)
            failed = isinstance(raised, PublishError) and not isinstance(raised, PublishUncertain)
        record(Published(at=now(), fate="failed" if failed else "uncertain", id=id, publisher=role.name))
        record(Answered(at=now(), id=id, error=error, replied_to=told[0], handling=told[1]))


def _public(error: MessagingError) -> str:
    """Its name, or, of an adapter's own, the name of the documented error that it is."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == MessagingError.__module__)
