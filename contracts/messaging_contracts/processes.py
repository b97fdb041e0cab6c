"""Members that a case can kill: in processes of their own, or, for a broker that lives in ours, in tasks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from messaging import Bus, Settings, connect
from messaging_contracts.ledger import Handling, Ledger
from messaging_contracts.member import Part, play

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Member(ABC):
    """A member that plays a part, and tells it to the ledger under its name, until it is killed.

    An async context manager: on leaving, it is killed if it still lives.
    """

    def __init__(self, ledger: Ledger, url: str, part: Part, name: str) -> None:
        self.name = name
        self.ready = False
        self.receipts: list[str] = []
        self._ledger = ledger
        self._url = url
        self._part = part
        self._running: dict[str, Handling] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    @abstractmethod
    async def start(self) -> None: ...

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @abstractmethod
    async def kill(self) -> None:
        """End it as a crash does; returns when all that it had told is in the ledger."""

    def _take(self, event: str, at: float, what: dict[str, Any]) -> None:
        if event == "ready":
            self.ready = True
        elif event == "receipt":
            self.receipts.append(what["id"])
        elif event == "begin":
            record = self._running[what["id"]] = Handling(**what, member=self.name, begin=at)
            self._ledger.add(record)
        elif event == "end":
            self._ledger.finish(self._running.pop(what["id"]), "returned", at)
        self._ledger.tell()

    def _died(self) -> None:
        for record in self._running.values():
            self._ledger.finish(record, "died")
        self._running.clear()
        self._ledger.tell()


class MemberProcess(Member):
    """`messaging_contracts.member` as a child."""

    _child: asyncio.subprocess.Process
    _reader: asyncio.Task[None]

    async def start(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "messaging_contracts.member", json.dumps(asdict(self._part))),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "MESSAGING_URL": self._url},
        )
        self._reader = asyncio.create_task(self._read())

    @property
    def alive(self) -> bool:
        return self._child.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing when the process has ended."""
        if self.alive:
            self._child.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self._reader
        await self._child.wait()

    async def _read(self) -> None:
        assert self._child.stdout is not None
        async for line in self._child.stdout:
            what: dict[str, Any] = json.loads(line)
            self._take(what.pop("event"), what.pop("at"), what)
        await self._child.wait()
        self._died()


class MemberTask(Member):
    """The same in a task, where the broker's author says how a bus dies."""

    _task: asyncio.Task[None]

    def __init__(self, ledger: Ledger, url: str, part: Part, name: str, crash: Callable[[Bus], None]) -> None:
        super().__init__(ledger, url, part, name)
        self._crash = crash
        self._bus: Bus | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        return not self._task.done()

    async def kill(self) -> None:
        self._die()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        async with connect(Settings(url=self._url, drain_timeout=0)) as bus:
            self._bus = bus
            await play(self._part, bus, self._tell, self._die)

    def _tell(self, event: str, **what: Any) -> None:
        self._take(event, time.monotonic(), what)

    def _die(self) -> None:
        """What is not settled now never will be: the broker forgets the bus before its tasks are ended."""
        if self._bus is not None and not self._task.done():
            self._crash(self._bus)
        self._task.cancel()
        self._died()
