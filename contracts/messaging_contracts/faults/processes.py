"""Publishers and members: each in a process of its own, or, where the broker is in memory, in a task of ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING

from messaging_contracts.faults.role import Controls
from messaging_contracts.faults.worker import main

if TYPE_CHECKING:
    from messaging_contracts.faults.role import Role

START = 60.0
"""Seconds in which a process has to be ready, on a machine with other work."""


class Process(ABC):
    """A worker that can be struck."""

    def __init__(self, role: Role, url: str) -> None:
        self.role = role
        self.url = url
        self.expected_end = False

    @property
    def name(self) -> str:
        return self.role.name

    @property
    @abstractmethod
    def code(self) -> int | None:
        """Its exit status; None while it runs."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until it says so. Raises AssertionError where it ends instead."""

    @abstractmethod
    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing when it has ended."""

    async def ended(self, within: float) -> int:
        """Its exit status, once it has ended. Raises AssertionError when it does not in time."""
        try:
            return await asyncio.wait_for(self._wait(), within)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end within {within:g} s") from None

    @abstractmethod
    async def _wait(self) -> int: ...


class Child(Process):
    """In a process of its own."""

    def __init__(self, role: Role, url: str, child: asyncio.subprocess.Process) -> None:
        super().__init__(role, url)
        self._child = child

    @classmethod
    async def spawn(cls, role: Role, url: str) -> Child:
        """Start it; it is perhaps not ready yet."""
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "messaging_contracts.faults.worker", json.dumps(asdict(role))),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "MESSAGING_URL": url},
        )
        return cls(role, url, child)

    @property
    def code(self) -> int | None:
        return self._child.returncode

    async def ready(self) -> None:
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), START)
        assert line == b"ready\n", f"{self.name} said {line!r} and ended with {await self._child.wait()}"

    def signal(self, number: signal.Signals) -> None:
        if self.code is None:
            self._child.send_signal(number)

    async def _wait(self) -> int:
        return await self._child.wait()


class Inside(Process):
    """In a task of this process, which is the only one that a broker in memory knows."""

    def __init__(self, role: Role, url: str) -> None:
        super().__init__(role, url)
        self._ready = asyncio.Event()
        self._controls = Controls(ready=self._ready.set)
        self._task = asyncio.create_task(main(role, url, self._controls), name=role.name)

    @property
    def code(self) -> int | None:
        if not self._task.done():
            return None
        return 1 if self._task.cancelled() or self._task.exception() is not None else 0

    async def ready(self) -> None:
        waiting = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({waiting, self._task}, timeout=START, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        assert self._ready.is_set(), f"{self.name} ended before it was ready"

    def signal(self, number: signal.Signals) -> None:
        if number == signal.SIGTERM:
            self._controls.stop.set()
        elif number == signal.SIGUSR1:
            self._controls.clock.jump(self.role.jump)
        elif number == signal.SIGUSR2:
            self._controls.heal()
        elif number == signal.SIGKILL:
            self._task.cancel()  # only to clear up: what dies with its process dies with the broker

    async def _wait(self) -> int:
        await asyncio.wait({self._task})
        code = self.code
        assert code is not None
        return code
