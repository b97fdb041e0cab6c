"""The idempotency store of one process (23)."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from messaging.errors import ConfigurationError, IdempotencyConflict
from messaging.store import BeginResult, Begun, Completed, IdempotencyStore, InProgress
from messaging_memory.settings import read_name

if TYPE_CHECKING:
    from messaging.clock import Clock

ABANDONED = 86_400.0
"""Seconds after the end of its lease in which the owner of a key may still complete it."""


SPARE_ENDS = 64
"""Ends of keys that were cleared, extended or completed since, before they are thrown away."""


class _State:
    """In progress for `token` until `until`, or done until then."""

    __slots__ = ("digest", "done", "fence", "result", "token", "until")

    def __init__(self, digest: str, fence: int, until: float, token: str) -> None:
        self.digest = digest
        self.token = token
        self.fence = fence
        self.until = until
        self.done = False
        self.result: bytes | None = None


class _Table:
    """The keys of one name, for all stores of the process that say it."""

    def __init__(self) -> None:
        self.states: dict[str, _State] = {}
        self.ends: list[tuple[float, str]] = []
        self.fences = count(1)
        """One series for all keys: a key that was cleared or forgotten never sees a fence again."""
        self.users = 0


class MemoryStore(IdempotencyStore):
    """See `messaging.store.IdempotencyStore`. `memory://name` is shared while a store is open."""

    shared = False

    _tables: ClassVar[dict[str, _Table]] = {}

    def __init__(self, name: str = "", *, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._table = _Table()
        self._open = False

    @classmethod
    def from_url(cls, url: str, *, clock: Clock) -> MemoryStore:
        form = "the URL of a memory store is memory:// or memory://name, without options"
        name, query = read_name(url, form)
        if query:
            raise ConfigurationError(form)
        return cls(name, clock=clock)

    async def open(self) -> None:
        if self._open:
            return
        self._open = True
        if self._name:
            self._table = self._tables.setdefault(self._name, self._table)
        self._table.users += 1

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._table.users -= 1
        if self._table.users == 0 and self._tables.get(self._name) is self._table:
            del self._tables[self._name]

    async def begin(self, key: str, *, digest: str, lease: float, token: str = "") -> BeginResult:
        now = self._clock.monotonic()
        self._forget(now)
        table = self._table
        state = table.states.get(key)
        if state is not None:
            if state.digest != digest:
                raise IdempotencyConflict(
                    f"idempotency key {key!r} was used before for another payload: two different messages must "
                    f"not share a key"
                )
            if state.done:
                return Completed(state.result)
            if token and state.token == token:
                state.until = now + lease
                self._put(key, state)
                return Begun(state.fence)
            if state.until > now:
                return InProgress(state.until - now)
        fence = next(table.fences)
        self._put(key, _State(digest, fence, now + lease, token))
        return Begun(fence)

    async def extend(self, key: str, fence: int, *, lease: float) -> bool:
        state = self._own(key, fence)
        if state is None:
            return False
        state.until = self._clock.monotonic() + lease
        self._put(key, state)
        return True

    async def complete(self, key: str, fence: int, *, result: bytes | None, ttl: float) -> bool:
        state = self._own(key, fence)
        if state is None:
            return False
        state.done = True
        state.result = result
        state.until = self._clock.monotonic() + ttl
        self._put(key, state)
        return True

    async def clear(self, key: str, fence: int) -> None:
        if self._own(key, fence) is not None:
            del self._table.states[key]

    def _own(self, key: str, fence: int) -> _State | None:
        """The state, if the fence is still the newest; a lease that ended is ours until another takes it."""
        state = self._table.states.get(key)
        return state if state is not None and state.fence == fence and not state.done else None

    def _put(self, key: str, state: _State) -> None:
        table = self._table
        table.states[key] = state
        heappush(table.ends, (_end_of(state), key))
        if len(table.ends) > 2 * len(table.states) + SPARE_ENDS:
            table.ends = [(_end_of(one), name) for name, one in table.states.items()]
            heapify(table.ends)

    def _forget(self, now: float) -> None:
        """Forget what is over, a little with every key that begins."""
        table = self._table
        while table.ends and table.ends[0][0] <= now:
            _, key = heappop(table.ends)
            state = table.states.get(key)
            if state is not None and _end_of(state) <= now:
                del table.states[key]


def _end_of(state: _State) -> float:
    """When the key may be forgotten."""
    return state.until if state.done else state.until + ABANDONED
