"""A simulated process that publishes: one message of a key after the other, or some at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from messaging import PublishError, PublishUncertain
from messaging.errors import ConnectionFailed
from messaging_contracts.faults import Published
from messaging_contracts.simulation.loop import RESOLUTION
from messaging_contracts.simulation.process import Process

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate

DELAYS = (0.1, 3.0, 40.0)
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

    async def _once(self, key: str, sequence: int) -> bool:
        """Whether the broker confirmed it."""
        world = self.world
        id = f"{self.name}-{key}-{sequence}"
        if world.scenario.poison and world.poison is None and world.random.random() < 0.2:
            world.poison = id

        delay = self._delay()
        due = None if delay is None else self.now() + delay - RESOLUTION

        def tell(fate: Fate) -> None:
            self.record(
                Published(
                    at=self.now(),
                    fate=fate,
                    id=id,
                    key=key,
                    sequence=sequence,
                    publisher=self.name,
                    due=due,
                )
            )

        tell("sent")
        impatient = world.random.random() < world.scenario.impatience
        within = world.random.choice((0.0, 0.02, 0.2)) if impatient else None
        cancelled = impatient and world.random.random() < 0.5
        try:
            async with asyncio.timeout(world.random.choice((0.0, 0.005, 0.1)) if cancelled else None):
                await self.bus.publish(
                    world.topic, [key, sequence], key=key, id=id, delay=delay, timeout=within
                )
        except (PublishUncertain, TimeoutError):
            tell("uncertain")
            return False
        except (PublishError, ConnectionFailed):
            tell("failed")
            return False
        tell("confirmed")
        return True

    def _delay(self) -> float | None:
        random, often = self.world.random, self.world.scenario.delayed
        return random.choice(DELAYS) if often and random.random() < often else None
