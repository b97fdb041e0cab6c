"""A simulated process that publishes: one message of a key after the other, or some at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging import PublishError, PublishUncertain
from messaging.errors import ConnectionFailed
from messaging_contracts.faults import Published
from messaging_contracts.simulation.loop import RESOLUTION
from messaging_contracts.simulation.process import Process

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate

DELAYS = (0.1, 3.0, 40.0)
TIMES = (0.05, 1.0, 10.0, 100.0, 10_000.0)
"""Seconds until what is published expires; before the last are over, everything is done."""
TRIES = 6
"""How often a message that was not confirmed is published again."""


class Publisher(Process):
    """A process that publishes, one message of a key after the other, or some at once."""

    async def run(self) -> None:
        """Publish everything."""
        async with self.bus:
            await asyncio.gather(*(self._lane(f"k{number}") for number in range(self.world.scenario.keys)))

    async def _lane(self, key: str) -> None:
        world = self.world
        sequence = 0
        while sequence < world.scenario.messages:
            if world.random.random() < 0.3:
                await asyncio.sleep(world.random.choice((0.01, 0.2, 2.0)))
            if world.random.random() < world.scenario.burst:
                size = world.random.randint(2, 6)
                await asyncio.gather(*(self._once(key, sequence + step) for step in range(size)))
                sequence += size
            else:
                for _ in range(TRIES):
                    if await self._once(key, sequence):
                        break
                    await asyncio.sleep(world.random.choice((0.0, 0.1, 1.0)))
                sequence += 1

    async def _once(self, key: str | None, sequence: int) -> bool:
        """Whether the broker confirmed it."""
        world = self.world
        self._poison(f"{self.name}-{key}-{sequence}")
        delay = self._delay()
        expires = self._expires(delay)
        sent = self._sent(key, sequence, delay, expires)

        def tell(fate: Fate) -> None:
            self.record(replace(sent, at=self.now(), fate=fate))

        tell("sent")
        within, patience = self._patience(world.scenario.impatience)
        try:
            async with asyncio.timeout(patience):
                await self.bus.publish(
                    world.topic,
                    [key, sequence],
                    key=key,
                    id=sent.id,
                    delay=delay,
                    expires=expires,
                    timeout=within,
                )
        except (PublishUncertain, TimeoutError):
            tell("uncertain")
            return False
        except (PublishError, ConnectionFailed):
            tell("failed")
            return False
        tell("confirmed")
        return True

    def _sent(
        self, key: str | None, sequence: int, delay: float | None, expires: float | None = None
    ) -> Published:
        now = self.now()
        return Published(
            at=now,
            fate="sent",
            id=f"{self.name}-{key}-{sequence}",
            key=key,
            sequence=sequence,
            publisher=self.name,
            due=None if delay is None else now + delay - RESOLUTION,
            expires=None if expires is None else now + expires,
        )

    def _poison(self, id: str) -> None:
        world = self.world
        if world.scenario.poison and world.poison is None and world.random.random() < 0.2:
            world.poison = id

    def _patience(self, impatience: float) -> tuple[float | None, float | None]:
        """The timeout of the call, and after how many seconds it is cancelled."""
        random = self.world.random
        impatient = random.random() < impatience
        within = random.choice((0.0, 0.02, 0.2)) if impatient else None
        cancelled = impatient and random.random() < 0.5
        return within, random.choice((0.0, 0.005, 0.1)) if cancelled else None

    def _expires(self, delay: float | None) -> float | None:
        random, often = self.world.random, self.world.scenario.expiring
        return (delay or 0.0) + random.choice(TIMES) if often and random.random() < often else None

    def _delay(self) -> float | None:
        random, often = self.world.random, self.world.scenario.delayed
        return random.choice(DELAYS) if often and random.random() < often else None
