"""Native brokers: processes in a folder of their own, ended with their starter, in whatever way it ends."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import Broker, BrokerUnavailable, Command, Kind, NotReady, Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOOPBACK = "127.0.0.1"
# Below Linux' ephemeral ports: there, a client that reconnects to a dead broker may connect to itself and
# keep the port.
PORTS = range(15_000, 30_000)
STARTS = 3  # a port that was free may be taken before the broker binds it
# The rest of the starter's environment stays with it: settings meant for another broker, and secrets.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
# How the lines of a program's output begin that are errors, and those that are frames of a stack.
ERRORS = ("ERROR", "[ERROR]", "Error:", "E: ", "Exception in")
FRAMES = ("at ", "... ")
GRACE = 15.0  # seconds from SIGTERM to SIGKILL

# The starter alone holds its stdin open, so it ends with the starter, also by SIGKILL. Each line lists the
# process groups of the moment. PR_SET_PDEATHSIG would not do: it fires when the starting *thread* ends.
WATCHDOG = """
while read -r groups; do current=$groups; done
for group in $current; do kill -9 -"$group" 2>/dev/null; done
rm -rf -- "$1"
"""


def cache() -> Path:
    """The folder for data of brokers: `MESSAGING_CACHE`, else `messaging-ports` in the user's cache."""
    named = os.environ.get("MESSAGING_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "messaging-ports"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    for _ in range(200):
        port = secrets.choice(PORTS)  # seeding `random` must not make two runs collide
        with socket.socket() as probe, suppress(OSError):  # taken: try another
            # As servers bind: a connection of an earlier broker in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return port
    raise BrokerUnavailable(f"no free port between {PORTS.start} and {PORTS.stop} on {LOOPBACK}")


class NativeBroker(Broker):
    """A broker that runs as processes of this machine."""

    def __init__(self, kind: Kind, program: Path, options: Options, timeout: float) -> None:
        self._kind = kind
        self._timeout = timeout
        self._owner = os.getpid()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self.home = Path(tempfile.mkdtemp(prefix=f"{kind.name}-", dir=cache()))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            self.port = free_port()
            self._commands: Sequence[Command] = kind.prepare(program, self.home, self.port, options)
            super().__init__(kind.name, kind.url(LOOPBACK, self.port, options), "", kind.client_environment)
            self._launch()
        except BaseException:  # interrupted, too, it leaves no process
            self.stop()
            raise
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def runs(self) -> bool:
        """Whether there is a process of the server, paused or not."""
        return self._server.poll() is None

    @property
    def command(self) -> Command:
        """What runs the server: its tools want the same environment."""
        return self._commands[-1]

    def stop(self) -> None:
        # A forked child that exits must not end its parent's broker.
        if self._stopped or os.getpid() != self._owner:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        # The data go with it, so there is nothing to be orderly about.
        for process in self._processes:
            _end(process)
        self._processes.clear()
        assert self._watchdog.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._watchdog.stdin.write(b"\n")
            self._watchdog.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it ends with this process at the latest
            self._watchdog.wait(GRACE)
        shutil.rmtree(self.home, ignore_errors=True)

    def kill(self) -> None:
        _end(self._server)
        self._tell_watchdog()

    def restart(self) -> None:
        if self._stopped:
            raise BrokerUnavailable(f"this {self.name} was stopped and its data removed; start another one")
        if self._server.poll() is None:
            self.resume()
            self._server.terminate()
            with suppress(subprocess.TimeoutExpired):  # then it is killed below
                self._server.wait(GRACE)
        _end(self._server)
        self._launch()

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)
        # Until the last of its threads stands still, the others answer.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def watch(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the server.

        :raises EndedEarly: it ended; the text says why, in the server's words
        """
        with suppress(subprocess.TimeoutExpired):  # it has not ended
            code = self._server.wait(seconds)
            said = what_went_wrong(self._log.read_text(errors="replace"))
            raise EndedEarly(f"{self.name} ended with status {code}: {said}")

    @property
    def _log(self) -> Path:
        return self.home / "output.log"

    @property
    def _server(self) -> subprocess.Popen[bytes]:
        return self._processes[-1]

    def _launch(self) -> None:
        """Run what does not run yet, in order, and wait until the broker serves."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        running = [process for process in self._processes if process.poll() is None]
        for command in self._commands[len(running) :]:
            with self._log.open("ab") as output:
                process = subprocess.Popen(
                    command.arguments,
                    env={**inherited, **command.environment},
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            running.append(process)
            self._processes = running
            self._tell_watchdog()
        self.version = wait_until_ready(
            self.name,
            lambda limit: self._kind.version(self.url, limit),
            self.watch,
            self._timeout,
        )

    def _tell_watchdog(self) -> None:
        groups = " ".join(str(process.pid) for process in self._processes if process.poll() is None)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{groups}\n".encode())
        self._watchdog.stdin.flush()


def start_native(kind: Kind, program: Path, options: Options, timeout: float) -> NativeBroker:
    """Start a broker of one's own; returns when it serves.

    :raises BrokerUnavailable: it did not serve within `timeout` seconds, or ended
    """
    for _ in range(STARTS - 1):
        with suppress(EndedEarly):  # another program may have taken its port meanwhile
            return NativeBroker(kind, program, options, timeout)
    return NativeBroker(kind, program, options, timeout)


class EndedEarly(BrokerUnavailable):
    """The broker's process ended before it served."""


def wait_until_ready(
    name: str, ask: Callable[[float], str], pause: Callable[[float], None], timeout: float
) -> str:
    """Ask until there is an answer, pausing between two questions; returns the answer.

    :raises BrokerUnavailable: no answer within `timeout` seconds
    """
    deadline = time.monotonic() + timeout
    interval = 0.02
    while True:
        try:
            return ask(max(0.1, min(2.0, deadline - time.monotonic())))
        except PermissionError:
            raise
        except (OSError, NotReady) as error:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{name} did not serve within {timeout:g} s: {error}") from None
        pause(interval)
        interval = min(interval * 1.5, 0.2)


def what_went_wrong(output: str) -> str:
    """The line of a program's output that tells most: the innermost cause, else the first error, else the last
    line that is no frame of a stack.
    """
    lines = [line for line in map(str.strip, output.splitlines()) if line and not line.startswith(FRAMES)]
    causes = (line for line in reversed(lines) if line.startswith("Caused by:"))
    errors = (line for line in lines if line.startswith(ERRORS))
    return next(causes, None) or next(errors, None) or (lines[-1] if lines else "it said nothing")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group at once, and wait for it."""
    with suppress(ProcessLookupError):  # it has just ended
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
