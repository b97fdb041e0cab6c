"""`python -m messaging_contracts.faults.worker`: a publisher or a member in a process of its own, to be struck.

It is told what to do by one JSON object, the fields of `Role`, and writes what it does to a journal. On its standard
output it says `ready`. SIGUSR1 makes its clock jump, SIGTERM lets it finish in an orderly way. The broker's URL comes
by `MESSAGING_URL`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    fixed,
)
from messaging.app import RESPONDERS
from messaging_contracts.faults.history import (
    Begun,
    Ended,
    Journal,
    Measured,
    Ousted,
    Published,
    Seen,
    Struck,
    now,
)
from messaging_contracts.faults.keeping import RecordingStore
from messaging_contracts.faults.redriving import Redriver
from messaging_contracts.faults.requesting import ENDPOINT, Requester
from messaging_contracts.faults.role import GROUP, NOTICED, TOPICS, TRIES, Controls, Role, topic_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from messaging import Health
    from messaging.store import IdempotencyStore
    from messaging_contracts.faults.history import End, Fate

PATIENCE = 60.0
"""Seconds for which the library may send again what is stored once: longer than any fault lasts."""
TRYING = 180.0
"""Seconds for which a message is published until it is confirmed: a broker may start slowly."""
PROBE = 0.2
"""Seconds between two looks at one's own health, and at the lag of one's own event loop."""


class Worker:
    """What publishers and members share: a bus, a journal, and an eye on its own event loop."""

    def __init__(self, role: Role, bus: Bus, journal: Journal, controls: Controls) -> None:
        self._role = role
        self._bus = bus
        self._journal = journal
        self._controls = controls
        self._stop = controls.stop
        self._handlings = count(1)
        self._timeout = PATIENCE if role.once else 5.0
        """Seconds for one publish."""
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
            # Who leaves is not well, which tells of no fault.
            if health.status != status and not self._stop.is_set():
                status = health.status
                self._tell(health)
            expected = now() + PROBE

    def _tell(self, health: Health) -> None:
        error = health.last_error or ""
        self._journal.record(Seen(at=now(), member=self._role.name, status=health.status, error=error[:200]))

    async def measure(self) -> None:
        """Record at intervals what this process takes."""
        while self._role.measure:
            await asyncio.sleep(self._role.measure)
            memory, files = _taken()
            tasks = len(asyncio.all_tasks())
            self._journal.record(
                Measured(at=now(), member=self._role.name, memory=memory, tasks=tasks, files=files)
            )

    def _strike(self, kind: str, at: float, until: float) -> None:
        self._journal.record(
            Struck(
                at=at, kind=kind, member=self._role.name, until=until, aftermath=self._role.lease + NOTICED
            )
        )

    # --- publishing ----------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Publish all of it, each message until it is confirmed."""
        role = self._role
        each = -(-role.publish // role.publishers)
        topics = [topic for topic in map(topic_of, TOPICS) if not role.once or self._stored_once(topic)]
        async with asyncio.TaskGroup() as tasks:
            for topic in topics:
                for number in range(role.publishers):
                    at_once = role.at_once if number % 2 else 1
                    tasks.create_task(self._publish_key(topic, f"{role.name}.{number}", each, at_once))

    def _stored_once(self, topic: Topic[Any]) -> bool:
        spec = self._bus.catalogue.spec(topic)
        return self._bus.adapter.publishes_once(spec).level != "unsupported"

    async def _publish_key(self, topic: Topic[Any], key: str, least: int, at_once: int) -> None:
        confirmed = 0
        for sequence in count(step=at_once):
            if confirmed >= least and self._stop.is_set():
                return
            if at_once == 1:
                await self._publish_one(topic, key, sequence)
                confirmed += 1
            else:
                confirmed += await self._publish_at_once(topic, key, range(sequence, sequence + at_once))
            await asyncio.sleep(self._role.pace * at_once)

    async def _publish_one(self, topic: Topic[Any], key: str, sequence: int) -> None:
        until = now() + TRYING
        while not await self._try(topic, key, sequence):
            if now() > until:
                raise RuntimeError(f"{topic.name}.{key}.{sequence} could not be published for {TRYING:g} s")
            await asyncio.sleep(0.1)

    async def _publish_at_once(self, topic: Topic[Any], key: str, sequences: Iterable[int]) -> int:
        """How many were confirmed. None is tried again: it would come behind those that were called for after it."""
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(self._try(topic, key, sequence)) for sequence in sequences]
        return sum(call.result() for call in calls)

    async def _try(self, topic: Topic[Any], key: str, sequence: int) -> bool:
        """Whether it was confirmed."""
        id = f"{topic.name}.{key}.{sequence}"
        delay = None if topic.ordered else self._role.delay * (1 + sequence % 4) / 4 or None
        due = None if delay is None else now() + delay

        def tell(fate: Fate) -> None:
            self._journal.record(
                Published(
                    at=now(),
                    fate=fate,
                    id=id,
                    key=key,
                    sequence=sequence,
                    publisher=self._role.name,
                    due=due,
                )
            )

        tell("sent")
        try:
            await self._bus.publish(
                topic, [key, sequence], key=key, id=id, delay=delay, timeout=self._timeout
            )
        except PublishUncertain:
            tell("uncertain")
        except (PublishError, MessagingError):
            tell("failed")
        else:
            tell("confirmed")
            return True
        return False

    # --- handling ------------------------------------------------------------------------------------------------

    async def handle(self) -> None:
        """Be a member of the group on each topic until it is asked to stop."""
        role = self._role
        policy = RetryPolicy(role.attempts, fixed(role.retry_delay))
        app = App(GROUP, retry=policy, idempotent=bool(role.store))
        for name in TOPICS:
            app.subscribe(topic_of(name), concurrency=role.concurrency, prefetch=role.prefetch)(self._handled)
        if role.respond:
            app.respond(ENDPOINT, concurrency=role.concurrency, prefetch=role.prefetch)(self._responded)
        try:
            async with app.running(self._bus):
                self.started = True
                self._controls.ready()
                await self._stop.wait()
        except MessagingError as error:
            if self.started:
                self._tell(await self._bus.health())
                told = f"{type(error).__name__}: {error}"
                self._journal.record(Ousted(at=now(), member=role.name, error=told[:500]))
            raise

    async def _handled(self, payload: Any, delivery: Delivery[Any]) -> None:
        handling = self._begun(delivery, delivery.message.id, GROUP, str(delivery.key), payload[1])
        try:
            await self._work(payload[1], delivery)
        except asyncio.CancelledError:
            self._ended(handling, "cancelled")
            raise
        except Exception:
            exhausted = delivery.attempt >= self._role.attempts
            self._ended(
                handling,
                "rejected" if exhausted else "failed",
                0.0 if exhausted else self._role.retry_delay,
            )
            raise
        self._ended(handling, "succeeded")

    async def _responded(self, request: str, delivery: Delivery[Any]) -> tuple[str, str]:
        handling = self._begun(delivery, request, RESPONDERS)
        try:
            await asyncio.sleep(self._role.work)
        except asyncio.CancelledError:
            self._ended(handling, "cancelled")
            raise
        self._ended(handling, "succeeded")
        return request, handling

    def _begun(
        self, delivery: Delivery[Any], id: str, group: str, key: str | None = None, sequence: int = 0
    ) -> str:
        """What the handling is called."""
        handling = f"{self._role.name}/{next(self._handlings)}"
        self._journal.record(
            Begun(
                at=now(),
                handling=handling,
                id=id,
                group=group,
                member=self._role.name,
                key=key,
                sequence=sequence,
                attempt=delivery.attempt,
                deliveries=delivery.deliveries,
                partition=delivery.partition,
                fence=delivery.fence,
                token=self._token(id),
            )
        )
        return handling

    def _token(self, id: str) -> int:
        store = self._bus.store
        return store.tokens.get(id, 0) if isinstance(store, RecordingStore) else 0

    def _ended(self, handling: str, how: End, after: float = 0.0) -> None:
        self._journal.record(Ended(at=now(), handling=handling, how=how, after=after))

    async def _work(self, sequence: int, delivery: Delivery[Any]) -> None:
        role = self._role
        if role.special and delivery.message.id.endswith(f".{role.special}"):
            await self._special(delivery)
        elif role.work:
            await asyncio.sleep(role.work)
        if role.stuck_key and str(delivery.key) == role.stuck_key and not self._controls.healed:
            raise RuntimeError("this key is stuck")
        failing = role.failing and sequence % role.failing == 0 and not self._controls.healed
        if failing and delivery.attempt == 1:
            raise RuntimeError("the first attempt fails")

    async def _special(self, delivery: Delivery[Any]) -> None:
        role = self._role
        if role.quirk == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if role.quirk == "exit":
            raise SystemExit(3)
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


def _taken() -> tuple[int, int]:
    """Bytes of memory that are resident, and open file descriptors, of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))


async def main(role: Role, url: str, controls: Controls) -> None:
    """Play the role. Raises what ends a member for good."""
    stop = controls.stop
    controls.clock.jump(role.ahead)
    with Journal(Path(role.journal)) as journal:
        settings = Settings.load(
            url=url,
            namespace=role.namespace,
            drain_timeout=role.grace,
            publish_timeout=5.0,
            idempotent_publish=role.once,
            store=role.store or None,
        )

        def recording(store: IdempotencyStore) -> IdempotencyStore:
            return RecordingStore(store, journal, role.name)

        for attempt in count(1):
            bus = Bus(settings, clock=controls.clock, wrap_store=recording)
            worker = Worker(role, bus, journal, controls)
            try:
                async with bus:
                    watching = [asyncio.create_task(one) for one in (worker.watch(), worker.measure())]
                    try:
                        if role.publish:
                            controls.ready()
                            await worker.publish()
                        elif role.ask:
                            controls.ready()
                            await Requester(role, bus, journal, stop).ask()
                        elif role.redrive:
                            controls.ready()
                            await Redriver(bus, journal, stop).redrive()
                        else:
                            await worker.handle()
                    finally:
                        for one in watching:
                            one.cancel()
                        await asyncio.gather(*watching, return_exceptions=True)
                return
            except MessagingError as error:
                # A service that cannot start is started again by whoever runs it; one that runs must go on.
                if attempt >= TRIES or stop.is_set() or worker.started:
                    raise
                logging.getLogger(__name__).warning("%s: %r", role.name, error)
                await asyncio.sleep(0.3)


async def _process(role: Role) -> None:
    """Play the role in a process of its own, controlled by signals."""
    controls = Controls(ready=lambda: os.write(sys.stdout.fileno(), b"ready\n"))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, controls.stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: controls.clock.jump(role.jump))
    loop.add_signal_handler(signal.SIGUSR2, controls.heal)
    # Adapters ask the system for the time, as their brokers do; here the clock that jumps is the system's.
    time.time = controls.clock.time
    orphaned = asyncio.create_task(_end_with(os.getppid()))
    try:
        await main(role, os.environ["MESSAGING_URL"], controls)
    except MessagingError as error:
        logging.getLogger(__name__).warning("%s ends: %r", role.name, error)
        raise SystemExit(1) from None
    finally:
        orphaned.cancel()


async def _end_with(parent: int) -> None:
    """Nobody else ends this process when the one that started it is killed."""
    while True:
        await asyncio.sleep(1)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("MESSAGING_FAULTS_LOG", "CRITICAL"), stream=sys.stderr)
    asyncio.run(_process(Role(**json.loads(sys.argv[1]))))
