"""The adapter keeps every promise of the library: this is all that a package of one's own needs to show it."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from messaging_contracts import BrokerContract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from messaging import Bus, Topic


class Foreign:
    """Another program, which knows SQLite and nothing of this library."""

    forgeries: Mapping[str, Any] = {"attempt": "99", "guard": "2", "dead": "1", "ce_partitionkeybase64": "!"}

    def __init__(self, file: Path) -> None:
        self._file = file

    async def publish(
        self,
        bus: Bus,
        topic: Topic[Any],
        body: bytes,
        *,
        headers: Mapping[str, Any],
        content_type: str | None,
    ) -> None:
        del bus  # this program does not use our connection
        with closing(sqlite3.connect(self._file)) as connection, connection:
            connection.execute(
                "INSERT INTO messages (grp, headers, body, content_type, reply_to, stored)"
                " SELECT id, ?, ?, ?, ?, ? FROM groups WHERE topic LIKE ?",
                (
                    json.dumps(dict(headers)),
                    body,
                    content_type,
                    headers.get("messaging-reply-to"),
                    time.time(),
                    f"%{topic.name}",
                ),
            )


class TestSQLite(BrokerContract):
    # SQLite's lock has no lease: a process that is stopped inside a transaction stops all others with it.
    test_a_frozen_member_loses_its_messages_and_spoils_nothing = None
    test_a_woken_member_starts_nothing_that_others_have_handled = None

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "messages.db"

    @pytest.fixture
    def url(self, file: Path) -> str:
        return f"sqlite:///{file}?sync=normal"  # what is proven here does not depend on the disk

    @pytest.fixture
    def short_lease_url(self, url: str) -> str:
        return f"{url}&lease=2"

    @pytest.fixture
    def foreign(self, file: Path) -> Foreign:
        return Foreign(file)
