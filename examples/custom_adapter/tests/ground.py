"""What the scenarios of `python -m messaging_contracts faults` need to know: how the broker is started and stopped.

There is no server that could be killed, and no network: what is left is members that die, come and go, and handlers.
"""

from __future__ import annotations

import sqlite3
from tempfile import TemporaryDirectory

from messaging_contracts.faults import Ground


class SQLiteGround(Ground):
    name = "sqlite"
    version = sqlite3.sqlite_version
    lease = 3.0
    leaves_out = frozenset(
        (
            "frozen_member",  # SQLite's lock has no lease: a process that is stopped inside a transaction stops all
            "clock_jumps",  # leases are times of day: the processes share the clock of one machine
            "wrong_clocks",
        )
    )

    def start(self) -> None:
        self._folder = TemporaryDirectory()
        self.url = f"sqlite:///{self._folder.name}/messages.db?sync=normal&lease={self.lease:g}"

    def stop(self) -> None:
        self._folder.cleanup()
