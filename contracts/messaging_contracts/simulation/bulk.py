"""A simulated process that publishes many messages in one call, of several keys, some such calls at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, ClassVar

from messaging import PublishError, PublishManyError, PublishUncertain
from messaging.errors import ConnectionFailed
from messaging_contracts.faults import Published
from messaging_contracts.simulation.adapter import FaultyAdapter
from messaging_contracts.simulation.loop import RESOLUTION
from messaging_contracts.simulation.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging import Receipt
    from messaging.adapter import Outgoing
    from messaging.middleware.publishing import PublishHandler, PublishMiddleware
    from messaging_contracts.faults.history import Fate
    from messaging_contracts.simulation.world import World

SINGLE = 0.25
"""How often a message is published by itself, between the calls that publish many."""

APART = (0.0, 0.0037, 0.0413)
"""Seconds after which calls begin that wait behind what is under way; nothing else happens just then."""


class NamingAdapter(FaultyAdapter):
    """Gives what `publish_many` has given a new id the name that its payload tells, which is the same in every run."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        return await super().publish([_named(outgoing) for outgoing in messages])


def _named(outgoing: Outgoing) -> Outgoing:
    _, _, *name = json.loads(outgoing.message.body)
    return replace(outgoing, message=replace(outgoing.message, id=name[0])) if name else outgoing


def passing(handler: PublishHandler) -> PublishHandler:
    """Publish middleware that changes nothing: each message of a call is published by itself."""
    return handler


class BulkPublisher(Publisher):
    """A process whose calls of `publish_many` are told apart from single ones by nothing but how they are made."""

    adapts: ClassVar[type[FaultyAdapter]] = NamingAdapter

    def __init__(self, world: World, name: str) -> None:
        assert world.scenario.bulks is not None, "a history with one has calls"
        self._bulks = world.scenario.bulks
        self._sequences: Counter[str | None] = Counter()
        self._keys: list[str | None] = [f"k{number}" for number in range(world.scenario.keys)]
        if not world.scenario.ordered:
            self._keys.append(None)
        super().__init__(world, name)

    @property
    def publish_middleware(self) -> Sequence[PublishMiddleware]:
        return (passing,) if self._bulks.through else ()

    async def run(self) -> None:
        """Publish everything. What failed is not published again: its order would be another."""
        random = self.world.random
        async with self.bus:
            for _ in range(self._bulks.calls):
                if random.random() < 0.3:
                    await asyncio.sleep(random.choice((0.01, 0.2, 2.0)))
                await asyncio.gather(*(self._call() for _ in range(random.randint(1, self._bulks.at_once))))

    async def _call(self) -> None:
        random = self.world.random
        if self._bulks.apart:
            await asyncio.sleep(random.choice(APART))
        if random.random() < SINGLE:
            await self._once(*self._next())
        else:
            await self._many([self._next() for _ in range(random.randint(1, self._bulks.most))])

    def _next(self) -> tuple[str | None, int]:
        key = self.world.random.choice(self._keys)
        self._sequences[key] += 1
        return key, self._sequences[key]

    async def _many(self, messages: Sequence[tuple[str | None, int]]) -> None:
        random = self.world.random
        delay = self._delay()
        sent = [self._sent(*message, delay) for message in messages]
        for one in sent:
            self._poison(one.id)
            self.record(one)
        within, patience = self._patience(self._bulks.impatience)
        fates: list[Fate]
        payloads = [[one.key, one.sequence, one.id] for one in sent]
        given = iter(payloads) if random.random() < 0.5 else payloads
        longest, begun = min(inf if one is None else one for one in (within, patience)), self.now()
        try:
            async with asyncio.timeout(patience):
                receipts = await self.bus.publish_many(self.world.topic, given, delay=delay, timeout=within)
            fates = self._fates(sent, receipts)
        except PublishManyError as error:
            fates = self._fates(sent, error.results)
            if "failed" not in fates and "uncertain" not in fates:
                self.world.problem(f"{self.name}: {error!r} tells of nothing that failed")
        except (PublishUncertain, TimeoutError):
            fates = ["uncertain"] * len(sent)
        except (PublishError, ConnectionFailed):
            fates = ["failed"] * len(sent)
        for one, fate in zip(sent, fates, strict=True):
            self.record(replace(one, at=self.now(), fate=fate))
        self._explain(fates)
        if self.now() > begun + longest + RESOLUTION:
            self.world.problem(f"{self.name}: a call for {longest:g} s took {self.now() - begun:.3f} s")

    def _fates(self, sent: Sequence[Published], results: Sequence[Receipt | PublishError]) -> list[Fate]:
        """One result for each, in order (20): a receipt names what it is for."""
        fates: list[Fate] = []
        for one, result in zip(sent, results, strict=True):
            if isinstance(result, PublishUncertain):
                fates.append("uncertain")
            elif isinstance(result, PublishError):
                fates.append("failed")
            else:
                fates.append("confirmed")
                if result.id != one.id:
                    self.world.problem(f"{self.name}: the receipt of {one.id} is that of {result.id}")
        return fates

    def _explain(self, fates: Sequence[Fate]) -> None:
        """Where nothing was injected, and nobody is in a hurry, everything is confirmed."""
        scenario = self.world.scenario
        calm = not (scenario.faults or scenario.upheavals or scenario.impatience or self._bulks.impatience)
        if calm and {*fates} != {"confirmed"}:
            self.world.problem(f"{self.name} failed without a cause: {fates}")
