"""A member of a group, ordered or not: records in, deliveries out, outcomes settled.

What is fetched lies in the sources; a record is parsed when there is room for it. Retries of an unordered group come
from its ladder of delays, redriven messages of an ordered group from a partition beside that of their key.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from math import inf
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from messaging.adapter import Consumer, ConsumerStatus, RawDelivery
from messaging.background import Background
from messaging.errors import Closed, LeaseLost, MessagingError, TopicNotFound, TopologyLost
from messaging_kafka.connection import translate
from messaging_kafka.fetching import Fetcher
from messaging_kafka.library import KafkaError
from messaging_kafka.partitions import Partitions
from messaging_kafka.records import read
from messaging_kafka.settling import Settler, Token
from messaging_kafka.watching import watch, watch_growth

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from messaging.adapter import Ownership, Settled, Settlement, Subscription
    from messaging_kafka.partitions import Part, Unit
    from messaging_kafka.session import Session
    from messaging_kafka.source import Source

EARLY = 0.002
"""Seconds by which a step may seem to end before its delay, for the sake of rounding: they are waited for here."""
LATE = 0.25
"""Seconds after which what is due and too much for the owner of its tier goes where all members share it."""
AGAIN = 0.2
"""Seconds before what could not be sent on is sent again."""
STUCK_AFTER = 1.0
"""Seconds for which a member has no room until it lets others have what waits for it."""
EASED_AFTER = 5.0
"""Seconds without that, after which it counts as any other."""
RELIEF = 500
"""Messages that are handed on at once."""


class KafkaConsumer(Consumer):
    """One member; the group's protocol says which partitions are its own."""

    lease = None
    window = 1000

    def __init__(self, session: Session, subscription: Subscription, ownership: Ownership) -> None:
        self._session = session
        self._group = subscription.group
        self._ownership = ownership
        self._where = f"{self._group.topic.name}/{self._group.name}"
        self._background = Background()
        self._wake = asyncio.Event()
        self._fetcher = Fetcher(session.brokers, f"{self._where} {uuid4().hex[:8]}", self._wake.set)
        self._partitions: Partitions | None = None
        self._settler: Settler | None = None
        self._ready: list[RawDelivery] = []
        self._moves: list[tuple[RawDelivery, float]] = []
        """Delayed records whose step is over while their delay is not, and when they are due (monotonic seconds)."""
        self._moving = asyncio.Event()
        self._passed: Unit | None = None
        """Of what was read last there were marks of transactions, or gaps, which nobody settles."""
        self._eased = 0.0
        self._receiving = False
        self._received = 0.0
        """When `receive` last ended, in monotonic seconds."""
        self._turn = 0
        self._closed = False

    # --- receive -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        """See `Consumer.receive`. Nothing is taken from the broker here: a cancelled call loses nothing."""
        if self._closed:
            raise Closed(f"this member of {self._where} is closed: make a new one")
        self._background.check()
        self._receiving = True
        try:
            return await self._receive(limit, time.monotonic() + wait, paused)
        except TopicNotFound as error:
            if not await self._session.topology.recorded(self._group):
                raise
            if self._partitions is not None:
                self._partitions.forsake("its topic was deleted")
            raise TopologyLost(str(error)) from error
        finally:
            self._receiving = False
            self._received = time.monotonic()

    async def _receive(self, limit: int, until: float, paused: Collection[int]) -> Sequence[RawDelivery]:
        partitions = await self._joined()
        self._fetcher.retry()
        while True:
            self._wake.clear()
            await partitions.begin_anew()
            soonest = self._read(partitions, limit - len(self._ready), paused)
            if self._ready:
                await self._commit_careful(partitions)
                if taken := self._take(partitions, limit, paused):
                    return taken
            partitions.membership.check()
            for error in (partitions.membership.error, self._fetcher.error):
                if error is not None:
                    raise error
            await self._commit_passed(partitions)
            if (left := min(until, soonest) - time.monotonic()) <= 0:
                if time.monotonic() >= until:
                    return []
                continue
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _joined(self) -> Partitions:
        partitions = self._partitions
        if partitions is None:
            partitions = await self._prepare()
            await self._join(partitions)
            self._partitions = partitions
            self._background.start(self._move(), name="messaging-kafka-delays")
            self._background.start(
                watch(self._fetcher, self._where, self._session.settings), name="messaging-kafka-watch"
            )
            self._background.start(watch_growth(partitions, self._fetcher), name="messaging-kafka-growth")
            if not self._group.ordered:
                self._background.start(self._relieve(), name="messaging-kafka-relief")
        else:
            partitions.membership.check()
            if partitions.membership.error is not None:
                await partitions.membership.revive()
        return partitions

    async def _join(self, partitions: Partitions) -> None:
        try:
            await partitions.membership.begin()
        except BaseException:  # cancelled, too: the others would wait for it for as long as its session
            await partitions.membership.leave()
            raise

    async def _prepare(self) -> Partitions:
        state = await self._session.topology.state(self._group.topic)
        await self._session.topology.fit(self._group, state.partitions)
        partitions = Partitions(
            self._session,
            self._group,
            self._ownership,
            self._background,
            topic=state.physical,
            count=state.partitions,
            sources=self._add,
            gone=self._gone,
            woken=self._wake.set,
        )
        self._settler = Settler(self._session, self._group, partitions)
        return partitions

    def _add(self, sources: Iterable[Source]) -> None:
        self._fetcher.add(sources)

    def _gone(self, unit: Unit) -> None:
        self._fetcher.remove([part.place for part in unit.parts])
        self._ready = [one for one in self._ready if one.token.unit is not unit]
        self._moves = [move for move in self._moves if move[0].token.unit is not unit]

    def _read(self, partitions: Partitions, limit: int, paused: Collection[int]) -> float:
        """Parse what there is room for; when the next delayed record is due."""
        soonest = inf
        for unit in self._in_turn(partitions, paused):
            for part in reversed(unit.parts):
                if not part.source.waiting or part.progress.full:
                    continue
                if limit <= 0 and part.tier is None:
                    continue
                try:
                    if part.tier is not None:
                        late_from = time.monotonic() - LATE if part.tier and partitions.shares else -inf
                        limit, due = self._read_tier(unit, part, part.tier, limit, late_from)
                        soonest = min(soonest, due)
                    else:
                        limit -= self._read_part(unit, part, limit)
                except KafkaError as error:
                    part.source.rewind(part.progress.high)
                    raise translate(
                        error, f"reading {self._where}", self._session.settings.address
                    ) from error
                self._fetcher.hungry()
        return soonest

    def _in_turn(self, partitions: Partitions, paused: Collection[int]) -> list[Unit]:
        """What there is something to read of, each as often the first as others of its kind.

        Every second time delayed records are first: those that are due are older than what waits in the topic, which
        goes on all the same where messages fail again and again.
        """
        now = time.monotonic()
        delayed: list[Unit] = []
        others: list[Unit] = []
        for unit in partitions.owned.values():
            if unit.waiting and not unit.draining and unit.number not in paused and unit.lease.deadline > now:
                (others if unit.parts[0].tier is None else delayed).append(unit)
        self._turn += 1
        turn, last = divmod(self._turn, 2)
        delayed, others = _from(delayed, turn), _from(others, turn)
        return others + delayed if last else delayed + others

    def _read_part(self, unit: Unit, part: Part, limit: int) -> int:
        source, ready = part.source, self._ready
        taken = 0
        # Of what a former owner left most may be done: that fills no room, and nothing wakes us for what is behind it.
        while taken < limit and source.waiting and not part.progress.full:
            for record in source.read(limit - taken):
                delivery = self._delivery(unit, part, record)
                if delivery is not None:
                    ready.append(delivery)
                    taken += 1
        self._pass(unit, part)
        return taken

    def _pass(self, unit: Unit, part: Part) -> None:
        if part.progress.passed(part.source.position):
            unit.dirty.add(part)
            self._passed = unit

    def _read_tier(self, unit: Unit, part: Part, delay: float, limit: int, late: float) -> tuple[int, float]:
        """Records lie in the order in which they are due; when the first that is not due will be.

        What was due before `late`, in monotonic seconds, goes to all members where there is no room for it.
        """
        now, clock = time.monotonic(), self._session.brokers.time
        while (record := part.source.head()) is not None:
            received = read(record, topic=self._group.topic.name, partition=unit.number, ours=True)
            kept = clock.kept(record.timestamp / 1000, *part.source.kept)
            whole = clock.here(received.not_before) if received.wait is None else kept + received.wait
            due = min(kept + delay, whole)
            if due > now + EARLY:
                return limit, due
            if whole > now + EARLY:
                part.source.read(1)
                delivery = self._delivery(unit, part, record)
                if delivery is not None:
                    self._moves.append((delivery, whole))
                    self._moving.set()
                continue
            if limit <= 0 and (whole > late or part.progress.full):
                return limit, inf
            if whole > now:
                return limit, whole
            part.source.read(1)
            delivery = self._delivery(unit, part, record)
            if delivery is None:
                continue
            if limit > 0 or delivery.returns:
                self._ready.append(delivery)
                limit -= 1
            else:
                self._moves.append((delivery, whole))
                self._moving.set()
        self._pass(unit, part)
        return limit, inf

    def _delivery(self, unit: Unit, part: Part, record: Any) -> RawDelivery | None:
        offset: int = record.offset
        entry = part.progress.take(offset)
        if entry is None:
            return None
        place = part.place
        received = read(record, topic=self._group.topic.name, partition=place.partition, ours=part.copies)
        message = received.message
        delivery = RawDelivery(message, unit.number)
        delivery.position = received.origin or f"{place.partition}/{offset}"
        delivery.reply_to = received.reply_to
        delivery.fence = unit.fence
        delivery.lease = unit.lease
        delivery.native = record
        delivery.token = Token(unit, part, offset, entry)
        if part.copies:
            delivery.attempt = received.attempt
            delivery.failure = received.failure
        if entry.attempt > 1:
            delivery.attempt = max(delivery.attempt, entry.attempt)
            delivery.hold = max(0.0, entry.due - time.monotonic())
        if entry.returns:
            delivery.returns = entry.returns
        delivery.deliveries = delivery.attempt + delivery.returns
        if entry.alone:
            delivery.guard = "tripped"
        entry.delivery = delivery
        return delivery

    async def _commit_careful(self, partitions: Partitions) -> None:
        """What a dead member may have had is handed out only when a next one would know that it was (3)."""
        units: dict[int, Unit] = {}
        for delivery in self._ready:
            token: Token = delivery.token
            if token.part.progress.careful and not token.known:
                token.known = True
                token.unit.dirty.add(token.part)
                units[token.unit.number] = token.unit
        if units:
            try:
                await partitions.commit(units.values())
            except LeaseLost:
                return
            except BaseException:  # cancelled, too: nobody knows whether the broker has it
                for delivery in self._ready:
                    delivery.token.known = False
                raise

    async def _commit_passed(self, partitions: Partitions) -> None:
        """Marks of transactions, or gaps, that no message follows would count as lag for ever."""
        unit, self._passed = self._passed, None
        if unit is not None and partitions.owned.get(unit.number) is unit:
            with suppress(MessagingError):  # it stays dirty: the next commit has it
                await partitions.commit([unit])

    def _take(self, partitions: Partitions, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        taken: list[RawDelivery] = []
        left: list[RawDelivery] = []
        now = time.monotonic()
        for delivery in self._ready:
            unit = partitions.owner(delivery)
            if unit is None:
                continue
            if len(taken) < limit and delivery.partition not in paused and not unit.draining:
                delivery.token.handed = now
                taken.append(delivery)
            else:
                left.append(delivery)
        self._ready = left
        return taken

    # --- send on -----------------------------------------------------------------------------------------------

    async def _move(self) -> None:
        """Send delayed records on to their next tier."""
        while True:
            await self._moving.wait()
            self._moving.clear()
            moves, self._moves = self._moves, []
            assert self._partitions is not None
            left = await self._send_on(moves, self._partitions.shared)
            for delivery, due in left:
                if delivery.token.large:  # it waits here for what is left of its delay
                    delivery.hold = max(0.0, due - time.monotonic())
                    self._ready.append(delivery)
                    self._wake.set()
            left = [move for move in left if not move[0].token.large]
            if left:
                self._moves += left
                await asyncio.sleep(AGAIN)
                self._moving.set()

    async def _send_on(
        self, moves: Sequence[tuple[RawDelivery, float]], shared: int = 0
    ) -> list[tuple[RawDelivery, float]]:
        """Returns those that could not be sent."""
        assert self._settler is not None
        left = set(await self._settler.move([one for one, _ in moves], [due for _, due in moves], shared))
        return [move for move in moves if move[0] in left]

    async def _relieve(self) -> None:
        """Let others have what this member has had no room for, while there is somebody who has."""
        partitions = self._partitions
        assert partitions is not None
        while True:
            await asyncio.sleep(STUCK_AFTER / 2)
            now = time.monotonic()
            stuck = not self._receiving and now - self._received > STUCK_AFTER and self._backlog(partitions)
            if stuck != partitions.membership.busy and (stuck or now - self._eased > EASED_AFTER):
                partitions.membership.busy = stuck
                partitions.membership.rejoin()
            if stuck:
                self._eased = now
                # Into a tier of our own it would come back here.
                if partitions.relief and not partitions.owns_first_tier:
                    with suppress(MessagingError):  # the next `receive` meets it, and tells
                        await self._hand_on(partitions)

    def _backlog(self, partitions: Partitions) -> bool:
        return bool(self._ready) or any(
            part.source.waiting
            for unit in partitions.owned.values()
            for part in unit.parts
            if part.tier is None and not unit.draining
        )

    async def _hand_on(self, partitions: Partitions) -> None:
        self._read(partitions, RELIEF - len(self._ready), ())
        ready, self._ready = self._ready, []
        left = await self._send_on([(one, 0.0) for one in ready])
        self._ready[:0] = [one for one, _ in left]

    # --- settle ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """See `Consumer.settle`. Fenced: the group refuses the commit of a member that is out."""
        assert self._settler is not None
        return await self._settler.settle(settlements)

    async def extend(
        self,
        deliveries: Sequence[RawDelivery],
        seconds: float,  # noqa: ARG002  the SPI's: the heartbeat extends
    ) -> Sequence[bool]:
        """Leases are the member's, kept by the heartbeat: this only tells which still hold."""
        partitions = self._partitions
        return [partitions is not None and partitions.owner(one) is not None for one in deliveries]

    async def isolate(self, delivery: RawDelivery) -> bool:
        """See `Consumer.isolate`."""
        token: Token = delivery.token
        if self._partitions is None or self._partitions.owner(delivery) is None:
            raise LeaseLost(
                f"message {delivery.message.id} of {self._where}: partition {delivery.partition} has another owner"
            )
        token.entry.alone = True
        token.unit.dirty.add(token.part)
        await self._partitions.commit([token.unit])
        delivery.guard = "alone"
        return True

    # --- lifecycle ---------------------------------------------------------------------------------------------

    def status(self) -> ConsumerStatus:
        """See `Consumer.status`."""
        partitions = self._partitions
        if partitions is None:
            return ConsumerStatus(False)
        membership = partitions.membership
        connected = membership.joined and membership.error is None and self._fetcher.error is None
        return ConsumerStatus(
            connected and not self._closed,
            frozenset(partitions.owned),
            frozenset(number for number, unit in partitions.owned.items() if unit.full),
        )

    async def close(self) -> None:
        """See `Consumer.close`."""
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as parts:  # each is ended, though the end of another is cut off
            if self._partitions is not None:
                parts.push_async_callback(self._partitions.leave)
            if self._settler is not None:
                parts.push_async_callback(self._settler.close)
            parts.push_async_callback(self._fetcher.close)
            await self._background.stop()


def _from(units: list[Unit], turn: int) -> list[Unit]:
    at = turn % max(1, len(units))
    return units[at:] + units[:at]
