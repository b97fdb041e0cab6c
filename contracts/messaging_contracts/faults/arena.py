"""Where a fault is tried: a broker, proxies, publishers and members in processes, and what they wrote down."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from messaging import Bus, Settings, connect
from messaging_contracts.faults.history import (
    Begun,
    Buried,
    Ended,
    Event,
    Journal,
    Published,
    Seen,
    Struck,
    event_of,
    now,
    read,
)
from messaging_contracts.faults.proxy import LOOPBACK, Proxy
from messaging_contracts.faults.worker import GROUP, PARTITIONS, TOPICS, Role, topic_of
from messaging_contracts.under_test import one_key_per_partition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

LOOK = 0.1
"""Seconds between two looks at what other processes wrote: no event tells of it."""
START = 60.0
"""Seconds in which a process has to be ready, on a machine with other work."""


class Process:
    """A worker in a process of its own."""

    def __init__(self, role: Role, url: str, child: asyncio.subprocess.Process) -> None:
        self.role = role
        self.url = url
        self.expected_end = False
        self._child = child

    @property
    def name(self) -> str:
        return self.role.name

    @property
    def code(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._child.returncode

    async def ready(self) -> None:
        """Wait until it says so. Raises AssertionError where it ends instead."""
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), START)
        assert line == b"ready\n", f"{self.name} said {line!r} and ended with {await self._child.wait()}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing when it has ended."""
        if self.code is None:
            self._child.send_signal(number)

    async def ended(self, within: float) -> int:
        """Its exit status, once it has ended. Raises AssertionError when it does not in time."""
        try:
            return await asyncio.wait_for(self._child.wait(), within)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end within {within:g} s") from None


class Arena:
    """One broker with publishers and members; an async context manager that ends all processes.

    Every fault that is caused is recorded, so that the checker knows what it may excuse.
    """

    def __init__(self, url: str, folder: Path, lease: float) -> None:
        self.url = url
        self.folder = folder
        self.lease = lease
        self.namespace = f"faults-{secrets.token_hex(4)}"
        self.processes: list[Process] = []
        self.journal = Journal(folder / "arena.jsonl")
        self._tail = _Tail(folder)
        self._stack = AsyncExitStack()
        self._observer: Bus | None = None

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self._stack.callback(self.journal.__exit__, None, None, None)
        self._stack.push_async_callback(self._end_all)
        observer = connect(Settings.load(url=self.url, namespace=self.namespace))
        self._observer = await self._stack.enter_async_context(observer)
        for name in TOPICS:
            await self.observer.declare(topic_of(name), groups=[GROUP])
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
        host, port = address_of(self.url)
        return Proxy(host, port)

    async def proxied(self) -> Proxy:
        """A running proxy to the broker, ended with the arena."""
        return await self._stack.enter_async_context(self.proxy())

    def through(self, proxy: Proxy) -> str:
        """The broker's URL, with the proxy in its place."""
        host, port = address_of(self.url)
        return self.url.replace(f"{host}:{port}", f"{LOOPBACK}:{proxy.port}", 1)

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
        url = url or self.url
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "messaging_contracts.faults.worker", json.dumps(asdict(made))),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "MESSAGING_URL": url},
        )
        process = Process(made, url, child)
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
            Struck(at=now(), kind="killed", member=process.name, fatal=True, aftermath=2 * self.lease)
        )

    async def leave(self, process: Process, within: float = 60) -> None:
        """SIGTERM: it drains and ends, which is no excuse for anything."""
        process.expected_end = True
        process.signal(signal.SIGTERM)
        code = await process.ended(within)
        assert code == 0, f"{process.name} ended with {code} after SIGTERM"

    def struck(
        self, kind: str, since: float, member: Process | None = None, *, aftermath: float | None = None
    ) -> None:
        """Record a fault that was there from `since` until now."""
        self.journal.record(
            Struck(
                at=since,
                kind=kind,
                member=None if member is None else member.name,
                until=now(),
                aftermath=2 * self.lease if aftermath is None else aftermath,
            )
        )

    # --- progress ------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[Progress], bool], what: str, within: float) -> Progress:
        """Wait for what the journals are to say. Raises AssertionError after so many seconds."""
        end = now() + within
        while not condition(progress := self._tail.progress()):
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
                id = f"{name}.sentinel.{key}"
                for fate in ("sent", "confirmed"):
                    if fate == "confirmed":
                        await self.observer.publish(topic_of(name), [key, 0], key=f"sentinel.{key}", id=id)
                    self.journal.record(
                        Published(at=now(), fate=fate, id=id, key=f"sentinel.{key}", publisher="arena")
                    )

    async def bury(self) -> None:
        """Record the dead letters."""
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
                        failed_at=None if failed is None else failed.timestamp(),
                    )
                )

    def events(self) -> Sequence[Event]:
        """All that was written down so far."""
        return read(self.folder)

    async def _end_all(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGKILL)
        await asyncio.gather(*(process.ended(10) for process in self.processes))


class Progress:
    """What the journals say, counted."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.done: set[str] = set()
        self.begun: dict[str, Begun] = {}
        self.by_member: dict[str, int] = {}
        self.health: dict[str, str] = {}

    def __str__(self) -> str:
        missing = sorted(self.confirmed - self.done)
        return f"{len(self.confirmed)} confirmed, {len(missing)} of them not done: {missing[:5]}"

    @property
    def all_done(self) -> bool:
        """Whether everything that was confirmed was handled with success, or rejected."""
        return self.confirmed <= self.done

    def handled(self, member: Process) -> int:
        """How many handlings this member has begun."""
        return self.by_member.get(member.name, 0)

    def add(self, event: Event) -> None:
        if isinstance(event, Published):
            if event.fate == "confirmed":
                self.confirmed.add(event.id)
        elif isinstance(event, Begun):
            self.begun[event.handling] = event
            self.by_member[event.member] = self.by_member.get(event.member, 0) + 1
        elif isinstance(event, Ended) and event.how in {"succeeded", "rejected"}:
            self.done.add(self.begun[event.handling].id)
        elif isinstance(event, Seen):
            self.health[event.member] = event.status
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


def address_of(url: str) -> tuple[str, int]:
    """Host and port in a broker's URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None, "the URL of a broker of our own has both"
    return parts.hostname, parts.port
