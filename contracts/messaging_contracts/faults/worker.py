"""`python -m messaging_contracts.faults.worker`: a publisher or a member in a process of its own, to be struck.

It is told what to do by one JSON object, the fields of `Role`, and writes what it does to a journal. On its standard
output it says `ready`. SIGTERM lets it finish in an orderly way. The broker's URL comes by `MESSAGING_URL`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging import (
    App,
    Bus,
    Delivery,
    MessagingError,
    PublishError,
    PublishUncertain,
    RetryPolicy,
    Settings,
    Topic,
    connect,
    fixed,
)
from messaging_contracts.faults.history import Begun, Ended, Journal, Published, Seen, Struck, now

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate

Quirk: TypeAlias = Literal["none", "block", "poison", "stubborn", "slow"]

GROUP = "billing"
TOPICS = ("ordered", "shared")
"""One topic that keeps order and one that does not: every fault is tried on both at once."""
PARTITIONS = 4
PREFETCH = 16
ATTEMPTS = 3
RETRY_DELAY = 0.2
TRIES = 200
PROBE = 0.2
"""Seconds between two looks at one's own health, and at the lag of one's own event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a process is to do. Durations in seconds."""

    name: str
    journal: str
    namespace: str
    lease: float
    publish: int = 0
    """Publish so many messages to each topic, and then more until SIGTERM, instead of handling."""
    publishers: int = 10
    """Tasks that publish at once, to each topic, each with a key of its own."""
    pace: float = 0.0
    """Between two messages of one task."""
    concurrency: int = 8
    prefetch: int = PREFETCH
    work: float = 0.02
    """What one handling takes."""
    failing: int = 0
    """Every so manieth message fails at its first attempt; 0: none."""
    quirk: Quirk = "none"
    """What happens at the message `special`, once, or each time where it is `poison`."""
    special: str = ""
    quirk_seconds: float = 10.0
    grace: float = 30.0


def topic_of(name: str) -> Topic[Any]:
    """One of `TOPICS`."""
    return Topic(name, ordered=name == "ordered", partitions=PARTITIONS)


class Worker:
    """What publishers and members share: a bus, a journal, and an eye on its own event loop."""

    def __init__(self, role: Role, bus: Bus, journal: Journal, stop: asyncio.Event) -> None:
        self._role = role
        self._bus = bus
        self._journal = journal
        self._stop = stop
        self._handlings = count(1)
        self.started = False

    async def watch(self) -> None:
        """Record each change of the health that is told, and each time that this process stood still too long.

        A process that gets no processor loses its leases as a frozen one does: a cause, wherever it comes from.
        """
        status = ""
        expected = now() + PROBE
        while True:
            await asyncio.sleep(PROBE)
            late = now() - expected
            if late > self._role.lease / 4:
                self._strike("stood still", expected, now())
            health = await self._bus.health()
            if health.status != status:
                status = health.status
                error = health.last_error or ""
                self._journal.record(Seen(at=now(), member=self._role.name, status=status, error=error[:200]))
            expected = now() + PROBE

    def _strike(self, kind: str, at: float, until: float) -> None:
        self._journal.record(
            Struck(at=at, kind=kind, member=self._role.name, until=until, aftermath=2 * self._role.lease)
        )

    # --- publishing ----------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Publish all of it, each message until it is confirmed."""
        role = self._role
        each = -(-role.publish // role.publishers)
        async with asyncio.TaskGroup() as tasks:
            for name in TOPICS:
                for number in range(role.publishers):
                    tasks.create_task(self._publish_key(topic_of(name), f"{role.name}.{number}", each))

    async def _publish_key(self, topic: Topic[Any], key: str, least: int) -> None:
        for sequence in count():
            if sequence >= least and self._stop.is_set():
                return
            await self._publish_one(topic, key, sequence)
            await asyncio.sleep(self._role.pace)

    async def _publish_one(self, topic: Topic[Any], key: str, sequence: int) -> None:
        id = f"{topic.name}.{key}.{sequence}"

        def tell(fate: Fate) -> None:
            publisher = self._role.name
            self._journal.record(
                Published(at=now(), fate=fate, id=id, key=key, sequence=sequence, publisher=publisher)
            )

        for _ in range(TRIES):
            tell("sent")
            try:
                await self._bus.publish(topic, [key, sequence], key=key, id=id, timeout=5)
            except PublishUncertain:
                tell("uncertain")
            except (PublishError, MessagingError):
                tell("failed")
            else:
                tell("confirmed")
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{id} could not be published {TRIES} times")

    # --- handling ------------------------------------------------------------------------------------------------

    async def handle(self) -> None:
        """Be a member of the group on each topic until it is asked to stop."""
        role = self._role
        app = App(GROUP, retry=RetryPolicy(ATTEMPTS, fixed(RETRY_DELAY)))
        for name in TOPICS:
            app.subscribe(topic_of(name), concurrency=role.concurrency, prefetch=role.prefetch)(self._handled)
        async with app.running(self._bus):
            self.started = True
            say("ready")
            await self._stop.wait()

    async def _handled(self, payload: Any, delivery: Delivery[Any]) -> None:
        handling = f"{self._role.name}/{next(self._handlings)}"
        self._journal.record(
            Begun(
                at=now(),
                handling=handling,
                id=delivery.message.id,
                group=GROUP,
                member=self._role.name,
                key=str(delivery.key),
                sequence=payload[1],
                attempt=delivery.attempt,
                deliveries=delivery.deliveries,
                partition=delivery.partition,
                fence=delivery.fence,
            )
        )

        def ended(how: Any, after: float = 0.0) -> None:
            self._journal.record(Ended(at=now(), handling=handling, how=how, after=after))

        try:
            await self._work(payload[1], delivery)
        except asyncio.CancelledError:
            ended("cancelled")
            raise
        except Exception:
            exhausted = delivery.attempt >= ATTEMPTS
            ended("rejected" if exhausted else "failed", 0.0 if exhausted else RETRY_DELAY)
            raise
        ended("succeeded")

    async def _work(self, sequence: int, delivery: Delivery[Any]) -> None:
        role = self._role
        if role.special and delivery.message.id.endswith(f".{role.special}"):
            await self._special(delivery)
        elif role.work:
            await asyncio.sleep(role.work)
        if role.failing and sequence % role.failing == 0 and delivery.attempt == 1:
            raise RuntimeError("the first attempt fails")

    async def _special(self, delivery: Delivery[Any]) -> None:
        role = self._role
        if role.quirk == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if delivery.deliveries > 1 or delivery.attempt > 1:
            return
        if role.quirk == "block":
            start = now()
            time.sleep(role.quirk_seconds)  # noqa: ASYNC251  a handler that blocks the event loop is the fault
            self._strike("blocked its event loop", start, now())
        elif role.quirk == "slow":
            await asyncio.sleep(role.quirk_seconds)
        elif role.quirk == "stubborn":
            await self._ignore_cancellation(role.quirk_seconds)

    async def _ignore_cancellation(self, seconds: float) -> None:
        until = now() + seconds
        while (left := until - now()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue


def say(word: str) -> None:
    """One line to the process that watches."""
    os.write(sys.stdout.fileno(), f"{word}\n".encode())


async def main(role: Role) -> None:
    """Play the role."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with Journal(Path(role.journal)) as journal:
        settings = Settings.load(namespace=role.namespace, drain_timeout=role.grace, publish_timeout=5.0)
        for attempt in count(1):
            bus = connect(settings)
            worker = Worker(role, bus, journal, stop)
            try:
                async with bus:
                    watching = asyncio.create_task(worker.watch())
                    try:
                        if role.publish:
                            say("ready")
                            await worker.publish()
                        else:
                            await worker.handle()
                    finally:
                        watching.cancel()
                        await asyncio.gather(watching, return_exceptions=True)
                return
            except MessagingError as error:
                # A service that cannot start is started again by whoever runs it; one that runs must go on.
                if attempt >= TRIES or stop.is_set() or worker.started:
                    raise
                logging.getLogger(__name__).warning("%s: %r", role.name, error)
                await asyncio.sleep(0.3)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("MESSAGING_FAULTS_LOG", "CRITICAL"), stream=sys.stderr)
    asyncio.run(main(Role(**json.loads(sys.argv[1]))))
