"""`python -m messaging_contracts.member`: a member of a group in a process of its own, to be killed.

It is told what to do by one JSON object, the fields of `Part`, and tells what it does by one JSON object a line:
`ready`, then `begin` and `end` of each handling, or `receipt` for each message that the broker has confirmed. The
broker's URL comes by `MESSAGING_URL`, not by the command line, where others would read its credentials.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from messaging import App, Bus, Delivery, Reject, RetryPolicy, Topic, connect, fixed

if TYPE_CHECKING:
    from collections.abc import Callable

Behaviour: TypeAlias = Literal["record", "slow", "hang", "poison", "fail_then_hang", "give_up"]

POISON = "poison"
"""The payload of which a member with the behaviour `poison` dies."""


class Tell(Protocol):
    """How a member says what it does."""

    def __call__(self, event: str, **what: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a member is to do."""

    topic: str
    group: str
    partitions: int
    ordered: bool
    behaviour: Behaviour = "record"
    concurrency: int = 4
    prefetch: int = 8
    publish: int = 0
    """Publish so many messages instead."""


async def play(part: Part, bus: Bus, tell: Tell, die: Callable[[], None]) -> None:
    """Do this part until the process is ended; `die` ends it as a crash does."""
    topic: Topic[Any] = Topic(part.topic, ordered=part.ordered, partitions=part.partitions)
    if part.publish:
        for number in range(part.publish):
            receipt = await bus.publish(topic, number)
            tell("receipt", id=receipt.id)
        return
    app = App(part.group, retry=RetryPolicy(3, fixed(0.2)))

    @app.subscribe(topic, concurrency=part.concurrency, prefetch=part.prefetch)
    async def handle(payload: Any, delivery: Delivery[Any]) -> None:
        tell(
            "begin",
            id=delivery.message.id,
            payload=payload,
            key=delivery.key,
            attempt=delivery.attempt,
            deliveries=delivery.deliveries,
            partition=delivery.partition,
            fence=delivery.fence,
        )
        await behave(part.behaviour, delivery, die)
        tell("end", id=delivery.message.id)

    async with app.running(bus):
        tell("ready")
        await asyncio.Event().wait()


async def behave(behaviour: Behaviour, delivery: Delivery[Any], die: Callable[[], None]) -> None:
    """Handle one delivery as the behaviour says."""
    if behaviour in {"slow", "give_up"}:
        await asyncio.sleep(0.02)
    if behaviour == "give_up" and delivery.payload % 2 == 0:
        raise Reject("an even number")
    if behaviour == "give_up" and delivery.attempt == 1:
        raise RuntimeError("the first attempt fails")
    if behaviour == "poison" and delivery.payload == POISON:
        die()
        await asyncio.Event().wait()
    if behaviour == "fail_then_hang" and delivery.attempt == 1:
        raise RuntimeError("the first attempt fails")
    if behaviour in {"hang", "fail_then_hang"}:
        await asyncio.Event().wait()


def tell_parent(event: str, **what: Any) -> None:
    """One line to the process that watches. Written at once, so that a kill loses none that was told."""
    line = json.dumps({"event": event, "at": time.monotonic(), **what}) + "\n"
    os.write(sys.stdout.fileno(), line.encode())


async def main(part: Part) -> None:
    """Be this member until somebody ends the process."""
    async with connect() as bus:
        await play(part, bus, tell_parent, lambda: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    asyncio.run(main(Part(**json.loads(sys.argv[1]))))
