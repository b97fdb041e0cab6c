"""What waits for an exchange with the broker, and what is under way.

A call that finds nothing under way goes straight to the adapter; the others gather meanwhile and go together. An
ordered topic has one unconfirmed batch per partition at a time (semantics 7). What its broker stores once
(`Outgoing.once`) is sent again while its fate is unknown.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from messaging.backoff import Backoff
from messaging.calls import ONLY, UNDER_WAY, Batch, uncertain
from messaging.clock import check_cancelled, sleep
from messaging.deadlines import Deadlines
from messaging.lasting import this_task
from messaging.unconfirmed import Unconfirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from messaging.adapter import Adapter, Outgoing
    from messaging.calls import Call, Lane, Place, Result
    from messaging.clock import Clock
    from messaging.refusals import Refusals

BATCH = 256
"""Messages in one exchange: larger batches gained nothing on any broker that was measured."""
EXCHANGES = 4
"""Exchanges under way at once."""
SLOW = 12
"""So many more while that many are slow: the broker may hang with a few partitions, and take what is for others."""
SMALL = 64
"""Messages that go in one exchange all the same: with fewer, each costs more than the overlap gains."""
GATHER = 2
"""While messages are under way, another exchange begins with at least one for so many of them, or of a share.

Else callers who publish again as soon as they are confirmed fall apart into ever smaller exchanges.
"""
PATIENCE = 0.05
"""Seconds under way after which nothing gathers behind an exchange: it may hang, and concern another topic."""
FAR = 0.25
"""The same of requests: a service that is reached by those takes 10 to 60 ms for one, and longer now and then."""


class Exchanges:
    """Takes calls and hands their messages to the adapter in batches; what comes of them goes to `confirm`.

    What is sent again is told to `conclude`, place by place. `ended` is called whenever nothing is left.
    """

    _patient: ClassVar[float] = PATIENCE
    _slow_apart: ClassVar[int] = SLOW

    def __init__(
        self,
        adapter: Adapter,
        clock: Clock,
        refusals: Refusals,
        confirm: Callable[[Batch, Sequence[Result]], None],
        conclude: Callable[[Sequence[tuple[Place, Result]]], None],
        ended: Callable[[], object] | None = None,
    ) -> None:
        self._adapter = adapter
        self._clock = clock
        self._refusals = refusals
        self._confirm = confirm
        self._conclude = conclude
        self._ended = ended
        self.tasks: set[asyncio.Task[None]] = set()
        """The exchanges under way."""
        self.outstanding = 0
        """Messages waiting or under way whose calls have no result for them: whoever gives them one counts."""
        self.queued = 0
        """Of the outstanding: not handed over yet."""
        self._patience = Deadlines[Batch](clock, self._lose_patience)
        self._free: deque[Call] = deque()
        self._ordered: OrderedDict[Lane, deque[Place]] = OrderedDict()
        self._busy: set[Lane] = set()
        self._resending = 0
        """Of the exchanges: those that send again what is stored once, and leave room for others meanwhile."""
        self._again = asyncio.Semaphore(EXCHANGES)
        self._under_way = 0
        """Messages in exchanges that are not slow, also those that nobody waits for any more."""
        self._slow = 0
        """Exchanges with which patience was lost."""
        self._starting: asyncio.Task[None] | None = None
        """It has not taken its batch yet."""
        self._closed = False

    def add(self, call: Call) -> None:
        """Send it: at once, or with what gathers."""
        call.exchanges = self
        missing = call.missing
        self.outstanding += missing
        self.queued += missing
        if call.ordered is None:
            self._free.append(call)
        else:
            for at, outgoing in enumerate(call.messages):
                if call.results[at] is None:
                    lane = outgoing.topic.name, outgoing.partition
                    self._ordered.setdefault(lane, deque()).append((call, at))
        self._start_exchange()

    def behind(self, lanes: Iterable[Lane]) -> Iterator[Place]:
        """What waits in these lanes."""
        return chain.from_iterable(self._ordered.get(lane, ()) for lane in lanes)

    def waiting(self) -> Iterator[Call]:
        """The calls of which something may wait, some of them several times."""
        return chain(self._free, (call for call, _ in self.behind(self._ordered)))

    def purge(self) -> None:
        """Forget what waits and has been given up."""
        self._free = deque(call for call in self._free if call.missing)
        for lane, waiting in list(self._ordered.items()):
            wanted = deque((call, at) for call, at in waiting if call.results[at] is None)
            if wanted:
                self._ordered[lane] = wanted
            else:
                del self._ordered[lane]

    def close(self) -> set[asyncio.Task[None]]:
        """Start nothing more, and cancel what is under way, which ends with these tasks."""
        self._closed = True
        self._patience.close()
        for task in self.tasks:
            task.cancel()
        return self.tasks

    # --- from calls to exchanges ---------------------------------------------------------------------------------

    def _start_exchange(self) -> None:
        """One task more, if it would find work. It takes its batch when it runs, with all of this tick's calls."""
        if self._starting is not None:
            if not self._starting.done():
                return
            self.tasks.discard(self._starting)  # somebody cancelled it before it began
            self._starting = None
        waits = self._free or self._ordered
        if self._closed or not waits or not self._enough(self._others):
            return
        if self._free or any(lane not in self._busy for lane in self._ordered):
            task = self._starting = asyncio.create_task(self._exchange(), name="messaging-publish")
            self.tasks.add(task)

    @property
    def _others(self) -> int:
        """The exchanges that count: what sends again and what is slow leave room for others."""
        return len(self.tasks) - self._resending - min(self._slow, self._slow_apart)

    def _enough(self, others: int) -> bool:
        """Whether what waits is worth an exchange beside so many others."""
        worth = self.queued * GATHER
        return others < EXCHANGES and (worth >= self._under_way or worth >= self._share())

    def _lose_patience(self, batches: Sequence[Batch]) -> None:
        """What waits need not be worth an exchange beside these any more."""
        for batch in batches:
            self._stop_gathering(batch)
            self._slow += 1
        self._start_exchange()

    def _stop_gathering(self, batch: Batch) -> None:
        self._under_way -= batch.gathering
        batch.gathering = 0

    def _share(self) -> int:
        """Messages of one exchange.

        Callers who are confirmed together publish again together: were all in one, client and broker would take turns.
        """
        return min(BATCH, max(SMALL, -(-self.outstanding // self._adapter.shares)))

    def _next_batch(self) -> Batch:
        batch = Batch(self)
        share = self._share()
        if self._ordered:
            self._take_free(batch, share // 2)  # neither kind takes all of every exchange
            self._take_ordered(batch, share)
        self._take_free(batch, share)
        self.queued -= len(batch.messages)
        return batch

    def _take_free(self, batch: Batch, share: int) -> None:
        free, messages, parts = self._free, batch.messages, batch.parts
        room = share - len(messages)
        while free and room > 0:
            call = free[0]
            if not call.missing:  # given up meanwhile
                free.popleft()
                continue
            if call.once:
                batch.once = True
            if len(call.messages) == 1:  # as most have: slices cost more
                free.popleft()
                call.results[0] = UNDER_WAY
                messages.append(call.messages[0])
                parts.append((call, ONLY))
                room -= 1
                continue
            start, end = call.next, len(call.messages)
            if end - start <= room:
                free.popleft()
            else:
                end = start + room
            call.next = end
            messages += call.messages[start:end]
            call.results[start:end] = [UNDER_WAY] * (end - start)
            parts.append((call, range(start, end)))
            room -= end - start

    def _take_ordered(self, batch: Batch, share: int) -> None:
        """Lanes until the share is full. What is left of a lane waits for the batch: so only the first is divided."""
        for lane, waiting in list(self._ordered.items()):
            before = len(batch.messages)
            if before >= share:
                return
            if lane in self._busy or (batch.lanes and before + len(waiting) > BATCH):
                continue
            while waiting and len(batch.messages) < BATCH:
                call, at = waiting.popleft()
                if call.results[at] is None:
                    call.results[at] = UNDER_WAY
                    batch.messages.append(call.messages[at])
                    batch.parts.append((call, (at,)))
                    batch.once = batch.once or call.once
            if len(batch.messages) > before:
                batch.lanes.append(lane)
            if waiting:
                self._ordered.move_to_end(lane)  # the others have their turn
            else:
                del self._ordered[lane]

    async def _exchange(self) -> None:
        self._starting = None
        try:
            # While it sent again, others began; and `close` may have cancelled it as an answer came.
            while not self._closed and (self._free or self._ordered) and self._enough(self._others - 1):
                batch = self._next_batch()
                if not batch.messages:
                    return
                batch.gathering = len(batch.messages)
                self._under_way += batch.gathering
                self._busy.update(batch.lanes)
                if self.queued:
                    self._start_exchange()
                try:
                    await self._send(batch)
                finally:
                    self._busy.difference_update(batch.lanes)
        finally:
            # At once: what is published before the callbacks of this task run must find room for an exchange.
            self.tasks.discard(this_task())
            self._start_exchange()  # ended by an error, it leaves what gathered behind it to another
            if self._ended is not None and not self.tasks:
                self._ended()

    async def _send(self, batch: Batch) -> None:
        """One exchange; for what is stored once, as many as it takes while somebody waits for it."""
        messages = batch.messages
        self._patience.add(batch, self._patient)
        try:
            results = await self._attempt(messages)
        except BaseException as error:  # cancelled, it still owes each caller an answer
            self._confirm(batch, [uncertain(one, error) for one in messages])
            raise
        finally:
            self._patience.remove(batch, self._patient)
            if not batch.gathering:
                self._slow -= 1
            self._stop_gathering(batch)
        if batch.once:
            await self._conclude_once(batch, results)
        else:
            self._confirm(batch, results)
            self._refusals.judge(messages, results)

    async def _attempt(self, messages: Sequence[Outgoing]) -> Sequence[Result]:
        self._refusals.begin()
        try:
            results = list(await self._adapter.publish(messages))
            if len(results) != len(messages):
                raise ValueError(f"{len(results)} results for {len(messages)} messages")
        except Exception as error:
            results = [uncertain(one, error) for one in messages]
        finally:
            self._refusals.end()
        return results

    # --- what is stored once -------------------------------------------------------------------------------------

    async def _conclude_once(self, batch: Batch, results: Sequence[Result]) -> None:
        """Conclude what is known; what is not is sent again, until it is or nobody waits for it."""
        unconfirmed = Unconfirmed(self._clock, self._conclude)
        places = [(call, at) for call, parts in batch.parts for at in parts]
        self._take(batch, unconfirmed, places, results)
        if unconfirmed:
            self._resending += 1
            self._start_exchange()
            try:
                await self._send_again(batch, unconfirmed)
            finally:
                self._resending -= 1

    def _take(
        self, batch: Batch, unconfirmed: Unconfirmed, places: Sequence[Place], results: Sequence[Result]
    ) -> None:
        """The results of an attempt: the lanes in which nothing is unknown go on."""
        unconfirmed.take(places, results)
        held = unconfirmed.lanes
        self._busy.difference_update(lane for lane in batch.lanes if lane not in held)
        batch.lanes = [lane for lane in batch.lanes if lane in held]
        self._refusals.judge([call.messages[at] for call, at in places], results)

    async def _send_again(self, batch: Batch, unconfirmed: Unconfirmed) -> None:
        backoff = Backoff()
        while unconfirmed:
            places: Sequence[Place] = ()
            try:
                check_cancelled()
                await sleep(self._clock, backoff.next())
                async with self._again:
                    places = unconfirmed.still_wanted()
                    if not places:
                        return
                    results = await self._attempt([call.messages[at] for call, at in places])
            except BaseException as error:  # cancelled, it still owes each caller an answer
                unconfirmed.give_up(places, error)
                raise
            self._take(batch, unconfirmed, places, results)
            self._start_exchange()


class Requests(Exchanges):
    """Those of one topic without order, where a request of the broker takes a few messages (`Adapter.per_request`).

    An exchange is whole requests, up to `shares` at once: none waits for what was published with it, or, while there
    is room for what is published (`OUTSTANDING`), to another topic.
    """

    _patient = FAR
    _slow_apart = 0

    def _enough(self, others: int) -> bool:
        worth = self.queued >= self._adapter.per_request or self.queued * GATHER >= self._under_way
        return worth and others < self._adapter.shares

    def _share(self) -> int:
        """Whole requests, as many as wait, and as each of the exchanges under way at once takes."""
        full = self._adapter.per_request
        even = round(-(-self.outstanding // self._adapter.shares) / full)
        return full * max(1, min(even, self.queued // full, BATCH // full))

    def _take_free(self, batch: Batch, share: int) -> None:
        super()._take_free(batch, share)
        left = self.queued - len(batch.messages)
        if left < self._adapter.per_request and len(self._free) == 1 and self._free[0].next:
            super()._take_free(batch, share + left)  # else the end of one call would wait for its beginning

    async def _send(self, batch: Batch) -> None:
        await super()._send(batch)
        await asyncio.sleep(0)  # who was confirmed may publish again: that fills requests
