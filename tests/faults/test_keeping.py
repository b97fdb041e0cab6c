"""What the store of an idempotent group did is in the journal of the member that asked."""

from __future__ import annotations

import pytest

from messaging.clock import SystemClock
from messaging.errors import ConnectionFailed
from messaging.store import Begun
from messaging_contracts.faults import Journal, Kept, read
from messaging_contracts.faults.keeping import RecordingStore
from messaging_memory.store import MemoryStore

KEY = "staging:orders:billing:m0"


class Away(MemoryStore):
    """Answers no question about what is done."""

    async def complete(self, key, fence, *, result, ttl):
        raise ConnectionFailed("the store is away")


@pytest.mark.parametrize(
    ("inner", "told"),
    [(MemoryStore, ["taken", "done", "repeated"]), (Away, ["taken", "missed"])],
)
async def test_what_the_store_keeps_and_what_is_not_learned_of_it_is_recorded(
    inner, told: list[str], tmp_path
):
    with Journal(tmp_path / "a.jsonl") as journal:
        store = RecordingStore(inner.from_url("memory://", clock=SystemClock()), journal, "a")
        begun = await store.begin(KEY, digest="d", lease=30)
        assert isinstance(begun, Begun)
        assert store.tokens == {"m0": begun.fence}
        try:
            await store.complete(KEY, begun.fence, result=None, ttl=60)
        except ConnectionFailed:
            pass
        else:
            await store.begin(KEY, digest="d", lease=30)
    events = [event for event in read(tmp_path) if isinstance(event, Kept)]
    assert [event.how for event in events] == told
    assert {(event.id, event.group, event.member) for event in events} == {("m0", "billing", "a")}
    assert events[0].token == begun.fence
