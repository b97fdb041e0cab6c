"""What is in the file: one row per message and group. Every method is one transaction, on the adapter's thread.

A member of a group is a row with a lease. What it holds is its own while the lease lasts; whoever looks after that
gives all of it back at once. Of an ordered group a row is handed over only when no earlier row of its key is with
another member or waits for its time: so a key has one member at a time, and needs no partition with an owner.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from messaging.adapter import GroupInfo, Outgoing, Unrouted
from messaging.envelope import decode, encode
from messaging.errors import ConfigurationError, ConnectionFailed, NoGroup, PublishError, TopicNotFound
from messaging.failed_keys import FailedKeys
from messaging.message import Ack, Message, Receipt, Reject, Release, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from messaging.adapter import Settlement, TopicSpec

PREFIX = "ce_"
"""Of the attributes among the stored headers."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INT, ordered INT, retention REAL);
CREATE TABLE IF NOT EXISTS groups (
    id INTEGER PRIMARY KEY, topic TEXT, name TEXT, ordered INT, fence INT DEFAULT 0, UNIQUE (topic, name)
);
CREATE TABLE IF NOT EXISTS generations (
    topic TEXT, number INT, partitions INT, ordered INT, PRIMARY KEY (topic, number)
);
CREATE TABLE IF NOT EXISTS ended (topic TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS finished (grp INT, partition INT, PRIMARY KEY (grp, partition));
CREATE TABLE IF NOT EXISTS members (id INTEGER PRIMARY KEY AUTOINCREMENT, grp INT, until REAL);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    grp INT NOT NULL,
    partition INT NOT NULL DEFAULT 0,
    key TEXT,
    headers TEXT NOT NULL DEFAULT '{}',
    body BLOB NOT NULL,
    content_type TEXT,
    reply_to TEXT,
    stored REAL NOT NULL,
    attempt INT NOT NULL DEFAULT 1,
    deliveries INT NOT NULL DEFAULT 0,
    returns INT NOT NULL DEFAULT 0,
    guard INT NOT NULL DEFAULT 0,
    failure TEXT,
    due REAL NOT NULL DEFAULT 0,
    owner INT,
    dead INT NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting ON messages (grp, dead, id);
CREATE INDEX IF NOT EXISTS lanes ON messages (grp, key, id);
CREATE INDEX IF NOT EXISTS held ON messages (owner);
CREATE TABLE IF NOT EXISTS inboxes (address TEXT PRIMARY KEY, until REAL);
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY, address TEXT, headers TEXT, body BLOB, content_type TEXT
);
"""
READY = """
    SELECT id FROM messages m WHERE grp = :grp AND dead = 0 AND owner IS NULL AND due <= :now
    AND partition NOT IN (SELECT value FROM json_each(:paused))
    AND NOT EXISTS (
        SELECT 1 FROM messages p WHERE :ordered AND p.grp = m.grp AND p.key = m.key AND p.id < m.id AND p.dead = 0
        AND (p.due > :now OR (p.owner IS NOT NULL AND p.owner <> :member))
    )
    ORDER BY id LIMIT :room
"""
ALONE, TRIPPED = 1, 2
"""Values of the column `guard` (3)."""
REPLY_LEASE = 60.0
"""Seconds for which an inbox is kept whose process no longer asks for its replies."""
POLL = 0.02
"""Seconds between two looks at the file: SQLite tells other processes nothing."""


class Database:
    """One connection to the file. `time` is `Clock.time`, which the processes of a machine share.

    Leases are reckoned inside their transaction: it may have waited for another process to write.
    """

    def __init__(self, path: str, time: Callable[[], float], sync: str) -> None:
        self._path = path
        self._sync = sync
        self._time = time
        self._connection: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ConnectionFailed(f"the SQLite file {self._path} is not open")
        return self._connection

    def open(self, now: float) -> None:
        """Raises ConnectionFailed."""
        try:
            self._connection = sqlite3.connect(
                self._path, timeout=5, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {self._sync}")
            self._connection.executescript(SCHEMA)
            with self.transaction() as run:
                run("DELETE FROM inboxes WHERE until <= ?", (now,))
                run("DELETE FROM replies WHERE address NOT IN (SELECT address FROM inboxes)")
        except sqlite3.Error as error:
            self.close()
            raise ConnectionFailed(f"the SQLite file {self._path} cannot be opened: {error}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Generator[Any]:
        """All or nothing, on disk when it ends. Raises ConnectionFailed for what SQLite raises."""
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection.execute
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConnectionFailed(f"the SQLite file {self._path} failed: {error}") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    # --- topics and groups ---------------------------------------------------------------------------------------

    def topic(self, name: str) -> sqlite3.Row | None:
        return self._one("SELECT * FROM topics WHERE name = ?", name)

    def group(self, topic: str, name: str) -> sqlite3.Row | None:
        return self._one("SELECT * FROM groups WHERE topic = ? AND name = ?", topic, name)

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self.connection.execute(query, values).fetchone()
        return found

    def create_topic(self, name: str, partitions: int, ordered: bool, retention: float | None) -> None:
        """One that exists stays as it is."""
        with self.transaction() as run:
            run("INSERT OR IGNORE INTO topics VALUES (?, ?, ?, ?)", (name, partitions, ordered, retention))

    def create_group(self, topic: str, name: str, ordered: bool) -> None:
        """One that exists stays as it is."""
        with self.transaction() as run:
            run(
                "INSERT OR IGNORE INTO groups (topic, name, ordered) VALUES (?, ?, ?)", (topic, name, ordered)
            )

    def delete_group(self, topic: str, name: str) -> None:
        with self.transaction() as run:
            for (group,) in run(
                "SELECT id FROM groups WHERE topic = ? AND name = ?", (topic, name)
            ).fetchall():
                run("DELETE FROM messages WHERE grp = ?", (group,))
                run("DELETE FROM members WHERE grp = ?", (group,))
                run("DELETE FROM finished WHERE grp = ?", (group,))
                run("DELETE FROM groups WHERE id = ?", (group,))

    def infos(self, topics: Mapping[str, TopicSpec], now: float) -> list[GroupInfo]:
        """The groups of these topics, by the file's name for each."""
        rows = self.connection.execute(
            """
            SELECT topic, name, ordered,
                (SELECT count(*) FROM members m WHERE m.grp = g.id AND until > :now) AS members,
                (SELECT count(*) FROM messages m WHERE m.grp = g.id AND dead = 0 AND owner IS NULL) AS lag,
                (SELECT count(*) FROM messages m WHERE m.grp = g.id AND dead = 1) AS dead,
                (SELECT min(stored) FROM messages m WHERE m.grp = g.id AND dead = 0) AS stored
            FROM groups g WHERE topic IN (SELECT value FROM json_each(:topics))
            """,
            {"now": now, "topics": json.dumps(list(topics))},
        )
        return [
            GroupInfo(
                topic=topics[row["topic"]].name,
                group=row["name"],
                lag=row["lag"],
                members=row["members"],
                dead_letters=row["dead"],
                oldest=None if row["stored"] is None else max(0.0, now - row["stored"]),
                generation=topics[row["topic"]].generation,
                ordered=bool(row["ordered"]),
            )
            for row in rows
        ]

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(
        self, messages: Sequence[tuple[str, Outgoing]], now: float
    ) -> tuple[list[Receipt | PublishError], int]:
        """Store each, with the file's name of its topic, once for each group; and how many a retention has dropped."""
        results: list[Receipt | PublishError] = []
        dropped = 0
        with self.transaction() as run:
            for name in {name for name, _ in messages}:
                dropped += run(
                    """
                    DELETE FROM messages WHERE dead = 0 AND owner IS NULL AND stored < ? - (
                        SELECT retention FROM topics WHERE name = ?
                    ) AND grp IN (SELECT id FROM groups WHERE topic = ?)
                    """,
                    (now, name, name),
                ).rowcount
            failed = FailedKeys()
            for name, outgoing in messages:
                result = failed.behind(outgoing) or self._publish(run, name, outgoing, now)
                if isinstance(result, PublishError):
                    failed.add(outgoing, result)
                results.append(result)
        return results, dropped

    def _publish(self, run: Any, name: str, outgoing: Outgoing, now: float) -> Receipt | PublishError:
        message = outgoing.message
        if self.topic(name) is None:
            return TopicNotFound(f"message {message.id} was not published: there is no topic {message.topic}")
        position: str | None = None
        for (group,) in run("SELECT id FROM groups WHERE topic = ?", (name,)).fetchall():
            position = self._insert(run, group, outgoing.partition, message, now, reply_to=outgoing.reply_to)
        if position is None and outgoing.mandatory:
            return NoGroup(f"message {message.id} was not published: no group takes topic {message.topic}")
        return (Unrouted if position is None else Receipt)(message.id, outgoing.partition, position)

    def _insert(
        self,
        run: Any,
        group: int,
        partition: int,
        message: Message,
        now: float,
        *,
        reply_to: str | None = None,
        failure: str | None = None,
    ) -> str:
        headers = encode(message, prefix=PREFIX)
        key = headers.get(PREFIX + "partitionkey", headers.get(PREFIX + "partitionkeybase64"))
        inserted = run(
            "INSERT INTO messages (grp, partition, key, headers, body, content_type, reply_to, stored, failure)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                group,
                partition,
                key,
                json.dumps(headers),
                message.body,
                message.content_type,
                reply_to,
                now,
                failure,
            ),
        )
        return str(inserted.lastrowid)

    # --- consuming -----------------------------------------------------------------------------------------------

    def join(self, group: int, seconds: float) -> int:
        with self.transaction() as run:
            until = self._time() + seconds
            return int(run("INSERT INTO members (grp, until) VALUES (?, ?)", (group, until)).lastrowid)

    def take(
        self,
        member: int,
        group: int,
        ordered: bool,
        room: int,
        paused: Collection[int],
        seconds: float,
    ) -> tuple[list[sqlite3.Row], int, bool] | None:
        """Rows that are this member's for a whole lease, the fence, and whether its lease was renewed.

        None when it is no member any more.
        """
        now = self._time()
        query = {
            "member": member,
            "grp": group,
            "ordered": ordered,
            "room": room,
            "paused": json.dumps(list(paused)),
            "now": now,
        }
        alive = self._one("SELECT until FROM members WHERE id = ?", member)
        expired = self._one("SELECT 1 FROM members WHERE until <= ?", now)
        if alive and not expired and self.connection.execute(READY, query).fetchone() is None:
            renewed = alive["until"] - now < seconds / 2 and not self._one(
                "SELECT 1 FROM messages WHERE owner = ?", member
            )
            if renewed:
                self.extend(member, seconds)  # of one that holds nothing, nobody else does it
            return [], 0, renewed
        with self.transaction() as run:
            self._expire(run, self._time())
            renewed = run("UPDATE members SET until = ? WHERE id = ?", (self._time() + seconds, member))
            if not renewed.rowcount:
                return None
            ids = json.dumps([row["id"] for row in run(READY, query)])
            run(
                "UPDATE messages SET owner = ?, deliveries = deliveries + 1"
                " WHERE id IN (SELECT value FROM json_each(?))",
                (member, ids),
            )
            run("UPDATE groups SET fence = fence + 1 WHERE id = ?", (group,))
            (fence,) = run("SELECT fence FROM groups WHERE id = ?", (group,)).fetchone()
            rows = run(
                "SELECT * FROM messages WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id", (ids,)
            ).fetchall()
            return rows, fence, True

    def _expire(self, run: Any, now: float) -> None:
        """Members whose lease has ended are gone; what they held comes back, and that is counted (2, 3)."""
        run(
            "UPDATE messages SET owner = NULL, returns = returns + 1, guard = iif(guard = ?, ?, guard)"
            " WHERE owner IN (SELECT id FROM members WHERE until <= ?)",
            (ALONE, TRIPPED, now),
        )
        run("DELETE FROM members WHERE until <= ?", (now,))

    def settle(
        self, settlements: Sequence[tuple[int, int, Settlement]], ordered: bool, now: float
    ) -> list[bool]:
        """Of each row and its owner: False where the row has another owner by now."""
        with self.transaction() as run:
            return [self._settle(run, row, owner, one, ordered, now) for row, owner, one in settlements]

    def _settle(
        self, run: Any, row: int, owner: int, settlement: Settlement, ordered: bool, now: float
    ) -> bool:
        mine, outcome = (row, owner), settlement.outcome
        due = now + settlement.after if settlement.after > 0 else 0
        # A member of an ordered group keeps what has to wait: given back, its key's next one would overtake it (7).
        keeper = owner if ordered else None
        if isinstance(outcome, Ack):
            changed = run("DELETE FROM messages WHERE id = ? AND owner = ?", mine)
        elif isinstance(outcome, Reject):
            changed = run(
                "UPDATE messages SET dead = 1, owner = NULL, due = 0, failure = ? WHERE id = ? AND owner = ?",
                (settlement.failure, *mine),
            )
        elif isinstance(outcome, Retry):
            changed = run(
                "UPDATE messages SET attempt = ?, failure = ?, returns = 0, guard = 0, due = ?, owner = ?"
                " WHERE id = ? AND owner = ?",
                (settlement.delivery.attempt + 1, settlement.failure, due, keeper, *mine),
            )
        else:
            assert isinstance(outcome, Release)
            changed = run(
                "UPDATE messages SET guard = 0, due = ?, owner = ? WHERE id = ? AND owner = ?",
                (due, keeper, *mine),
            )
        return bool(changed.rowcount)

    def extend(self, member: int, seconds: float) -> set[int]:
        """The rows that are still the member's."""
        with self.transaction() as run:
            run("UPDATE members SET until = ? WHERE id = ?", (self._time() + seconds, member))
            return {row["id"] for row in run("SELECT id FROM messages WHERE owner = ?", (member,))}

    def isolate(self, row: int, owner: int) -> bool:
        with self.transaction() as run:
            mine = (ALONE, row, owner)
            return bool(run("UPDATE messages SET guard = ? WHERE id = ? AND owner = ?", mine).rowcount)

    def leave(self, member: int) -> None:
        """What it held goes back uncounted."""
        with self.transaction() as run:
            run("UPDATE messages SET owner = NULL, guard = 0 WHERE owner = ?", (member,))
            run("DELETE FROM members WHERE id = ?", (member,))

    # --- dead letters --------------------------------------------------------------------------------------------

    def count_dead(self, group: int) -> int:
        (number,) = self.connection.execute(
            "SELECT count(*) FROM messages WHERE grp = ? AND dead = 1", (group,)
        ).fetchone()
        return int(number)

    def last_dead(self, group: int) -> int:
        row = self._one("SELECT max(id) AS last FROM messages WHERE grp = ? AND dead = 1", group)
        return 0 if row is None or row["last"] is None else int(row["last"])

    def dead(self, group: int, after: int, last: int, limit: int) -> list[sqlite3.Row]:
        return self.connection.execute(
            "SELECT * FROM messages WHERE grp = ? AND dead = 1 AND id > ? AND id <= ? ORDER BY id LIMIT ?",
            (group, after, last, limit),
        ).fetchall()

    def redrive(
        self, group: int, letters: Sequence[tuple[int, int, Message, str | None]], now: float
    ) -> list[bool]:
        """Each from its row to the tail of the group, to a partition; False for a row that is gone."""
        with self.transaction() as run:
            results: list[bool] = []
            for row, partition, message, failure in letters:
                taken = run("DELETE FROM messages WHERE id = ? AND dead = 1", (row,)).rowcount
                if taken:
                    self._insert(run, group, partition, message, now, failure=failure)
                results.append(bool(taken))
            return results

    def purge(self, rows: Sequence[int]) -> int:
        with self.transaction() as run:
            return int(
                run(
                    "DELETE FROM messages WHERE dead = 1 AND id IN (SELECT value FROM json_each(?))",
                    (json.dumps(list(rows)),),
                ).rowcount
            )

    # --- replies -------------------------------------------------------------------------------------------------

    def open_inbox(self, address: str, now: float) -> None:
        with self.transaction() as run:
            run("INSERT OR REPLACE INTO inboxes VALUES (?, ?)", (address, now + REPLY_LEASE))

    def close_inbox(self, address: str) -> None:
        with self.transaction() as run:
            run("DELETE FROM inboxes WHERE address = ?", (address,))
            run("DELETE FROM replies WHERE address = ?", (address,))

    def reply(self, replies: Sequence[tuple[str, Message]], now: float) -> None:
        """One whose inbox is gone is dropped."""
        with self.transaction() as run:
            for address, message in replies:
                run(
                    "INSERT INTO replies (address, headers, body, content_type)"
                    " SELECT address, ?, ?, ? FROM inboxes WHERE address = ? AND until > ?",
                    (
                        json.dumps(encode(message, prefix=PREFIX)),
                        message.body,
                        message.content_type,
                        address,
                        now,
                    ),
                )

    def take_replies(self, address: str, limit: int, now: float) -> list[sqlite3.Row]:
        inbox = self._one("SELECT until FROM inboxes WHERE address = ?", address)
        fresh = inbox is not None and inbox["until"] > now + REPLY_LEASE / 2
        if fresh and self._one("SELECT 1 FROM replies WHERE address = ?", address) is None:
            return []
        with self.transaction() as run:
            run("INSERT OR REPLACE INTO inboxes VALUES (?, ?)", (address, now + REPLY_LEASE))
            rows = run(
                "SELECT * FROM replies WHERE address = ? ORDER BY id LIMIT ?", (address, limit)
            ).fetchall()
            run(
                "DELETE FROM replies WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps([row["id"] for row in rows]),),
            )
            return list(rows)


def same(what: str, name: str, said: object, recorded: object) -> None:
    """Raises ConfigurationError naming both where the program and the file's record differ (16)."""
    if said != recorded:
        raise ConfigurationError(
            f"{what} was created with {name}={recorded!r}, and this program asks for {name}={said!r}: use the "
            "recorded value, or another name"
        )


def message_of(row: sqlite3.Row, topic: str) -> Message:
    """The message in a row, whoever wrote it."""
    return decode(
        json.loads(row["headers"]),
        prefix=PREFIX,
        topic=topic,
        body=row["body"],
        position=str(row["id"]),
        content_type=row["content_type"],
    )
