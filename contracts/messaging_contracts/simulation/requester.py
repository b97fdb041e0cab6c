"""A simulated process that asks: some requests at once, each with a time of its own, and one more when all is calm."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from messaging import PublishError, RemoteError
from messaging.errors import Closed, MessagingError, PublishUncertain
from messaging_contracts.faults import Answered, Asked, Published
from messaging_contracts.faults.replies import CANCELLED
from messaging_contracts.simulation.loop import RESOLUTION
from messaging_contracts.simulation.process import Process
from messaging_contracts.simulation.requested import ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from messaging_contracts.simulation.world import World

TIMES = (0.02, 0.5, 3.0, 20.0)
"""Seconds that a request may take."""
IN_CALM = 60.0
"""Seconds in which a request is answered when nothing is broken and nothing else is to be done."""
LOST = frozenset({"cut", "restart", "outage"})
CAUSES: Mapping[str, Collection[str]] = {
    "ConnectionFailed": LOST | {"inbox_fails", "inbox_moves", "declare_fails"},
    "PublishError": {"publish_refused", "publish_partly"},
    "PublishUncertain": LOST | {"publish_uncertain", "publish_partly", "publish_raises"},
    "NoGroup": (),
}
"""Errors that nobody gets where none of these faults was injected."""
TELLING = re.compile(r"<(\S+) (\S+)>")
"""What a responder's error says: the request, and the handling."""


def telling(request: str, handling: str) -> str:
    """The text of a responder's error, for `TELLING`."""
    return f"<{request} {handling}>"


class Requester(Process):
    """`run` asks, `end` asks in calm and leaves. One that does not stay leaves while it waits for replies."""

    def __init__(self, world: World, name: str, *, stays: bool) -> None:
        super().__init__(world, name)
        self._stays = stays
        self._leaving = False
        self._number = 0
        self._ends: dict[str, int] = {}
        """How many requests ended with each error, or with none."""

    async def open(self) -> None:
        """Raises ConnectionFailed: a service would end, and be started again."""
        await self.bus.__aenter__()

    async def run(self) -> None:
        """Ask everything, or leave before."""
        requests = self.world.scenario.requests
        assert requests is not None, "a history with a requester has requests"
        lanes = [
            asyncio.create_task(self._lane(requests.each, requests.impatience), name=f"{self.name}-{number}")
            for number in range(requests.at_once)
        ]
        if not self._stays:
            await asyncio.wait(lanes, timeout=self.world.random.choice((0.01, 0.2, 2.0)))
            await self._close()
        await asyncio.gather(*lanes)

    async def end(self) -> None:
        """Once all is calm and done: ask once more, and leave."""
        error = await self._ask(IN_CALM, None)
        if error:
            self.world.problem(f"{self.name} asked when all was calm, and got {error}")
        self._count_replies()
        await self._close()

    async def _close(self) -> None:
        self._leaving = True
        await self.bus.__aexit__(None, None, None)

    async def _lane(self, number: int, impatience: float) -> None:
        random = self.world.random
        for _ in range(number):
            if random.random() < 0.3:
                await asyncio.sleep(random.choice((0.01, 0.2, 2.0)))
            impatient = random.random() < impatience
            await self._ask(random.choice(TIMES), random.choice((0.0, 0.01, 0.3)) if impatient else None)
            if self._leaving:
                return

    async def _ask(self, within: float, patience: float | None) -> str:
        """The name of the error that it ended with; `patience` is after how many seconds it is cancelled."""
        self._number += 1
        name = f"{self.name}-{self._number}"
        self.world.requests.add(name)
        self.world.requested.begun(name, self.now() + within)
        longest = within if patience is None else min(within, patience)
        self.record(Published(at=self.now(), fate="sent", id=name, publisher=self.name))
        self.record(Asked(at=self.now(), id=name, within=longest, member=self.name))
        until = self.now() + within - RESOLUTION
        error, told = "", ("", "")
        failed = False
        try:
            async with asyncio.timeout(patience):
                told = await self.bus.request(ENDPOINT, name, timeout=within)
        except MessagingError as raised:
            error = type(raised).__name__
            failed = isinstance(raised, PublishError) and not isinstance(raised, PublishUncertain)
            if isinstance(raised, RemoteError) and (found := TELLING.search(raised.remote_message)):
                told = (found[1], found[2])
            if (
                self.now() < until
            ):  # else its time is over, and nothing has to explain that it was not published
                self._explain(name, raised)
        except TimeoutError:
            error = CANCELLED
        self.world.requested.over(name)
        self._ends[error] = self._ends.get(error, 0) + 1
        self.record(Published(at=self.now(), fate="failed" if failed else "uncertain", id=name))
        self.record(Answered(at=self.now(), id=name, error=error, replied_to=told[0], handling=told[1]))
        return error

    def _explain(self, name: str, error: MessagingError) -> None:
        """An error that nothing explains which was injected is a problem."""
        scenario = self.world.scenario
        kind = type(error).__name__
        injected = {*scenario.faults, *scenario.upheavals}
        if not self._leaving and (
            isinstance(error, Closed) or (kind in CAUSES and injected.isdisjoint(CAUSES[kind]))
        ):
            self.world.problem(f"{name} failed without a cause: {error!r}")

    def _count_replies(self) -> None:
        """Whatever arrived was somebody's, or was counted as late; who got both a reply and an error got the error."""
        arrived = sum(inbox.arrived for inbox in self.adapter.inboxes)
        late = self.bus.broker(ENDPOINT).requester.late
        answered = self._ends.get("", 0) + self._ends.get("RemoteError", 0)
        failed = sum(self._ends.values()) - answered
        if not answered <= arrived - late <= answered + failed:
            self.world.problem(
                f"{self.name}: {arrived} replies arrived, {answered} requests were answered, {failed} failed, "
                f"{late} replies were counted as late"
            )
