"""Publishing in batches: calls that are under way at the same time share one exchange with the broker.

A call that finds nothing under way goes straight to the adapter; the others gather meanwhile and go together. An
ordered topic has one unconfirmed batch per partition at a time (semantics 7). What is outstanding is bounded, and
callers wait for room (20).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeAlias, cast

from messaging.clock import timeout
from messaging.errors import Closed, PublishError, PublishUncertain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Adapter, Outgoing
    from messaging.clock import Clock
    from messaging.message import Receipt

BATCH = 256
"""Messages in one exchange: larger batches gained nothing on any broker that was measured."""
EXCHANGES = 4
"""Exchanges under way at once."""
OUTSTANDING = 10_000
"""Messages waiting or under way, per broker of a bus."""
PURGE_AFTER = 1000
"""Abandoned messages that may lie in the queues."""

Lane: TypeAlias = "tuple[str, int]"
Result: TypeAlias = "Receipt | PublishError"

_ABANDONED = PublishError("nobody waits for it any more")


class _Call:
    """One `publish` or `publish_many`: its results come together."""

    __slots__ = ("done", "missing", "results")

    def __init__(self, size: int) -> None:
        self.results: list[Result | None] = [None] * size
        self.missing = size
        self.done = asyncio.get_running_loop().create_future()


class _Item:
    __slots__ = ("call", "index", "outgoing", "sent")

    def __init__(self, call: _Call, index: int, outgoing: Outgoing) -> None:
        self.call = call
        self.index = index
        self.outgoing = outgoing
        self.sent = False

    @property
    def open(self) -> bool:
        return self.call.results[self.index] is None

    def finish(self, result: Result) -> None:
        call = self.call
        if call.results[self.index] is None:
            call.results[self.index] = result
            call.missing -= 1
            if not call.missing and not call.done.done():
                call.done.set_result(None)


class Publisher:
    """Hands messages to the adapter in batches. One per broker of a bus."""

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._free: deque[_Item] = deque()
        self._ordered: dict[Lane, deque[_Item]] = {}
        self._busy: set[Lane] = set()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._outstanding = 0
        self._abandoned = 0
        self._room = asyncio.Event()
        self._starting = False
        self._closed = False

    async def publish(self, messages: Sequence[Outgoing], within: float | None) -> Sequence[Result]:
        """One result each, in order, `within` seconds.

        A message that was not handed over by then, or when the call is cancelled, is not sent; one that was has an
        unknown fate: PublishUncertain.
        """
        if not messages:
            return []
        remaining = within
        if self._outstanding >= OUTSTANDING:
            remaining = await self._wait_for_room(within, messages[0])
        call = _Call(len(messages))
        items = [_Item(call, index, outgoing) for index, outgoing in enumerate(messages)]
        self._outstanding += len(items)
        try:
            self._enqueue(items)
            try:
                async with timeout(self._clock, remaining):
                    await call.done
            except TimeoutError:
                for item in items:
                    item.finish(_too_late(item, within))
                self._abandon(items)
            return [result for result in call.results if result is not None]
        finally:
            self._outstanding -= len(items)
            self._room.set()
            if call.missing:
                self._abandon(items)

    async def close(self, within: float) -> None:
        """Refuse new messages, send what waits; after `within` seconds, or when this is cancelled, what waits is not
        sent, and what is under way has an unknown fate.
        """
        self._closed = True
        try:
            async with timeout(self._clock, within):
                while self._exchanges:
                    await asyncio.wait(self._exchanges)
        except TimeoutError:
            pass
        finally:
            for item in [*self._free, *(item for lane in self._ordered.values() for item in lane)]:
                item.finish(_unsent(item, "the bus was closed"))
            for task in self._exchanges:
                task.cancel()
            if self._exchanges:
                await asyncio.wait(self._exchanges)

    async def _wait_for_room(self, within: float | None, first: Outgoing) -> float | None:
        """Returns what is left of `within`."""
        start = self._clock.monotonic()
        try:
            async with timeout(self._clock, within):
                while self._outstanding >= OUTSTANDING:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise PublishError(
                f"Message {first.message.id} for {first.message.topic} was not sent within {within:g} s: "
                f"{self._outstanding} messages wait for the broker's confirmation"
            ) from None
        return None if within is None else max(0.0, within - (self._clock.monotonic() - start))

    def _enqueue(self, items: Sequence[_Item]) -> None:
        if self._closed:
            raise Closed("The bus is closed: nothing can be published any more")
        for item in items:
            outgoing = item.outgoing
            if outgoing.topic.ordered:
                lane = (outgoing.topic.name, outgoing.partition)
                self._ordered.setdefault(lane, deque()).append(item)
            else:
                self._free.append(item)
        self._start_exchange()

    def _start_exchange(self) -> None:
        """One task more, if it would find work. It takes its batch when it runs, with all of this tick's calls."""
        work = self._free or any(lane not in self._busy for lane in self._ordered)
        if work and not self._starting and len(self._exchanges) < EXCHANGES:
            self._starting = True
            task = asyncio.create_task(self._exchange(), name="messaging-publish")
            self._exchanges.add(task)
            task.add_done_callback(self._exchanges.discard)  # of one that never ran; see _exchange

    def _next_batch(self) -> tuple[list[_Item], list[Lane]]:
        batch: list[_Item] = []
        while self._free and len(batch) < BATCH:
            item = self._free.popleft()
            if item.open:
                batch.append(item)
        lanes: list[Lane] = []
        if self._ordered:
            for lane, waiting in list(self._ordered.items()):
                if lane in self._busy or len(batch) >= BATCH:
                    continue
                while waiting and len(batch) < BATCH:
                    item = waiting.popleft()
                    if item.open:
                        batch.append(item)
                        if not lanes or lanes[-1] != lane:
                            lanes.append(lane)
                if not waiting:
                    del self._ordered[lane]
        return batch, lanes

    async def _exchange(self) -> None:
        self._starting = False
        try:
            while True:
                batch, lanes = self._next_batch()
                if not batch:
                    return
                for item in batch:
                    item.sent = True
                self._busy.update(lanes)
                self._start_exchange()
                try:
                    await self._send(batch)
                finally:
                    self._busy.difference_update(lanes)
        finally:
            # At once: what is published before the callbacks of this task run must find room for an exchange.
            self._exchanges.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _send(self, batch: list[_Item]) -> None:
        results: list[tuple[_Item, Result]] = []
        try:
            sent = await self._adapter.publish([item.outgoing for item in batch])
            results = list(zip(batch, sent, strict=True))
        except BaseException as error:
            results = [(item, _uncertain(item, error)) for item in batch]
            if not isinstance(error, Exception):
                raise
        finally:
            for item, result in results:
                item.finish(result)
                if isinstance(result, PublishError) and item.outgoing.topic.ordered:
                    self._fail_successors(item, result)

    def _fail_successors(self, failed: _Item, error: PublishError) -> None:
        """Fail what waits behind a failed message of the same key: sending it would break the order (7)."""
        outgoing = failed.outgoing
        for item in self._ordered.get((outgoing.topic.name, outgoing.partition), ()):
            if item.outgoing.message.key == outgoing.message.key:
                message = item.outgoing.message
                item.finish(
                    PublishError(
                        f"Message {message.id} for {message.topic} was not sent: message {outgoing.message.id}, "
                        f"published before it with the same key, failed: {error}"
                    )
                )

    def _abandon(self, items: Sequence[_Item]) -> None:
        """Nobody waits for these any more: what was not handed over is not sent, and must not pile up here."""
        self._abandoned += sum(not item.sent for item in items)
        for item in items:
            item.finish(_ABANDONED)
        if self._abandoned >= PURGE_AFTER:
            self._abandoned = 0
            self._free = deque(item for item in self._free if item.open)
            for lane, waiting in list(self._ordered.items()):
                self._ordered[lane] = deque(item for item in waiting if item.open)


def _too_late(item: _Item, within: float | None) -> PublishError:
    message = item.outgoing.message
    if item.sent:
        return PublishUncertain(
            f"Message {message.id} for {message.topic} was not confirmed within {within:g} s: "
            "the broker may have it; publish it again with the same id if handlers are idempotent"
        )
    return _unsent(item, f"{within:g} s were over before its turn came")


def _unsent(item: _Item, reason: str) -> PublishError:
    message = item.outgoing.message
    return PublishError(f"Message {message.id} for {message.topic} was not sent: {reason}")


def _uncertain(item: _Item, error: BaseException) -> PublishUncertain:
    message = item.outgoing.message
    return PublishUncertain(f"The fate of message {message.id} for {message.topic} is unknown: {error!r}")
