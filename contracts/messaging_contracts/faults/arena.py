"""Where a fault is tried: a broker, proxies, publishers and members in processes, and what they wrote down."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from messaging import Bus, MessagingError, PublishUncertain, Settings, connect
from messaging_contracts.faults.history import (
    CONCLUDED,
    REMOVED,
    Answered,
    Begun,
    Buried,
    Ended,
    Event,
    Fate,
    Journal,
    Ousted,
    Published,
    Redriven,
    Seen,
    Struck,
    event_of,
    now,
    read,
)
from messaging_contracts.faults.processes import Child, Inside, Process
from messaging_contracts.faults.proxy import Proxy
from messaging_contracts.faults.role import GROUP, NOTICED, PARTITIONS, TOPICS, TRIES, Role, topic_of
from messaging_contracts.under_test import one_key_per_partition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from messaging_contracts.faults.ground import Ground

T = TypeVar("T")

LOOK = 0.1
"""Seconds between two looks at what other processes wrote: no event tells of it."""


PROBE = 0.5
"""Seconds between two small questions to the broker."""
SLOW = 1.0
"""Seconds after which it, or the machine, is taken to have stood still."""
DISTURBED = "stood still"
BROWSING = 0.5
"""Seconds between two looks at all dead letters."""


class Arena:
    """One broker with publishers and members; an async context manager that ends all processes.

    Every fault that is caused is recorded, so that the checker knows what it may excuse.
    """

    def __init__(self, ground: Ground, folder: Path) -> None:
        self.ground = ground
        self.folder = folder
        self.lease = ground.lease
        self.aftermath = ground.lease + NOTICED
        """Seconds after a fault until which those it hit must have noticed."""
        self.namespace = f"faults-{secrets.token_hex(4)}"
        self.processes: list[Process] = []
        self.journal = Journal(folder / "arena.jsonl")
        self._tail = _Tail(folder)
        self._looks = 0
        self._stack = AsyncExitStack()
        self._observer: Bus | None = None

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self._stack.callback(self.journal.__exit__, None, None, None)
        self._stack.push_async_callback(self._end_all)
        observer = connect(Settings.load(url=self.ground.url, namespace=self.namespace))
        self._observer = await self._stack.enter_async_context(observer)
        for name in TOPICS:
            await self.observer.declare(topic_of(name), groups=[GROUP])
        self._stack.push_async_callback(_end, asyncio.create_task(self._watch()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @property
    def observer(self) -> Bus:
        """A bus of our own that takes no part."""
        assert self._observer is not None
        return self._observer

    # --- processes -----------------------------------------------------------------------------------------------

    def proxy(self) -> Proxy:
        """A proxy to the broker, to be entered."""
        host, port = self.ground.upstream
        return Proxy(host, port, self.ground.proxy_port)

    async def proxied(self) -> Proxy:
        """A running proxy to the broker, ended with the arena."""
        return await self.entered(self.proxy())

    async def entered(self, context: AbstractAsyncContextManager[T]) -> T:
        """What this context gives; it is left with the arena."""
        return await self._stack.enter_async_context(context)

    def through(self, proxy: Proxy) -> str:
        """The broker's URL, with the proxy in its place."""
        return self.ground.through(proxy.port)

    async def start(self, name: str, *, url: str | None = None, **role: Any) -> Process:
        """A process, ready."""
        process = await self.spawn(name, url=url, **role)
        await process.ready()
        return process

    async def spawn(self, name: str, *, url: str | None = None, **role: Any) -> Process:
        """A process, perhaps not ready yet."""
        made = Role(
            name=name,
            journal=str(self.folder / f"{name}.jsonl"),
            namespace=self.namespace,
            lease=self.lease,
            **role,
        )
        url = url or self.ground.url
        process = await Child.spawn(made, url) if "processes" in self.ground.offers else Inside(made, url)
        self.processes.append(process)
        return process

    async def again(self, process: Process, name: str) -> Process:
        """Another process with the same role."""
        role = asdict(replace(process.role, name=name))
        for given in ("name", "journal", "namespace", "lease"):
            del role[given]
        return await self.start(name, url=process.url, **role)

    # --- faults --------------------------------------------------------------------------------------------------

    async def kill(self, process: Process) -> None:
        """Kill -9."""
        process.expected_end = True
        process.signal(signal.SIGKILL)
        await process.ended(10)
        self.died(process)

    def died(self, process: Process) -> None:
        """Its process has ended by itself, or was killed: what it held is lost with it."""
        process.expected_end = True
        self.journal.record(
            Struck(at=now(), kind="killed", member=process.name, fatal=True, aftermath=self.aftermath)
        )

    async def ousted(self, process: Process, within: float = 60) -> None:
        """Wait until it ends by itself with an error that it told, and its health with it.

        Raises AssertionError for anything else.
        """
        process.expected_end = True
        code = await process.ended(within)
        progress = self.progress()
        told, health = progress.ousted, progress.health.get(process.name)
        assert code, f"{process.name} ended with {code}, although its subscription is gone"
        assert process.name in told, f"{process.name} ended with {code} and told no error of its subscription"
        assert health == "red", f"the health of {process.name} was {health} when its subscription was gone"

    async def leave(self, process: Process, within: float = 60) -> None:
        """SIGTERM: it drains and ends, which is no excuse for anything."""
        process.expected_end = True
        process.signal(signal.SIGTERM)
        code = await process.ended(within)
        assert code == 0, f"{process.name} ended with {code} after SIGTERM"

    def struck(
        self,
        kind: str,
        since: float,
        member: Process | None = None,
        *,
        over: float | None = None,
        aftermath: float | None = None,
        seconds: float = 0.0,
        told_by: Sequence[Process] = (),
    ) -> None:
        """Record a fault that was there from `since` until now, or until it was `over`; `seconds` of a clock's jump.

        The health of each of `told_by` that runs has to tell of it.
        """
        self.journal.record(
            Struck(
                at=since,
                kind=kind,
                member=None if member is None else member.name,
                until=now() if over is None else over,
                aftermath=self.aftermath if aftermath is None else aftermath,
                seconds=seconds,
                told_by=tuple(one.name for one in told_by if one.code is None and not one.expected_end),
            )
        )

    # --- progress ------------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """What the journals say by now."""
        return self._tail.progress()

    async def until(self, condition: Callable[[Progress], bool], what: str, within: float) -> Progress:
        """Wait for what the journals are to say. Raises AssertionError after so many seconds."""
        end = now() + within
        while not condition(progress := self.progress()):
            self._check_alive()
            if now() > end:
                raise AssertionError(f"not within {within:g} s: {what}; {progress}")
            await asyncio.sleep(LOOK)
        return progress

    def _check_alive(self) -> None:
        for process in self.processes:
            code = process.code
            if code and not process.expected_end:
                raise AssertionError(f"{process.name} ended with {code}: a restart would have been needed")

    async def sentinels(self) -> None:
        """A last message for every partition: when they are handled, so is what came before them."""
        for name in TOPICS:
            for key in one_key_per_partition(PARTITIONS):
                await self._sentinel(name, key)

    async def _sentinel(self, name: str, key: str) -> None:
        id, key = f"{name}.sentinel.{key}", f"sentinel.{key}"

        def tell(fate: Fate) -> None:
            self.journal.record(Published(at=now(), fate=fate, id=id, key=key, publisher="arena"))

        for _ in range(TRIES):
            tell("sent")
            try:
                await self.observer.publish(topic_of(name), [key, 0], key=key, id=id)
            except PublishUncertain:
                tell("uncertain")
            except MessagingError:
                tell("failed")
            else:
                tell("confirmed")
                return
            await asyncio.sleep(LOOK)
        raise AssertionError(f"{id} could not be published")

    async def lettered(self, within: float) -> None:
        """Wait until all that was rejected, and never handled with success, is a dead letter.

        Raises AssertionError after so many seconds.
        """
        limit = now() + within
        while rejected := self.progress().rejected:
            missing = rejected - await self._letters()
            if not missing:
                return
            if now() > limit:
                raise AssertionError(
                    f"rejected and no dead letter within {within:g} s: {len(missing)}, {sorted(missing)[:5]}"
                )
            await asyncio.sleep(BROWSING)

    async def dead(self) -> int:
        """How many dead letters there are, those that somebody reads included."""
        counts = [await self.observer.dead_letters(topic_of(name), group=GROUP).count() for name in TOPICS]
        return sum(counts)

    async def _letters(self) -> set[str]:
        found: set[str] = set()
        for name in TOPICS:
            found |= {
                one.id async for one in self.observer.dead_letters(topic_of(name), group=GROUP).browse()
            }
        return found

    async def bury(self) -> None:
        """Record the dead letters."""
        self._looks += 1
        for name in TOPICS:
            async for letter in self.observer.dead_letters(topic_of(name), group=GROUP).browse():
                failed = letter.last_failed_at
                self.journal.record(
                    Buried(
                        at=now(),
                        id=letter.id,
                        group=GROUP,
                        reason=letter.reason,
                        cause=letter.cause,
                        attempts=letter.attempts,
                        failed_at=None if failed is None else failed.timestamp() - time.time() + now(),
                        look=self._looks,
                    )
                )

    def events(self) -> Sequence[Event]:
        """All that was written down so far."""
        return read(self.folder)

    async def _watch(self) -> None:
        """Record each time that the broker took too long for a small question, or this process stood still.

        That happens on a machine with too much other work. It hits everybody, and is told in the report.
        """
        while True:
            due = now() + PROBE
            await asyncio.sleep(PROBE)
            await self.observer.health()
            if now() - due > SLOW:
                self.struck(DISTURBED, due)

    async def _end_all(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGKILL)
        await asyncio.gather(*(process.ended(10) for process in self.processes))


async def _end(task: asyncio.Task[None]) -> None:
    """Before the bus that it asks is closed."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Progress:
    """What the journals say, counted."""

    def __init__(self) -> None:
        self.confirmed: dict[str, float] = {}
        """When each message was first confirmed."""
        self.removed = -inf
        """Until when what was confirmed may have been deleted on the broker."""
        self.done: set[str] = set()
        """Handled with success, or found as a dead letter."""
        self._rejected: set[str] = set()
        self.succeeded = 0
        """Handlings that ended with success or a rejection."""
        self.begun: dict[str, Begun] = {}
        self.by_member: dict[str, int] = {}
        self.health: dict[str, str] = {}
        self.ousted: dict[str, str] = {}
        self.redriving = 0
        """How often a dead letter was put back."""
        self.answered = 0
        """Requests that got their reply."""

    def __str__(self) -> str:
        missing = sorted(self.confirmed.keys() - self.done)
        return f"{len(self.confirmed)} confirmed, {len(missing)} of them not done: {missing[:5]}"

    @property
    def all_done(self) -> bool:
        """Whether everything that was confirmed, and not deleted, was handled with success, or is a dead letter."""
        return all(self.confirmed[id] <= self.removed for id in self.confirmed.keys() - self.done)

    @property
    def all_handled(self) -> bool:
        """Whether nothing is left to be handled; what was rejected is perhaps not a dead letter yet."""
        left = self.confirmed.keys() - self.done - self._rejected
        return all(self.confirmed[id] <= self.removed for id in left)

    @property
    def rejected(self) -> set[str]:
        """What was rejected, and neither handled with success nor found as a dead letter so far."""
        return {id for id in self._rejected - self.done if self.confirmed.get(id, -inf) > self.removed}

    def handled(self, member: Process) -> int:
        """How many handlings this member has begun."""
        return self.by_member.get(member.name, 0)

    def add(self, event: Event) -> None:
        if isinstance(event, Published):
            if event.fate == "confirmed":
                self.confirmed.setdefault(event.id, event.at)
        elif isinstance(event, Struck):
            if event.kind == REMOVED and event.until is not None:
                self.removed = max(self.removed, event.until)
        elif isinstance(event, Begun):
            self.begun[event.handling] = event
            self.by_member[event.member] = self.by_member.get(event.member, 0) + 1
        elif isinstance(event, Ended) and event.how in CONCLUDED:
            (self.done if event.how == "succeeded" else self._rejected).add(self.begun[event.handling].id)
            self.succeeded += 1
        elif isinstance(event, Seen):
            self.health[event.member] = event.status
        elif isinstance(event, Ousted):
            self.ousted[event.member] = event.error
        elif isinstance(event, Redriven):
            self.redriving += event.fate == "sent"
        elif isinstance(event, Answered):
            self.answered += not event.error
        elif isinstance(event, Buried):
            self.done.add(event.id)


class _Tail:
    """Reads on in the journals from where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._progress = Progress()

    def progress(self) -> Progress:
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(end)
            for text in whole.splitlines():
                self._progress.add(event_of(text))
        return self._progress
