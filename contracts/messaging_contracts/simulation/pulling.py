"""A simulated process that consumes by hand, in one group with those that have handlers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from messaging import Ack, LeaseLost, Outcome, Reject, Release, Retry
from messaging.message import seconds
from messaging_contracts.faults import Settled
from messaging_contracts.simulation.process import GROUP, Member

if TYPE_CHECKING:
    from messaging import Delivery
    from messaging.pull import Pull


class PullingMember(Member):
    """A member that takes deliveries and settles them by hand, some at once."""

    async def serve(self) -> None:
        scenario = self.world.scenario
        async with self.bus.consume(self.world.topic, group=GROUP, prefetch=scenario.prefetch) as pull:
            tasks = [asyncio.create_task(self.stopped(), name=f"stop-{self.name}")]
            tasks += [
                asyncio.create_task(self._work(pull), name=f"pull-{self.name}-{number}")
                for number in range(scenario.concurrency)
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            for task in done:
                task.result()

    @property
    def drained(self) -> bool:
        """It interrupts itself, at once."""
        return self._stop.is_set()

    async def _work(self, pull: Pull[Any]) -> None:
        async for delivery in pull:
            name = self.begin(delivery.payload, delivery)
            self.in_hand[delivery.message.id] = None
            outcome = await self._decided(name, delivery)
            with suppress(LeaseLost):  # it comes again, here or elsewhere
                await pull.settle(delivery, outcome)
                self.record(Settled(at=self.now(), handling=name))
            self.in_hand.pop(delivery.message.id, None)
            if not self.alive:  # what it did may have ignored its cancellation
                return

    async def _decided(self, name: str, delivery: Delivery[Any]) -> Outcome:
        """The outcome, recorded before anybody is told of it."""
        try:
            outcome = await self.behave(delivery) or Ack()
        except asyncio.CancelledError:
            self.end(name, "cancelled")
            raise
        except Exception as error:
            outcome = Retry(str(error))
        if isinstance(outcome, Ack):
            self.end(name, "succeeded")
        elif isinstance(outcome, Reject):
            self.end(name, "rejected")
        elif isinstance(outcome, Release):
            self.end(name, "released", seconds(outcome.after or 0.0))
        else:
            self.end(name, "failed", seconds(outcome.after or 0.0))
        return outcome
