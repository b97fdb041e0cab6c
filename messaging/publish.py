"""Publishing in batches: calls that are under way at the same time share one exchange with the broker.

A call that finds nothing under way goes straight to the adapter; the others gather meanwhile and go together. An
ordered topic has one unconfirmed batch per partition at a time (semantics 7). What is outstanding is bounded, and
callers wait for room (20). What its broker stores once (`Outgoing.once`) is sent again while its fate is unknown.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from messaging.backoff import Backoff
from messaging.calls import ABANDONED, UNDER_WAY, Batch, Call, overtaking, too_late, uncertain, unsent
from messaging.clock import sleep, timeout
from messaging.deadlines import Deadlines
from messaging.errors import Closed, PublishError
from messaging.unconfirmed import Unconfirmed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from messaging.adapter import Adapter, Outgoing
    from messaging.calls import Lane, Place, Result
    from messaging.clock import Clock
    from messaging.message import Key
    from messaging.refusals import Refusals

BATCH = 256
"""Messages in one exchange: larger batches gained nothing on any broker that was measured."""
EXCHANGES = 4
"""Exchanges under way at once."""
SMALL = 64
"""Messages that go in one exchange all the same: with fewer, each costs more than the overlap gains."""
GATHER = 2
"""While messages are under way, another exchange begins with at least one for so many of them, or of a share.

Else callers who publish again as soon as they are confirmed fall apart into ever smaller exchanges.
"""
PATIENCE = 0.05
"""Seconds under way after which nothing gathers behind an exchange: it may hang, and concern another topic."""
OUTSTANDING = 10_000
"""Messages waiting or under way, per broker of a bus."""
PURGE_AFTER = 1000
"""Abandoned messages that may lie in the queues."""


class Publisher:
    """Hands messages to the adapter in batches. One per broker of a bus."""

    def __init__(self, adapter: Adapter, clock: Clock, refusals: Refusals) -> None:
        self._adapter = adapter
        self._clock = clock
        self._refusals = refusals
        self._numbers = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Once asked: before Python 3.12, that is a system call."""
        self._deadlines = Deadlines[Call](clock, self._give_up)
        self._patience = Deadlines[Batch](clock, self._lose_patience)
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        """Calls that wait for room, in their order: nobody overtakes them."""
        self._free: deque[Call] = deque()
        self._ordered: OrderedDict[Lane, deque[Place]] = OrderedDict()
        self._busy: set[Lane] = set()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._resending = 0
        """Of the exchanges: those that send again what is stored once, and leave room for others meanwhile."""
        self._again = asyncio.Semaphore(EXCHANGES)
        self._outstanding = 0
        self._queued = 0
        """Of the outstanding: not handed over yet."""
        self._under_way = 0
        """Messages in exchanges that are not slow, also those that nobody waits for any more."""
        self._calls: Counter[str] = Counter()
        """Calls under way for each ordered topic."""
        self._ended = asyncio.Event()
        """One of these has ended."""
        self._abandoned = 0
        self._starting = False
        self._closed = False

    async def publish(self, messages: Sequence[Outgoing], within: float | None) -> Sequence[Result]:
        """One result each, in order, `within` seconds. All are of one topic.

        A message that was not handed over by then, or when the call is cancelled, is not sent; one that was has an
        unknown fate: PublishUncertain.
        """
        if not messages:
            return []
        if self._closed:
            raise Closed("The bus is closed: nothing can be published any more")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        call = Call(messages, next(self._numbers), within, self._loop.create_future())
        topic = call.ordered
        if topic is not None:
            self._calls[topic] += 1
        if self._waiting or self._outstanding >= OUTSTANDING:
            self._waiting[call] = None
        else:
            self._admit(call)
        if within is not None:
            self._deadlines.add(call, within)
        try:
            await call.done
            return cast("list[Result]", call.results)
        finally:
            if within is not None:
                self._deadlines.remove(call, within)
            if not call.admitted:
                self._waiting.pop(call)
            if call.missing:
                self._abandon(call)
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
                while under_way := [task for task in self._exchanges if not task.done()]:
                    await asyncio.wait(under_way)
        except TimeoutError:
            pass
        finally:
            queued = (call for call, _ in chain.from_iterable(self._ordered.values()))
            for call in dict.fromkeys([*self._free, *queued, *self._waiting]):
                for at in call.open:
                    if call.results[at] is None:
                        self._finish(call, at, unsent(call.messages[at].message, "the bus was closed"))
            for task in self._exchanges:
                task.cancel()
            if self._exchanges:
                await asyncio.wait(self._exchanges)
            self._deadlines.close()
            self._patience.close()

    # --- from calls to exchanges ---------------------------------------------------------------------------------

    def _let_in(self) -> None:
        """Take in the calls that there is room for."""
        while self._waiting and self._outstanding < OUTSTANDING:
            call, _ = self._waiting.popitem(last=False)
            self._admit(call)

    def _admit(self, call: Call) -> None:
        call.admitted = True
        self._outstanding += call.missing
        self._queued += call.missing
        if call.ordered is None:
            self._free.append(call)
        else:
            for at in call.open:
                outgoing = call.messages[at]
                lane = (outgoing.topic.name, outgoing.partition)
                self._ordered.setdefault(lane, deque()).append((call, at))
        self._start_exchange()

    def _start_exchange(self) -> None:
        """One task more, if it would find work. It takes its batch when it runs, with all of this tick's calls."""
        waits = self._free or self._ordered
        under_way = len(self._exchanges) - self._resending
        if self._starting or not waits or under_way >= EXCHANGES or not self._enough():
            return
        if self._free or any(lane not in self._busy for lane in self._ordered):
            self._starting = True
            task = asyncio.create_task(self._exchange(), name="messaging-publish")
            self._exchanges.add(task)

    def _enough(self) -> bool:
        """Whether what waits is worth an exchange beside those under way."""
        worth = self._queued * GATHER
        return worth >= self._under_way or worth >= self._share()

    def _lose_patience(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._stop_gathering(batch)
        self._start_exchange()

    def _stop_gathering(self, batch: Batch) -> None:
        """What waits need not be worth an exchange beside this one any more."""
        self._under_way -= batch.gathering
        batch.gathering = 0

    def _share(self) -> int:
        """Messages of one exchange.

        Callers who are confirmed together publish again together: were all in one, client and broker would take turns.
        """
        return min(BATCH, max(SMALL, -(-self._outstanding // self._adapter.shares)))

    def _next_batch(self) -> Batch:
        batch = Batch()
        share = self._share()
        if self._ordered:
            self._take_free(batch, share // 2)  # neither kind takes all of every exchange
            self._take_ordered(batch, share)
        self._take_free(batch, share)
        self._queued -= len(batch.messages)
        return batch

    def _take_free(self, batch: Batch, share: int) -> None:
        free, messages = self._free, batch.messages
        while free and (room := share - len(messages)) > 0:
            call = free[0]
            start, end = call.next, len(call.messages)
            if call.missing == 0:  # given up meanwhile
                free.popleft()
                continue
            if end - start <= room:
                free.popleft()
            else:
                end = start + room
            call.next = end
            messages += call.messages[start:end]
            call.results[start:end] = [UNDER_WAY] * (end - start)
            batch.parts.append((call, range(start, end)))
            batch.once = batch.once or call.once

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
        self._starting = False
        try:
            while (
                (self._free or self._ordered)
                and self._enough()
                and len(self._exchanges) - self._resending <= EXCHANGES  # while it sent again, others began
            ):
                batch = self._next_batch()
                if not batch.messages:
                    return
                batch.gathering = len(batch.messages)
                self._under_way += batch.gathering
                self._busy.update(batch.lanes)
                if self._queued:
                    self._start_exchange()
                try:
                    await self._send(batch)
                finally:
                    self._busy.difference_update(batch.lanes)
        finally:
            # At once: what is published before the callbacks of this task run must find room for an exchange.
            self._exchanges.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            if not self._closed:
                self._start_exchange()  # ended by an error, it leaves what gathered behind it to another

    async def _send(self, batch: Batch) -> None:
        """One exchange; for what is stored once, as many as it takes while somebody waits for it."""
        messages = batch.messages
        self._patience.add(batch, PATIENCE)
        try:
            results = await self._attempt(messages)
        except BaseException as error:  # cancelled, it still owes each caller an answer
            self._confirm(batch, [uncertain(one, error) for one in messages])
            raise
        finally:
            self._patience.remove(batch, PATIENCE)
            self._stop_gathering(batch)
        if batch.once:
            await self._conclude_once([(call, at) for call, places in batch.parts for at in places], results)
        else:
            self._confirm(batch, results)

    async def _attempt(self, messages: Sequence[Outgoing]) -> Sequence[Result]:
        self._refusals.begin()
        try:
            results = await self._adapter.publish(messages)
            if len(results) != len(messages):
                raise ValueError(f"{len(results)} results for {len(messages)} messages")
        except Exception as error:
            results = [uncertain(one, error) for one in messages]
        finally:
            self._refusals.end()
        self._refusals.judge(messages, results)
        return results

    # --- what is stored once -------------------------------------------------------------------------------------

    async def _conclude_once(self, places: Sequence[Place], results: Sequence[Result]) -> None:
        """Conclude what is known; what is not is sent again, until it is or nobody waits for it."""
        unconfirmed = Unconfirmed(self._clock, self._conclude)
        unconfirmed.take(places, results)
        if unconfirmed:
            self._resending += 1
            self._start_exchange()
            try:
                await self._send_again(unconfirmed)
            finally:
                self._resending -= 1

    async def _send_again(self, unconfirmed: Unconfirmed) -> None:
        backoff = Backoff()
        while unconfirmed:
            try:
                await sleep(self._clock, backoff.next())
                async with self._again:
                    places = unconfirmed.still_wanted()
                    if not places:
                        return
                    results = await self._attempt([call.messages[at] for call, at in places])
            except BaseException:  # cancelled, it still owes each caller an answer
                unconfirmed.give_up()
                raise
            unconfirmed.take(places, results)

    # --- from exchanges to calls ---------------------------------------------------------------------------------

    def _confirm(self, batch: Batch, results: Sequence[Result]) -> None:
        """The results of a batch, all of which are known."""
        ordered: list[tuple[Place, Result]] = []
        start = 0
        for call, places in batch.parts:
            end = start + len(places)
            if call.ordered is not None:
                ordered += [
                    ((call, at), result) for at, result in zip(places, results[start:end], strict=True)
                ]
            elif call.missing:  # else it was given up as a whole
                call.results[places[0] : places[-1] + 1] = results[start:end]
                self._count_finished(call, len(places))
            start = end
        if ordered:
            self._conclude(ordered)
        elif self._waiting:
            self._let_in()

    def _conclude(self, results: Sequence[tuple[Place, Result]]) -> None:
        failed: list[tuple[Call, int, PublishError]] = []
        for (call, at), result in results:
            self._finish(call, at, result)
            if isinstance(result, PublishError) and call.ordered is not None:
                failed.append((call, at, result))
        if failed:
            self._fail_successors(failed)
        self._let_in()

    def _finish(self, call: Call, at: int, result: Result) -> None:
        """The result of one message, unless it has one."""
        former = call.results[at]
        if former is None:
            self._queued -= call.admitted
        elif former is not UNDER_WAY:
            return
        call.results[at] = result
        self._count_finished(call, 1)

    def _count_finished(self, call: Call, finished: int) -> None:
        call.missing -= finished
        if call.admitted:
            self._outstanding -= finished
        if not call.missing:
            call.end()

    def _fail_successors(self, failed: Iterable[tuple[Call, int, PublishError]]) -> None:
        """Fail what waits behind a failed message of the same key: sending it would break the order (7)."""
        first: dict[tuple[str, Key | None], tuple[Call, int, PublishError]] = {}
        lanes: dict[Lane, None] = {}
        for call, at, error in failed:
            outgoing = call.messages[at]
            first.setdefault((outgoing.topic.name, outgoing.message.key), (call, at, error))
            lanes[outgoing.topic.name, outgoing.partition] = None
        queued = [entry for lane in lanes for entry in self._ordered.get(lane, ())]
        waiting = ((call, at) for call in self._waiting if call.ordered for at in call.open)
        for call, at in [*queued, *waiting]:
            outgoing = call.messages[at]
            found = first.get((outgoing.topic.name, outgoing.message.key))
            if found is not None and (found[0].number, found[1]) < (call.number, at):
                former = found[0].messages[found[1]].message
                self._finish(call, at, overtaking(outgoing.message, former, found[2]))

    def _give_up(self, calls: Sequence[Call]) -> None:
        """Their time is over. All at once: for what is behind them, all that waits is looked at."""
        not_sent = 0
        failed: list[tuple[Call, int, PublishError]] = []
        for call in sorted(calls, key=attrgetter("number")):
            for at in call.open:
                sent = call.results[at] is not None
                error = too_late(call.messages[at], call.within, sent=sent)
                self._refusals.unanswered(call.messages[at].topic.name, error)
                self._finish(call, at, error)
                if not sent:
                    not_sent += 1
                    if call.ordered is not None:
                        failed.append((call, at, error))
        if failed:
            self._fail_successors(failed)
        self._left(not_sent)

    def _abandon(self, call: Call) -> None:
        """Nobody waits for these any more: what was not handed over is not sent."""
        not_sent = call.results.count(None)
        for at in call.open:
            self._finish(call, at, ABANDONED)
        self._left(not_sent)

    def _left(self, not_sent: int) -> None:
        """A call has ended before all of it was sent: the rest must not pile up in the queues."""
        self._abandoned += not_sent
        if self._abandoned >= PURGE_AFTER:
            self._abandoned = 0
            self._free = deque(call for call in self._free if call.missing)
            for lane, waiting in self._ordered.items():
                self._ordered[lane] = deque((call, at) for call, at in waiting if call.results[at] is None)
        self._let_in()
