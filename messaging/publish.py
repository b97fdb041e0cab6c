"""Publishing in batches: calls that are under way at the same time share one exchange with the broker.

A call that finds nothing under way goes straight to the adapter; the others gather meanwhile and go together. An
ordered topic has one unconfirmed batch per partition at a time (semantics 7). What is outstanding is bounded, and
callers wait for room (20). What its broker stores once (`Outgoing.once`) is sent again while its fate is unknown.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from itertools import chain, count
from typing import TYPE_CHECKING, TypeAlias, cast

from messaging.backoff import Backoff
from messaging.clock import sleep, timeout
from messaging.errors import Closed, PublishError, PublishUncertain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from messaging.adapter import Adapter, Outgoing
    from messaging.clock import Clock
    from messaging.message import Key, Receipt

BATCH = 256
"""Messages in one exchange: larger batches gained nothing on any broker that was measured."""
EXCHANGES = 4
"""Exchanges under way at once."""
OUTSTANDING = 10_000
"""Messages waiting or under way, per broker of a bus."""
ONCE_FOR = 240.0
"""Seconds for which every broker that stores a message once knows it again (SQS: five minutes)."""
PURGE_AFTER = 1000
"""Abandoned messages that may lie in the queues."""

Lane: TypeAlias = "tuple[str, int]"
Result: TypeAlias = "Receipt | PublishError"

_ABANDONED = PublishError("nobody waits for it any more")


class _Call:
    """One `publish` or `publish_many`: its results come together."""

    __slots__ = ("admitted", "done", "items", "missing", "results")

    def __init__(self, messages: Sequence[Outgoing], numbers: Iterator[int]) -> None:
        self.results: list[Result | None] = [None] * len(messages)
        self.missing = len(messages)
        self.admitted = False
        self.done = asyncio.get_running_loop().create_future()
        self.items = [_Item(self, index, one, next(numbers)) for index, one in enumerate(messages)]


class _Item:
    __slots__ = ("call", "index", "number", "outgoing", "sent", "uncertain_since")

    def __init__(self, call: _Call, index: int, outgoing: Outgoing, number: int) -> None:
        self.call = call
        self.index = index
        self.number = number
        """Grows in the order of the calls."""
        self.outgoing = outgoing
        self.sent = False
        self.uncertain_since: float | None = None
        """When an attempt first ended with an unknown fate: no later one can say that the broker does not have it."""

    @property
    def open(self) -> bool:
        return self.call.results[self.index] is None


class Publisher:
    """Hands messages to the adapter in batches. One per broker of a bus."""

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._numbers = count()
        self._waiting: OrderedDict[_Call, None] = OrderedDict()
        """Calls that wait for room, in their order: nobody overtakes them."""
        self._free: deque[_Item] = deque()
        self._ordered: dict[Lane, deque[_Item]] = {}
        self._busy: set[Lane] = set()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._outstanding = 0
        self._calls: Counter[str] = Counter()
        """Calls under way for each ordered topic."""
        self._ended = asyncio.Event()
        """One of these has ended."""
        self._abandoned = 0
        self._starting = False
        self._closed = False

    async def publish(self, messages: Sequence[Outgoing], within: float | None) -> Sequence[Result]:
        """One result each, in order, `within` seconds.

        A message that was not handed over by then, or when the call is cancelled, is not sent; one that was has an
        unknown fate: PublishUncertain.
        """
        if not messages:
            return []
        if self._closed:
            raise Closed("The bus is closed: nothing can be published any more")
        call = _Call(messages, self._numbers)
        topic = messages[0].topic.name if messages[0].topic.ordered else None
        if topic is not None:
            self._calls[topic] += 1
        if self._waiting or self._outstanding >= OUTSTANDING:
            self._waiting[call] = None
        else:
            self._admit(call)
        try:
            try:
                async with timeout(self._clock, within):
                    await call.done
            except TimeoutError:
                self._give_up(call, within)
            return [result for result in call.results if result is not None]
        finally:
            if not call.admitted:
                self._waiting.pop(call)
            if call.missing:
                self._abandon(call)
            call.items.clear()  # they know the call: a circle would cost collections of garbage
            if topic is not None:
                self._calls[topic] -= 1
                self._ended.set()

    async def idle(self, topic: str) -> None:
        """Wait until no call for this ordered topic is under way."""
        while self._calls[topic]:
            self._ended.clear()
            await self._ended.wait()
        del self._calls[topic]

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
            waiting = [item for call in self._waiting for item in call.items]
            for item in [*self._free, *chain.from_iterable(self._ordered.values()), *waiting]:
                self._finish(item, _unsent(item, "the bus was closed"))
            for task in self._exchanges:
                task.cancel()
            if self._exchanges:
                await asyncio.wait(self._exchanges)

    def _let_in(self) -> None:
        """Take in the calls that there is room for."""
        while self._waiting and self._outstanding < OUTSTANDING:
            call, _ = self._waiting.popitem(last=False)
            self._admit(call)

    def _admit(self, call: _Call) -> None:
        call.admitted = True
        self._outstanding += call.missing
        for item in call.items:
            if item.open:
                self._enqueue(item)
        self._start_exchange()

    def _enqueue(self, item: _Item) -> None:
        outgoing = item.outgoing
        if outgoing.topic.ordered:
            self._ordered.setdefault((outgoing.topic.name, outgoing.partition), deque()).append(item)
        else:
            self._free.append(item)

    def _finish(self, item: _Item, result: Result) -> None:
        call = item.call
        if call.results[item.index] is None:
            call.results[item.index] = result
            call.missing -= 1
            self._outstanding -= call.admitted
            if not call.missing and not call.done.done():
                call.done.set_result(None)

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
        """One exchange; for what is stored once, as many as it takes while somebody waits for it."""
        backoff = Backoff()
        while batch:
            unknown = await self._attempt(batch)
            if not unknown:
                return
            try:
                await sleep(self._clock, backoff.next())
            except BaseException:
                self._conclude(unknown)
                raise
            batch = self._still_wanted(unknown)

    async def _attempt(self, batch: list[_Item]) -> list[tuple[_Item, PublishError]]:
        """One exchange. What is to be sent again, each with what is known of it; all else is concluded."""
        results: list[tuple[_Item, Result]]
        try:
            sent = await self._adapter.publish([item.outgoing for item in batch])
            results = list(zip(batch, sent, strict=True))
        except BaseException as error:
            results = [(item, _uncertain(item, error)) for item in batch]
            if not isinstance(error, Exception):
                self._conclude(results)
                raise
        unknown = self._unknown(results)
        again = {item for item, _ in unknown}
        self._conclude([one for one in results if one[0] not in again] if again else results)
        return unknown

    def _unknown(self, results: Sequence[tuple[_Item, Result]]) -> list[tuple[_Item, PublishError]]:
        """Those stored once whose fate is unknown, and what was not sent because of one before it."""
        unknown: list[tuple[_Item, PublishError]] = []
        broken: set[Lane] = set()
        for item, result in results:
            outgoing = item.outgoing
            if outgoing.once is None or not isinstance(result, PublishError):
                continue
            if isinstance(result, PublishUncertain) and item.uncertain_since is None:
                item.uncertain_since = self._clock.monotonic()
            lane = outgoing.topic.name, outgoing.partition
            if item.uncertain_since is not None:
                broken.add(lane)
                told = result if isinstance(result, PublishUncertain) else _uncertain(item, result)
                unknown.append((item, told))
            elif outgoing.topic.ordered and lane in broken:
                unknown.append((item, result))
        return unknown

    def _still_wanted(self, unknown: Sequence[tuple[_Item, PublishError]]) -> list[_Item]:
        """What is sent again; concluded is what nobody waits for any more, and of its key what is behind it (7)."""
        wanted: list[_Item] = []
        given_up: list[tuple[_Item, PublishError]] = []
        broken: set[tuple[str, Key | None]] = set()
        known_until = self._clock.monotonic() - ONCE_FOR
        for item, error in unknown:
            topic, since = item.outgoing.topic, item.uncertain_since
            key = topic.name, item.outgoing.message.key
            if item.open and key not in broken and (since is None or since > known_until):
                wanted.append(item)
            else:
                given_up.append((item, error))
                if topic.ordered:
                    broken.add(key)
        self._conclude(given_up)
        return wanted

    def _conclude(self, results: Sequence[tuple[_Item, Result]]) -> None:
        for item, result in results:
            self._finish(item, result)
        self._fail_successors(
            [(item, result) for item, result in results if isinstance(result, PublishError)]
        )
        self._let_in()

    def _fail_successors(self, failed: Sequence[tuple[_Item, PublishError]]) -> None:
        """Fail what waits behind a failed message of the same key: sending it would break the order (7)."""
        first: dict[tuple[str, Key | None], tuple[_Item, PublishError]] = {}
        lanes: dict[Lane, None] = {}
        for item, error in failed:
            topic = item.outgoing.topic
            if topic.ordered:
                first.setdefault((topic.name, item.outgoing.message.key), (item, error))
                lanes[topic.name, item.outgoing.partition] = None
        if not first:
            return
        queued = [item for lane in lanes for item in self._ordered.get(lane, ())]
        for item in chain(queued, *(call.items for call in self._waiting)):
            message = item.outgoing.message
            found = first.get((item.outgoing.topic.name, message.key))
            if found is not None and found[0].number < item.number:
                former = found[0].outgoing.message.id
                self._finish(
                    item,
                    _unsent(
                        item, f"message {former}, published before it with the same key, failed: {found[1]}"
                    ),
                )

    def _give_up(self, call: _Call, within: float | None) -> None:
        """Its time is over."""
        late = [(item, _too_late(item, within)) for item in call.items if item.open]
        for item, error in late:
            self._finish(item, error)
        self._fail_successors([(item, error) for item, error in late if not item.sent])
        self._left(call)

    def _abandon(self, call: _Call) -> None:
        """Nobody waits for these any more: what was not handed over is not sent."""
        for item in call.items:
            self._finish(item, _ABANDONED)
        self._left(call)

    def _left(self, call: _Call) -> None:
        """A call has ended before all of it was sent: the rest must not pile up in the queues."""
        self._abandoned += sum(not item.sent for item in call.items)
        if self._abandoned >= PURGE_AFTER:
            self._abandoned = 0
            self._free = deque(item for item in self._free if item.open)
            for lane, waiting in list(self._ordered.items()):
                self._ordered[lane] = deque(item for item in waiting if item.open)
        self._let_in()


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
