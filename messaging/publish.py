"""Publishing in batches: calls that are under way at the same time share one exchange with the broker (`Exchanges`).

What is outstanding is bounded, and callers wait for room (semantics 20); they wait for their results as long as they
want to, and what is behind a failed message of the same key fails with it (7).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from functools import partial
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from messaging.calls import ABANDONED, ONLY, UNDER_WAY, Call, nobody_waits, overtaking, too_late, unsent
from messaging.clock import timeout
from messaging.deadlines import Deadlines
from messaging.errors import Closed, PublishError
from messaging.exchanges import Exchanges, Requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from messaging.adapter import Adapter, Outgoing
    from messaging.calls import Batch, Failed, Lane, Place, Result
    from messaging.clock import Clock
    from messaging.message import Key, Message
    from messaging.refusals import Refusals

OUTSTANDING = 10_000
"""Messages waiting or under way, per broker of a bus."""
OF_A_TOPIC = 1000
"""With so many of its own, a topic that goes apart waits for room too: with fewer, others never hold it up."""
IDLE = 64
"""Topics that go apart (`Adapter.topics_apart`), and are not forgotten when nothing of them is under way."""
PURGE_AFTER = 1000
"""Abandoned messages that may lie in the queues."""


class Publisher:
    """Hands messages to the adapter in batches. One per broker of a bus."""

    def __init__(self, adapter: Adapter, clock: Clock, refusals: Refusals) -> None:
        self._adapter = adapter
        self._kind = Requests if adapter.per_request else Exchanges
        self._apart = adapter.per_request > 0 or adapter.topics_apart
        self._ordered_apart = adapter.topics_apart
        self._kept = IDLE if adapter.topics_apart else 0
        self._clock = clock
        self._refusals = refusals
        self._numbers = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Once asked: before Python 3.12, that is a system call."""
        self._deadlines = Deadlines[Call](clock, self._give_up)
        self._waiting: OrderedDict[str, OrderedDict[Call, None]] = OrderedDict()
        """Calls that wait for room, by topic, in their order: none overtakes another of its topic."""
        self._common = Exchanges(adapter, clock, refusals, self._confirm, self._conclude)
        """What does not go apart: with requests (`Adapter.per_request`) what is ordered, else all or nothing."""
        self._topics: dict[str, Exchanges] = {}
        """What goes apart, by topic. Of topics without a message outstanding or an exchange under way, a few."""
        self._outstanding = 0
        self._calls: Counter[str] = Counter()
        """Calls under way for each ordered topic."""
        self._failed: dict[tuple[str, Key | None], dict[Call, int]] = {}
        """Of each ordered topic and key: the calls whose callers do not know yet that a message failed, and which."""
        self.fail_behind: Callable[[str, Message, Exception], object] = nobody_waits
        """Told of each message of an ordered topic that fails: calls may wait that do not publish yet."""
        self._ended = asyncio.Event()
        """One of these has ended."""
        self._abandoned = 0
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
            if self._failed:
                self._fail_behind(call)
        if call.missing:
            if self._waiting or self._outstanding >= OUTSTANDING:
                self._waiting.setdefault(call.topic, OrderedDict())[call] = None
                self._let_in()
            else:
                self._admit(call)
        if within is not None:
            self._deadlines.add(call, within)
        try:
            await call.done
            results: list[Any] = call.results
            return results
        finally:
            if within is not None:
                self._deadlines.remove(call, within)
            call.waited = False
            if call.exchanges is None:
                self._leave(call)
            if call.missing:
                self._abandon(call)
            if topic is not None:
                if self._failed:
                    self._forget(call)
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
                while under_way := [task for one in self._all for task in one.tasks if not task.done()]:
                    await asyncio.wait(under_way)
        except TimeoutError:
            pass
        finally:
            queued = chain.from_iterable(one.waiting() for one in self._all)
            for call in dict.fromkeys([*queued, *chain.from_iterable(self._waiting.values())]):
                for at in call.open:
                    if call.results[at] is None:
                        self._finish(call, at, unsent(call.messages[at].message, "the bus was closed"))
            if cancelled := [task for one in self._all for task in one.close()]:
                await asyncio.wait(cancelled)
            self._deadlines.close()

    # --- from calls to exchanges ---------------------------------------------------------------------------------

    def _let_in(self) -> None:
        """Take in the calls that there is room for: the topics in turn, then those with few messages of their own."""
        while self._waiting and self._outstanding < OUTSTANDING:
            topic, calls = next(iter(self._waiting.items()))
            self._waiting.move_to_end(topic)
            self._take_in(calls)
        if self._apart:
            for calls in list(self._waiting.values()):
                while calls and self._has_few(next(iter(calls))):
                    self._take_in(calls)

    def _take_in(self, calls: OrderedDict[Call, None]) -> None:
        call = next(iter(calls))
        self._leave(call)
        self._admit(call)

    def _leave(self, call: Call) -> None:
        """It waits for room no more."""
        calls = self._waiting.get(call.topic)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del self._waiting[call.topic]

    def _admit(self, call: Call) -> None:
        self._outstanding += call.missing
        if self._apart and (call.ordered is None or self._ordered_apart):
            topic = call.messages[0].topic.name
            (self._topics.get(topic) or self._begin(topic)).add(call)
        else:
            self._common.add(call)

    def _has_few(self, call: Call) -> bool:
        """Whether its topic gets room beyond what all share: one that hangs must not hold up the others."""
        if call.ordered is not None and not self._ordered_apart:
            return False
        begun = self._topics.get(call.topic)
        return begun is None or begun.outstanding < OF_A_TOPIC

    def _begin(self, topic: str) -> Exchanges:
        begun = self._topics[topic] = self._kind(
            self._adapter,
            self._clock,
            self._refusals,
            self._confirm,
            self._conclude,
            partial(self._end, topic),
        )
        return begun

    def _end(self, topic: str) -> None:
        # One that is soon needed again costs more to make than to keep.
        if len(self._topics) > self._kept:
            self._topics.pop(topic).close()

    @property
    def _all(self) -> list[Exchanges]:
        return [self._common, *self._topics.values()]

    # --- from exchanges to calls ---------------------------------------------------------------------------------

    def _confirm(self, batch: Batch, results: Sequence[Result]) -> None:
        """The results of a batch, all of which are known."""
        ordered: list[tuple[Place, Result]] = []
        start = finished = 0
        for call, places in batch.parts:
            if places is ONLY:  # as most are
                if call.missing:
                    call.results[0] = results[start]
                    call.missing = 0
                    finished += 1
                    call.end()
                start += 1
                continue
            end = start + len(places)
            if call.ordered is not None:
                ordered += [
                    ((call, at), result) for at, result in zip(places, results[start:end], strict=True)
                ]
            elif call.missing:  # else it was given up as a whole
                call.results[places[0] : places[-1] + 1] = results[start:end]
                self._count_finished(call, len(places))
            start = end
        if finished:
            self._outstanding -= finished
            batch.exchanges.outstanding -= finished
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
            if call.exchanges is not None:
                call.exchanges.queued -= 1
        elif former is not UNDER_WAY:
            return
        call.results[at] = result
        self._count_finished(call, 1)

    def _count_finished(self, call: Call, finished: int) -> None:
        call.missing -= finished
        exchanges = call.exchanges
        if exchanges is not None:
            self._outstanding -= finished
            exchanges.outstanding -= finished
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
            self._remember(call, at)
        for (topic, _), (call, at, error) in first.items():
            self.fail_behind(topic, call.messages[at].message, error)
        queued = chain.from_iterable(one.behind(lanes) for one in self._all)
        held_up = chain.from_iterable(self._waiting.get(topic, ()) for topic in {topic for topic, _ in lanes})
        waiting = ((call, at) for call in held_up for at in call.open)
        for call, at in [*queued, *waiting]:
            outgoing = call.messages[at]
            found = first.get((outgoing.topic.name, outgoing.message.key))
            if found is not None and (found[0].number, found[1]) < (call.number, at):
                former = found[0].messages[found[1]].message
                self._finish(call, at, overtaking(outgoing.message, former, found[2]))
                self._remember(call, at)

    def _remember(self, call: Call, at: int) -> None:
        """A message of an ordered topic failed: whoever publishes before its caller knows means to be behind it."""
        if call.waited:
            outgoing = call.messages[at]
            self._failed.setdefault((outgoing.topic.name, outgoing.message.key), {}).setdefault(call, at)

    def failed_before(self, topic: str, key: Key | None) -> Failed | None:
        """A message of an ordered topic that failed, while its caller does not know yet."""
        for call, at in self._failed.get((topic, key), {}).items():
            return call.messages[at].message, cast("PublishError", call.results[at])
        return None

    def _forget(self, call: Call) -> None:
        """Its caller knows."""
        for key in {(one.topic.name, one.message.key) for one in call.messages}:
            calls = self._failed.get(key)
            if calls is not None and calls.pop(call, None) is not None and not calls:
                del self._failed[key]

    def _fail_behind(self, call: Call) -> None:
        """What a new call has for keys of which a message failed that its caller does not know of."""
        for at, outgoing in enumerate(call.messages):
            calls = self._failed.get((outgoing.topic.name, outgoing.message.key))
            if calls is not None:
                former, number = next(iter(calls.items()))
                error = cast("PublishError", former.results[number])
                self._finish(call, at, overtaking(outgoing.message, former.messages[number].message, error))
                self._remember(call, at)

    def _give_up(self, calls: Sequence[Call]) -> None:
        """Their time is over. All at once: for what is behind them, all that waits is looked at."""
        not_sent = 0
        failed: list[tuple[Call, int, PublishError]] = []
        unanswered: dict[str, PublishError] = {}
        for call in sorted(calls, key=attrgetter("number")):
            for at in call.open:
                sent = call.results[at] is not None
                error = too_late(call.messages[at].message, call.within, sent=sent)
                unanswered.setdefault(call.messages[at].topic.name, error)
                self._finish(call, at, error)
                if not sent:
                    not_sent += 1
                    if call.ordered is not None:
                        failed.append((call, at, error))
        if failed:
            self._fail_successors(failed)
        self._left(not_sent)
        for topic, error in unanswered.items():
            self._refusals.unanswered(topic, error)

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
            for one in self._all:
                one.purge()
        self._let_in()
