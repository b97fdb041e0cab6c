"""What the suite leaves to chance: a lease that ends between two looks of the dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging_sqlite.database import Database

if TYPE_CHECKING:
    from pathlib import Path

LEASE = 10.0
GROUP = 1


def test_what_is_taken_is_the_members_for_a_whole_lease(tmp_path: Path) -> None:
    now = 0.0
    database = Database(str(tmp_path / "messages.db"), lambda: now, "normal")
    database.open(now)
    database.create_topic("orders", 1, False, None)
    database.create_group("orders", "billing", False)

    def takes(member: int) -> int:
        found = database.take(member, GROUP, False, 1, (), LEASE)
        assert found is not None
        return len(found[0])

    member = database.join(GROUP, LEASE)
    now += 0.9 * LEASE
    with database.transaction() as run:
        run("INSERT INTO messages (grp, body, stored) VALUES (?, x'', ?)", (GROUP, now))
    assert takes(member) == 1

    other = database.join(GROUP, LEASE)
    now += 0.9 * LEASE
    assert takes(other) == 0

    now += 0.2 * LEASE
    assert takes(other) == 1
    database.close()
