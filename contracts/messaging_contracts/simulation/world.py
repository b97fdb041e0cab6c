"""One simulated history from its beginning to its end: publishers, members, upheavals, then calm and the verdict."""

from __future__ import annotations

import asyncio
import gc
import logging
import random as global_random
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import metadata
from itertools import count
from math import inf
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Any

from messaging import Bus, Settings, Topic, subscription
from messaging.adapter import AdapterContext
from messaging.app import RESPONDERS
from messaging.errors import ConnectionFailed
from messaging.subscription import PROGRESS_LEASE
from messaging_contracts.faults import (
    Answered,
    Asked,
    Begun,
    Ended,
    Event,
    History,
    Kept,
    Published,
    Settled,
    Struck,
    Verdict,
    check,
)
from messaging_contracts.faults.history import CONCLUDED, line
from messaging_contracts.simulation.bulk import BulkPublisher
from messaging_contracts.simulation.faults import Faults
from messaging_contracts.simulation.loop import ProcessClock, Stalled, VirtualLoop
from messaging_contracts.simulation.operator import Operator, buried
from messaging_contracts.simulation.process import GROUP, Member
from messaging_contracts.simulation.publisher import Publisher
from messaging_contracts.simulation.pulling import PullingMember
from messaging_contracts.simulation.requested import ENDPOINT, Requested
from messaging_contracts.simulation.requester import Requester
from messaging_contracts.simulation.responder import RespondingMember
from messaging_contracts.simulation.scenario import Scenario, scenario
from messaging_contracts.simulation.store import Outage
from messaging_memory import MemoryAdapter
from messaging_memory.broker import Broker
from messaging_memory.settings import MemorySettings
from messaging_memory.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

PATIENCE = 900.0
"""Virtual seconds in which everything has to be handled once the faults are over."""
RESTS = 2
"""Leases for which members stay when nothing can come any more: who is idle stays a member, and is well."""
MOST_MEMBERS = 4
STARTING = 1.0
"""Virtual seconds after which a member that could not start is started again, where it was the last."""
HELD_UP = 70.0
"""Virtual seconds, beside some leases, until stuck calls and handlers come back, keys of owners that are gone, and
copies with a delay.
"""
_installed = cache(metadata.entry_points)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed. It held when there are neither violations nor problems."""

    seed: int
    scenario: Scenario
    verdict: Verdict
    requests: Verdict
    """On the requests, where there are any."""
    problems: Sequence[str]
    events: Sequence[Event]
    seconds: float
    """Virtual seconds that passed."""

    @property
    def held(self) -> bool:
        """Whether all promises were kept."""
        return not (self.problems or self.violations)

    @property
    def violations(self) -> Mapping[str, Sequence[str]]:
        """What was found, by kind, in what was published and in what was asked."""
        asked = {f"requests: {kind}": lines for kind, lines in self.requests.violations.items()}
        return {**self.verdict.violations, **asked}

    @property
    def digest(self) -> str:
        """The same for the same history."""
        return sha256(b"".join(map(line, self.events))).hexdigest()[:16]


def simulate(seed: int) -> Result:
    """Run the history of this seed; the same seed gives the same history."""
    logger = logging.getLogger("messaging")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # a history provokes what it would tell
    found = metadata.entry_points
    # Reading what is installed for every bus would take most of the time.
    metadata.entry_points = _installed  # type: ignore[assignment]  # it is called the same way
    drawn = scenario(seed)
    subscription.PROGRESS_LEASE = drawn.key_lease
    state = global_random.getstate()
    global_random.seed(seed)  # jitter
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    collecting = gc.isenabled()
    gc.disable()  # when it would end what is forgotten depends on what else the process has done
    gc.freeze()  # what was there before is not looked at
    try:
        problems, events, held_up, asked = _lived(seed, loop)
        gc.collect()  # errors that nobody looked at are told now
        published, requests = _apart(events, asked)
        verdict = check(published, ordered=drawn.ordered, groups=[GROUP], lateness=held_up, over=loop.time())
        answers = check(requests, ordered=False, lateness=held_up)
        return Result(seed, drawn, verdict, answers, tuple(problems), events, loop.time())
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
        asyncio.set_event_loop(None)
        loop.close()
        global_random.setstate(state)
        metadata.entry_points = found
        subscription.PROGRESS_LEASE = PROGRESS_LEASE
        logger.setLevel(level)


def _apart(events: Sequence[Event], asked: Collection[str]) -> tuple[Sequence[Event], Sequence[Event]]:
    """What concerns messages that were published, and what concerns requests; faults concern both."""
    if not asked:
        return events, ()
    handlings = {event.handling for event in events if isinstance(event, Begun) and event.id in asked}
    published: list[Event] = []
    requests: list[Event] = []
    for event in events:
        if isinstance(event, Struck):
            published.append(event)
            requests.append(event)
        elif isinstance(event, Ended | Settled):
            (requests if event.handling in handlings else published).append(event)
        elif isinstance(event, Published | Begun | Kept | Asked | Answered):
            (requests if event.id in asked else published).append(event)
        else:
            published.append(event)
    return published, requests


def _lived(seed: int, loop: VirtualLoop) -> tuple[Sequence[str], Sequence[Event], float, Collection[str]]:
    """The problems, which may still become more, the events, how late a retry may have been, and the requests.

    Nothing else of the world is left.
    """
    world = World(seed, loop)
    problems = world.problems

    def unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that nobody awaited."""
        problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(unhandled)
    try:
        loop.run_until_complete(world.run())
    except Stalled as error:
        world.problem(str(error))
    return problems, world.history.events, world.held_up, world.requests


class _Done(History):
    """A history that knows which messages are done with."""

    def __init__(self) -> None:
        super().__init__()
        self.confirmed: dict[str, float] = {}
        """When the last copy of each expires that is known to be there."""
        self.done: set[str] = set()
        self._handlings: dict[str, str] = {}

    def record(self, event: Event) -> None:
        super().record(event)
        if isinstance(event, Published):
            if event.fate == "confirmed":
                expires = inf if event.expires is None else event.expires
                self.confirmed[event.id] = max(expires, self.confirmed.get(event.id, -inf))
        elif isinstance(event, Ended):
            if event.how in CONCLUDED:
                self.done.add(self._handlings[event.handling])
        elif isinstance(event, Begun):
            self._handlings[event.handling] = event.id

    def open(self, now: float) -> list[str]:
        """What was confirmed, is not done with and has not expired."""
        return [id for id, expires in self.confirmed.items() if id not in self.done and expires > now]


class World:
    """All that one history consists of."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.loop = loop
        self.scenario = scenario(seed)
        self.random = Random(seed + 1)
        self.history = _Done()
        self.faults = Faults(self.random, self.history, self.scenario.faults, self.scenario.lease)
        self.settings = Settings(
            url="memory://",
            store="memory://",
            drain_timeout=self.scenario.grace,
            connect_timeout=60,
            publish_timeout=30,
            idempotent_publish=self.scenario.once,
        )
        self.topic: Topic[Any] = Topic(
            "orders",
            key=itemgetter(0),
            ordered=self.scenario.ordered,
            partitions=self.scenario.partitions,
        )
        self.problems: list[str] = []
        self.members: list[Member] = []
        self.requests: set[str] = set()
        """All that were made."""
        self.requested = Requested()
        self._requester: Requester | None = None
        self.deaths = 0
        self.poison: str | None = None
        self._names = count(1)
        self.looks = count(1)
        """Numbers of looks at the dead letters before the last."""
        self._broker = Broker("simulated", clock=ProcessClock(loop))
        self.store = MemoryStore(clock=ProcessClock(loop))
        self.outage = Outage()

    def problem(self, text: str) -> None:
        """Something that no checker of histories sees."""
        self.problems.append(text)

    def memory(self, clock: ProcessClock) -> MemoryAdapter:
        """A new connection to the one broker of this world."""
        return MemoryAdapter(
            AdapterContext(clock=clock), MemorySettings(lease=self.scenario.lease), broker=self._broker
        )

    async def run(self) -> None:
        """Live through it."""
        observer = Bus(
            self.settings, clock=ProcessClock(self.loop), wrap=lambda _: self.memory(ProcessClock(self.loop))
        )
        async with observer:
            await observer.declare(self.topic, groups=[GROUP])
            if self.scenario.requests is not None:
                await observer.declare(ENDPOINT, groups=[RESPONDERS])
            for _ in range(self.scenario.members):
                self.join()
            upheavals = asyncio.create_task(self._upheave(), name="upheavals")
            publishers = [Publisher(self, f"p{number}") for number in range(self.scenario.publishers)]
            bulks = 0 if self.scenario.bulks is None else self.scenario.bulks.publishers
            publishers += [BulkPublisher(self, f"b{number}") for number in range(bulks)]
            await asyncio.gather(*(publisher.run() for publisher in publishers), self._ask(), self._operate())
            upheavals.cancel()
            await asyncio.wait([upheavals])
            self._calm_down()
            await self._everything_done(observer)
            await self._end(observer)
        await asyncio.sleep(1.0)
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            self.problem(f"tasks are left: {sorted(left)}")

    def join(self) -> None:
        """One member more."""
        often = self.scenario.pulling
        kind = PullingMember if often and self.random.random() < often else Member
        if self.scenario.requests is not None:
            kind = RespondingMember
        self.members.append(kind(self, f"m{next(self._names)}"))

    def start_again(self) -> None:
        """Soon there is a member again."""

        def start() -> None:
            if not self.alive and not self.faults.calm:
                self.join()

        self.loop.call_later(STARTING, start)

    def deserted(self) -> None:
        """If no member is left, nothing is handled for the first time before another is at work."""
        if not self.alive and not self.faults.calm:
            self.history.record(Struck(at=self.loop.time(), kind="nobody is left", ids=()))

    async def _ask(self) -> None:
        """Let requesters live one after the other; the last one stays."""
        if self.scenario.requests is None:
            return
        lives, names = self.scenario.requests.lives, count(1)
        while lives:
            requester = Requester(self, f"r{next(names)}", stays=lives == 1)
            try:
                await requester.open()
            except ConnectionFailed:
                await asyncio.sleep(1.0)
                continue
            lives -= 1
            await requester.run()
            self._requester = requester

    async def _operate(self) -> None:
        if self.scenario.operated:
            await Operator(self, "o").run(self.scenario.operated)

    @property
    def held_up(self) -> float:
        """For how many virtual seconds faults of calls may hold a message up that nothing else does.

        Where connections are cut under calls that are stuck, who gets through loses what it has and begins anew.
        """
        leases = 10 if {"cut", "stuck"} <= self.scenario.faults.keys() else 5
        return HELD_UP + leases * self.scenario.lease

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    async def _upheave(self) -> None:
        kinds = self.scenario.upheavals
        while kinds:
            await asyncio.sleep(self.random.choice((0.1, 1.0, 5.0)) * self.random.random())
            await self._upheaval(self.random.choice(kinds))
            if not self.alive:
                self.join()

    async def _upheaval(self, kind: str) -> None:
        alive = self.alive
        if kind == "join" and len(alive) < MOST_MEMBERS:
            self.join()
        elif kind == "restart":
            self.faults.upheaved_at = self.loop.time()
            self._broker.restart()
        elif kind == "outage":
            at, seconds = self.loop.time(), self.random.uniform(0.0, 2 * self.scenario.lease)
            self.faults.upheaved_at = at + seconds
            self._broker.disconnect()
            try:
                await asyncio.sleep(seconds)
            finally:
                self._broker.reconnect()
                # It excuses what is late; what was lost with it is recorded by itself.
                self.history.record(Struck(at=at, kind="outage", until=self.loop.time(), ids=()))
        elif alive:
            member = self.random.choice(alive)
            if kind == "leave":
                member.stop()
            elif kind == "crash":
                member.crash()
            elif kind == "freeze":
                member.freeze()
                delay = self.random.uniform(0.0, 3 * self.scenario.lease)
                self.loop.call_later(delay, member.thaw)

    def _calm_down(self) -> None:
        self.faults.calm = True
        self._broker.reconnect()
        for member in self.members:
            member.thaw()

    async def _everything_done(self, observer: Bus) -> None:
        deadline = self.loop.time() + PATIENCE
        letters = observer.dead_letters(self.topic, group=GROUP)
        while self.history.open(self.loop.time()) or not await self._at_rest(observer):
            if not self.alive:
                self.join()
            if self.loop.time() > deadline:
                self.problem(
                    f"not done after {PATIENCE:g} s of calm: "
                    f"{self.history.open(self.loop.time())[:5]}; {await observer.groups()}"
                )
                return  # who is not at rest is told at the end
            await asyncio.sleep(1.0)
            self.history.done.update([letter.id async for letter in letters.browse()])
        await asyncio.sleep(RESTS * self.scenario.lease)
        if not await self._at_rest(observer):
            await self._everything_done(observer)

    async def _at_rest(self, observer: Bus) -> bool:
        """Whether nothing can come any more: nothing is on the broker, on a way to it, or with a handler."""
        groups = await observer.groups()
        return (
            bool(self.alive)
            and all(not info.lag and info.oldest is None for info in groups)
            and not self.faults.under_way
            and not any(member.running or member.answering for member in self.members if not member.dead)
            and not [problem async for problem in self._restless()]
        )

    async def _restless(self) -> AsyncGenerator[str]:
        """Which members are not well, or have something."""
        for member in self.alive:
            health = await member.bus.health()
            for one in health.subscriptions:
                if not one.receiving or one.held or one.parked or one.running or health.status == "red":
                    yield f"{member.name} is not at rest: {health}"

    async def _end(self, observer: Bus) -> None:
        if self._requester is not None:
            await self._requester.end()
            async for letter in observer.dead_letters(ENDPOINT.topic, group=RESPONDERS).browse():
                self.problem(f"a request became a dead letter: {letter}")
        async for problem in self._restless():
            self.problem(problem)
        for member in self.members:
            member.stop()
        await asyncio.wait([member.task for member in self.members])
        for info in await observer.groups():
            if info.lag or info.members:
                self.problem(f"left on the broker: {info}")
        async for letter in observer.dead_letters(self.topic, group=GROUP).browse():
            if self.scenario.hold_key and letter.cause == "max_attempts":
                self.problem(f"{letter.id} was given up, although its key is to be held")
            self.history.record(buried(letter, self.loop.time()))
