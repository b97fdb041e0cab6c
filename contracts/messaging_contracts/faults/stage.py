"""One fault tried on one broker, from the first process to the verdict."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from messaging.subscription import PROGRESS_LEASE
from messaging_contracts.faults.arena import BROWSING, DISTURBED, Arena
from messaging_contracts.faults.checker import check, recoveries
from messaging_contracts.faults.health import AWAY, untold
from messaging_contracts.faults.history import (
    REMOVED,
    Answered,
    Begun,
    Ended,
    Event,
    Kept,
    Measured,
    Ousted,
    Published,
    Redriven,
    Seen,
    Settled,
    Struck,
    now,
    read,
)
from messaging_contracts.faults.keeping import keeper
from messaging_contracts.faults.redriving import PAGE
from messaging_contracts.faults.requesting import QUOTES
from messaging_contracts.faults.role import GROUP, NOTICED, PREFETCH, TOPICS, topic_of
from messaging_contracts.faults.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from messaging_contracts.faults.ground import Ground, Part, Resource
    from messaging_contracts.faults.processes import Process
    from messaging_contracts.faults.proxy import Proxy

TOLERANCE = 0.05
"""Seconds by which a retry may be early: the broker's clock and a member's are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is published, and how long is waited. Durations in seconds."""

    messages: int
    """To each of the two topics."""
    publishers: int
    """Tasks that publish at once, to each topic."""
    processes: int
    """In which these tasks are."""
    seconds: float
    """Over which the publishing is spread at least, so that a fault meets it."""
    patience: float = 120.0
    """Until everything has to be done with."""


SHORT = Scale(messages=100, publishers=10, processes=1, seconds=1.5, patience=60.0)
QUICK = Scale(messages=300, publishers=15, processes=1, seconds=6)
WHOLE = Scale(messages=5_000, publishers=52, processes=4, seconds=15, patience=240.0)
"""10 000 messages from 100 tasks, which begin at both topics."""
LATENESS = 10.0
"""Seconds by which a message or its retry may be late, once the faults are over and what was sent before it is
handled: in whole runs the latest retry was late by 0.8.
"""
ASKING = 5
"""Tasks of a requester that ask at once."""
PACE = 0.2
"""Seconds between two requests of one of them."""
CALM = 3.0
"""Seconds without dead letters after which none come back from whoever redrives them."""
RESTING = 20.0
"""Seconds for which dead letters may be left that a redrive was cut off from."""
AT_ONCE = 5
"""Messages of one key that are under way together where the order of calls is tried."""
OUTAGE = 5.0
"""Seconds for which a network fault lasts, and for which the network to a broker is gone that a restart would empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one fault did on one broker."""

    fault: str
    broker: str
    version: str
    confirmed: int
    lost: int
    disorder: int
    duplicates: int
    most_duplicates: int
    """What the struck members had received, and what was published again after an unknown fate."""
    overlaps: int
    recovery: float | None
    """The longest that a message waited because of the fault, in seconds; None where none had to."""
    health: str
    """What members told of their health, in the order in which it was first told."""
    violations: Sequence[str]
    duplicate_dead_letters: int | None = None
    """Dead letters beside the first of the same message; None: not counted."""
    seconds: float = 0.0
    """What trying it took."""
    disturbed: int = 0
    """How often the broker or the machine stood still for a second, which may be other work's fault."""
    requests: int = 0
    replies: int = 0
    """How many of them got their reply."""
    request_errors: str = ""
    """What the others got."""
    repeated: int | None = None
    """Deliveries to an idempotent group that were not handled, for their message was; None where there is none."""

    @property
    def held(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations


class Stage:
    """What a fault needs to be staged: members, publishers under load, and the broker."""

    def __init__(self, arena: Arena, scale: Scale) -> None:
        self.arena = arena
        self.ground = arena.ground
        self.scale = scale
        self.lease = arena.lease
        self._publishers: list[Process] = []
        self._fragile: Proxy | None = None

    async def way(self) -> str | None:
        """The URL for members and publishers of a broker that is to be restarted."""
        if "data" in self.ground.offers:
            return None
        return self.arena.through(await self.proxied())

    async def proxied(self) -> Proxy:
        """A proxy, also for a broker that is to be restarted."""
        proxy = await self.arena.proxied()
        if "data" not in self.ground.offers:
            self._fragile = proxy
        return proxy

    def behind(self, proxy: Proxy) -> Sequence[Process]:
        """All that reach the broker through this proxy, and have to tell when they do not."""
        return [one for one in self.arena.processes if one.url == self.arena.through(proxy)]

    async def members(self, number: int, *, url: str | None = None, **role: Any) -> list[Process]:
        """So many members, ready."""
        made = [await self.arena.spawn(f"member-{count}", url=url, **role) for count in range(1, number + 1)]
        for member in made:
            await member.ready()
        return made

    async def store(self) -> str:
        """The URL of an idempotency store of our own: what a member had begun, another may begin after its lease."""
        self.arena.aftermath = max(self.arena.aftermath, PROGRESS_LEASE + NOTICED)
        return await self.arena.entered(keeper())

    async def publish(self, *, url: str | None = None, name: str = "publisher", **role: Any) -> list[Process]:
        """Begin to publish, beside everything else; what else there is to say of how is `Role`'s to explain."""
        scale = self.scale
        each = scale.messages // scale.processes
        tasks = scale.publishers // scale.processes
        begun: list[Process] = []
        for number in range(1, scale.processes + 1):
            publisher = await self.arena.spawn(
                f"{name}-{number}",
                url=url,
                publish=each,
                publishers=tasks,
                pace=scale.seconds * tasks / each,
                **role,
            )
            begun.append(publisher)
        self._publishers += begun
        for publisher in begun:
            await publisher.ready()
        return begun

    async def ask(self, *, url: str | None = None, name: str = "requester") -> Process:
        """Begin to ask the members that respond, beside everything else."""
        requester = await self.arena.start(name, url=url, ask=True, publishers=ASKING, pace=PACE)
        self._publishers.append(requester)
        return requester

    async def redrive(self, *, url: str | None = None) -> Process:
        """Begin to redrive all dead letters, beside everything else."""
        redriver = await self.arena.start("redriver", url=url, redrive=True)
        self._publishers.append(redriver)
        return redriver

    async def redriving(self, more: int) -> None:
        """Wait until so many more dead letters are being put back."""
        seen = self.arena.progress().redriving
        await self.arena.until(
            lambda progress: progress.redriving >= seen + more, f"{more} are redriven", self.scale.patience
        )

    async def redriven(self) -> None:
        """Wait until dead letters are redriven, and for the last of them a while: what a redrive was cut off from."""
        most, begun = PAGE * len(TOPICS), now()
        seen, quiet = -1, now()
        while True:
            left, redriving = await self.arena.dead(), self.arena.progress().redriving
            if left or redriving != seen:
                seen, quiet = redriving, now()
            # What somebody reads is counted on some brokers only.
            if now() > quiet + CALM or (left <= most and now() > begun + RESTING):
                return
            assert now() < begun + self.scale.patience, f"{left} dead letters are left"
            await asyncio.sleep(BROWSING)

    async def answered(self, more: int = 50) -> None:
        """Wait until so many more requests got their replies."""
        seen = self.arena.progress().answered
        await self.arena.until(
            lambda progress: progress.answered >= seen + more,
            f"{more} replies",
            self.scale.patience,
        )

    async def well(self, process: Process) -> None:
        """Wait until its health is green, so that it can tell of a fault."""
        await self.arena.until(
            lambda progress: progress.health.get(process.name) == "green",
            f"{process.name} is well",
            self.scale.patience,
        )

    async def published(self, share: float) -> None:
        """Wait until this share of all messages is confirmed."""
        wanted = share * self.scale.messages * len(TOPICS)
        await self.arena.until(
            lambda progress: len(progress.confirmed) >= wanted, f"{share:.0%} published", self.scale.patience
        )

    async def busy(self, member: Process, more: int = 5) -> None:
        """Wait until this member has begun some more handlings."""
        seen = self.arena.progress().handled(member)
        await self.arena.until(
            lambda progress: progress.handled(member) >= seen + more,
            f"{member.name} handles something",
            self.scale.patience,
        )

    async def restart_broker(self, *, kill: bool, only: Process | None = None) -> None:
        """End the broker, at once or in an orderly way, and start it again with its data.

        One that forgets everything is out of reach instead. `only`: nobody else was there to be hit.
        Health is judged: of all that run.
        """
        since = now()
        if self._fragile is not None:
            await self._fragile.cut()
            await asyncio.sleep(OUTAGE)
            self._fragile.heal()
        else:
            if kill:
                await asyncio.to_thread(self.ground.kill)
                await asyncio.sleep(AWAY)
            await asyncio.to_thread(self.ground.restart)
        hit = self.arena.processes if self._fragile is None else self.behind(self._fragile)
        self.arena.struck("broker killed" if kill else "broker restarted", since, only, told_by=hit)

    async def cut(self, proxy: Proxy, hit: Process, seconds: float = OUTAGE) -> None:
        """Cut all connections through this proxy for so long. Health is judged: of all behind it."""
        since = now()
        await proxy.cut()
        await asyncio.sleep(seconds)
        proxy.heal()
        self.arena.struck("cut", since, hit, told_by=self.behind(proxy))

    @asynccontextmanager
    async def out_of(self, resource: Resource) -> AsyncGenerator[None]:
        """While the body runs, the broker takes nothing more."""
        await asyncio.to_thread(self.ground.exhaust, resource, True)
        try:
            yield
        finally:
            await asyncio.to_thread(self.ground.exhaust, resource, False)

    async def lose(self, part: Part, members: Sequence[Process], *, declared: bool, told: bool) -> None:
        """Delete this on the broker, and wait until it is there again and all members are well.

        `declared`: another program makes it anew, when all members have told of it, and what is confirmed from then
        on must not be lost. Else it may be lost until all is well: who makes it anew does not tell when.
        `told`: the health of each member has to tell of it.
        """
        arena, seconds = self.arena, self.scale.patience
        since, over = now(), None
        await self.ground.remove(arena.observer.native, arena.namespace, part)
        if told:
            enough = all if declared else any  # they make it anew themselves, each when it notices
            await arena.until(
                lambda progress: enough(progress.health.get(one.name) == "red" for one in members),
                f"health tells that the {part} are gone",
                seconds,
            )
        if declared:
            for name in TOPICS:
                await arena.observer.declare(topic_of(name), groups=[GROUP])
            over = now()
        for member in members:
            await self.busy(member)
        await arena.until(
            lambda progress: all(progress.health.get(one.name) == "green" for one in members),
            f"all is well after the {part} were deleted",
            seconds,
        )
        arena.struck(REMOVED, since, over=over, told_by=members if told else ())

    async def all_done(self) -> None:
        """End publishing, and wait until all that was published is done with."""
        for publisher in self._publishers:
            publisher.expected_end = True
            publisher.signal(signal.SIGTERM)
        for publisher in self._publishers:
            code = await publisher.ended(self.scale.patience)
            assert code == 0, f"{publisher.name} ended with {code}"
        await self.arena.until(lambda progress: progress.all_handled, "all is handled", self.scale.patience)

    async def everything_done(self) -> None:
        """Wait until all is published and done with, then until the last message of every partition is."""
        await self.all_done()
        await self.arena.sentinels()
        await self.arena.until(
            lambda progress: progress.all_handled, "the last messages are handled", self.scale.patience
        )
        await self.arena.lettered(self.scale.patience)

    async def finish(self) -> None:
        """Everything is done with, every member well, and each leaves in an orderly way."""
        await self.everything_done()
        alive = [one for one in self.arena.processes if one.code is None and not one.expected_end]
        await self.arena.until(
            lambda progress: all(progress.health.get(one.name) == "green" for one in alive),
            "every member is well again",
            self.scale.patience,
        )
        for member in alive:
            await self.arena.leave(member)
        await self.arena.bury()
        progress = self.arena.progress()
        assert progress.all_done, f"all was handled, and not all is done with: {progress}"


async def stage(
    name: str,
    act: Callable[[Stage], Awaitable[None]],
    ground: Ground,
    scale: Scale,
    folder: Path,
    limit: float,
) -> Row:
    """Try one fault, for `limit` seconds at most; the row says what was found, whatever happened."""
    failed: list[str] = []
    began = now()
    try:
        async with Arena(ground, folder) as arena:
            staged = Stage(arena, scale)
            try:
                async with asyncio.timeout(limit):
                    await act(staged)
                    await staged.finish()
            except TimeoutError:
                failed.append(f"it was not over within {limit:g} s")
            except AssertionError as error:
                failed.append(str(error))
    except Exception as error:
        failed.append(f"{type(error).__name__}: {error}")
    made = row(name, ground, read(folder), failed)
    return replace(made, seconds=now() - began)


def row(name: str, ground: Ground, events: Sequence[Event], failed: Sequence[str]) -> Row:
    """Judge a history."""
    answers = [event for event in events if isinstance(event, Answered)]
    topics = (*TOPICS, QUOTES) if answers else TOPICS
    verdicts = {topic: judged(events, topic, remembers=ground.remembers) for topic in topics}
    most = {topic: most_duplicates(events, topic) for topic in topics}
    violations = list(failed)
    for topic, verdict in verdicts.items():
        try:
            verdict.assert_kept(duplicates=most[topic])
        except AssertionError as error:
            violations.append(f"{topic}: {error}")
    seen = list(dict.fromkeys(event.status for event in events if isinstance(event, Seen)))
    violations += untold(events)
    recovered = [seconds for _, seconds in recoveries(events) if seconds is not None]
    return Row(
        fault=name,
        broker=ground.name,
        version=ground.version,
        confirmed=len({one.id for one in events if isinstance(one, Published) and one.fate == "confirmed"}),
        lost=sum(len(verdict.lost) for verdict in verdicts.values()),
        disorder=sum(
            len(verdict.disorder) + len(verdict.successes_out_of_order) for verdict in verdicts.values()
        ),
        duplicates=sum(verdict.duplicates for verdict in verdicts.values()),
        most_duplicates=sum(most.values()),
        duplicate_dead_letters=sum(verdict.duplicate_dead_letters for verdict in verdicts.values()),
        overlaps=sum(verdict.overlaps_after_lost_leases for verdict in verdicts.values()),
        recovery=max(recovered, default=None),
        health=" ".join(seen),
        violations=tuple(violations),
        disturbed=sum(isinstance(event, Struck) and event.kind == DISTURBED for event in events),
        requests=sum(verdict.requests for verdict in verdicts.values()),
        replies=sum(not one.error for one in answers),
        request_errors=_errors(answers),
        repeated=_repeated(events),
    )


def judged(events: Sequence[Event], topic: str, *, remembers: bool) -> Verdict:
    """The verdict on one of the topics, or on the requests.

    `remembers`: see `Ground`; without order every broker does.
    """
    ordered = topic_of(topic).ordered
    return check(
        of_topic(events, topic),
        ordered=ordered,
        groups=[] if topic == QUOTES else [GROUP],
        tolerance=TOLERANCE,
        lateness=LATENESS,
        remembers=remembers or not ordered,
        answered=True,
    )


def of_topic(events: Sequence[Event], topic: str) -> Sequence[Event]:
    """The part of a history that is about this topic, and all faults."""
    mine: list[Event] = []
    handlings: set[str] = set()
    for event in events:
        if isinstance(event, Struck | Seen | Ousted | Measured):
            mine.append(event)
        elif isinstance(event, Ended | Settled):
            if event.handling in handlings:
                mine.append(event)
        elif event.id.startswith(f"{topic}."):
            mine.append(event)
            if isinstance(event, Begun):
                handlings.add(event.handling)
    return mine


def most_duplicates(events: Sequence[Event], topic: str) -> int:
    """What struck members may have received without settling it, and each publish or redrive of unknown fate.

    A request is never sent again.
    """
    members = {event.member for event in events if isinstance(event, Begun)}
    strikes = sum(
        len(members) if event.member is None else event.member in members
        for event in events
        if isinstance(event, Struck)
    )
    published = [
        event
        for event in events
        if isinstance(event, Published | Redriven) and event.id.startswith(f"{topic}.")
    ]
    again = 0 if topic == QUOTES else sum(event.fate == "uncertain" for event in published)
    return strikes * PREFETCH + again


def _repeated(events: Sequence[Event]) -> int | None:
    kept = [event.how for event in events if isinstance(event, Kept)]
    return kept.count("repeated") if kept else None


def _errors(answers: Sequence[Answered]) -> str:
    numbers = Counter(one.error for one in answers if one.error)
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()))
