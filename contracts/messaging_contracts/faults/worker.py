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
from dataclasses import dataclass, field
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
from messaging.clock import SystemClock
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from messaging import Health
    from messaging_contracts.faults.history import Fate

Quirk: TypeAlias = Literal["none", "block", "poison", "exit", "stubborn", "slow"]

GROUP = "billing"
TOPICS = ("ordered", "shared")
"""One topic that keeps order and one that does not: every fault is tried on both at once."""
PARTITIONS = 4
PREFETCH = 16
TRIES = 200
NOTICED = 3.0
"""Seconds after the end of a lease within which everybody has noticed it."""
SYSTEM_TIME = time.time
PATIENCE = 60.0
"""Seconds for which the library may send again what is stored once: longer than any fault lasts."""
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
    at_once: int = 1
    """Messages that every second task calls for before any of them has ended: their order must be that of the calls."""
    once: bool = False
    """Publish with `idempotent_publish`, to the topics of which the broker stores a message once."""
    concurrency: int = 8
    prefetch: int = PREFETCH
    work: float = 0.02
    """What one handling takes."""
    failing: int = 0
    """Every so manieth message fails at its first attempt; 0: none."""
    quirk: Quirk = "none"
    """What happens at the message `special`, once, or each time where it is `poison` or `exit`."""
    special: str = ""
    quirk_seconds: float = 10.0
    grace: float = 30.0
    measure: float = 0.0
    """Seconds between two looks at what the process takes; 0: none."""
    ahead: float = 0.0
    """By how much the clock is wrong from the start."""
    jump: float = 0.0
    """By how much the clock jumps at SIGUSR1."""
    stuck_key: str = ""
    """Each message of this key fails until SIGUSR2."""
    attempts: int = 3
    retry_delay: float = 0.2


def topic_of(name: str) -> Topic[Any]:
    """One of `TOPICS`."""
    return Topic(name, ordered=name == "ordered", partitions=PARTITIONS)


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
        for _ in range(TRIES):
            if await self._try(topic, key, sequence):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{topic.name}.{key}.{sequence} could not be published {TRIES} times")

    async def _publish_at_once(self, topic: Topic[Any], key: str, sequences: Iterable[int]) -> int:
        """How many were confirmed. None is tried again: it would come behind those that were called for after it."""
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(self._try(topic, key, sequence)) for sequence in sequences]
        return sum(call.result() for call in calls)

    async def _try(self, topic: Topic[Any], key: str, sequence: int) -> bool:
        """Whether it was confirmed."""
        id = f"{topic.name}.{key}.{sequence}"

        def tell(fate: Fate) -> None:
            publisher = self._role.name
            self._journal.record(
                Published(at=now(), fate=fate, id=id, key=key, sequence=sequence, publisher=publisher)
            )

        tell("sent")
        try:
            await self._bus.publish(topic, [key, sequence], key=key, id=id, timeout=self._timeout)
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
        app = App(GROUP, retry=RetryPolicy(role.attempts, fixed(role.retry_delay)))
        for name in TOPICS:
            app.subscribe(topic_of(name), concurrency=role.concurrency, prefetch=role.prefetch)(self._handled)
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
            exhausted = delivery.attempt >= self._role.attempts
            ended("rejected" if exhausted else "failed", 0.0 if exhausted else self._role.retry_delay)
            raise
        ended("succeeded")

    async def _work(self, sequence: int, delivery: Delivery[Any]) -> None:
        role = self._role
        if role.special and delivery.message.id.endswith(f".{role.special}"):
            await self._special(delivery)
        elif role.work:
            await asyncio.sleep(role.work)
        if role.stuck_key and str(delivery.key) == role.stuck_key and not self._controls.healed:
            raise RuntimeError("this key is stuck")
        if role.failing and sequence % role.failing == 0 and delivery.attempt == 1:
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


class JumpingClock(SystemClock):
    """The system's clock, whose time of day can be changed; what is monotonic never jumps."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self.time: Callable[[], float] = self._time

    def _time(self) -> float:
        return SYSTEM_TIME() + self._ahead

    def jump(self, seconds: float) -> None:
        """Set it forward, or back."""
        self._ahead += seconds


@dataclass(slots=True)
class Controls:
    """How a worker is told what its role leaves open."""

    ready: Callable[[], object]
    """Called when it takes part."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: finish in an orderly way."""
    clock: JumpingClock = field(default_factory=JumpingClock)
    healed: bool = False
    """Whether the stuck key fails no longer."""

    def heal(self) -> None:
        """Let the stuck key go on."""
        self.healed = True


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
        )
        for attempt in count(1):
            bus = connect(settings, clock=controls.clock)
            worker = Worker(role, bus, journal, controls)
            try:
                async with bus:
                    watching = [asyncio.create_task(one) for one in (worker.watch(), worker.measure())]
                    try:
                        if role.publish:
                            controls.ready()
                            await worker.publish()
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
