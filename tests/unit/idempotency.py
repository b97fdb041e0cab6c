"""A store that fails where a test says so, and handlers that it protects."""

from __future__ import annotations

from typing import Any

from messaging.clock import sleep
from messaging.errors import (
    IdempotencyConflict,
)
from messaging.message import Ack, Delivery, Message, Reject, Retry
from messaging.middleware import idempotent
from messaging.store import Begun, Completed, IdempotencyStore, InProgress

LEASE = 30.0
TTL = 3600.0


class Store(IdempotencyStore):
    """Keeps keys in a dict, writes down the calls, and fails or hangs where a test says so."""

    shared = False

    def __init__(self, clock):
        self.clock = clock
        self.entries = {}
        self.calls = []
        self.fences = 0
        self.broken = {}
        self.slow = {}

    @classmethod
    def from_url(cls, url, *, clock):
        return cls(clock)

    async def open(self):
        pass

    async def close(self):
        pass

    async def _called(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name in self.slow:
            await sleep(self.clock, self.slow[name])
        if name in self.broken:
            raise self.broken[name]

    def _ours(self, key, fence):
        return self.entries.get(key, {}).get("fence") == fence

    async def begin(self, key, *, digest, lease, token=""):
        await self._called("begin", key)
        now = self.clock.monotonic()
        entry = self.entries.get(key)
        if entry and entry["until"] > now:
            if entry["digest"] != digest:
                raise IdempotencyConflict(f"{key} was used for another payload")
            return Completed(entry["result"]) if entry["done"] else InProgress(entry["until"] - now)
        self.fences += 1
        self.entries[key] = {"fence": self.fences, "digest": digest, "until": now + lease, "done": False}
        return Begun(self.fences)

    async def extend(self, key, fence, *, lease):
        await self._called("extend", key)
        if self._ours(key, fence):
            self.entries[key]["until"] = self.clock.monotonic() + lease
        return self._ours(key, fence)

    async def complete(self, key, fence, *, result, ttl):
        await self._called("complete", key, result)
        if self._ours(key, fence):
            self.entries[key] |= {"done": True, "result": result, "until": self.clock.monotonic() + ttl}
        return self._ours(key, fence)

    async def clear(self, key, fence):
        await self._called("clear", key)
        if self._ours(key, fence):
            del self.entries[key]

    def count(self, name):
        return sum(call[0] == name for call in self.calls)


def delivery(id="m1", body=b"{}", **values):
    return Delivery({}, message=Message(id=id, topic="orders", body=body, **values), group="billing")


def protect(store, handler, **options) -> Any:
    options = {"scope": "s", "lease": LEASE, "ttl": TTL, "clock": store.clock, "owner": "here", **options}
    return idempotent(store, **options)(handler)


def always(outcome):
    handled = []

    async def handler(delivery):
        handled.append(delivery)
        if isinstance(outcome, BaseException) and not isinstance(outcome, Retry | Reject):
            raise outcome
        return outcome

    handler.handled = handled
    return handler


def taking(clock, seconds):
    async def handler(delivery):
        await sleep(clock, seconds)
        return Ack()

    return handler
