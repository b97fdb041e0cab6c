"""Members of a group: what waiting, settling and leaving have in common, and the members that share a standard queue.

A delivery is ours until its lease ends by our own clock: the service takes a late settlement for a good one, so it is
refused here.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from messaging.adapter import DONE, Consumer, ConsumerStatus, Hold, Lease, RawDelivery, SettleError
from messaging.errors import Closed, ConnectionFailed, LeaseLost, MessagingError, TopicNotFound, TopologyLost
from messaging.lasting import this_task
from messaging.message import Ack
from messaging.shielded import Underway, given_up, shielded
from messaging_sqs import copies
from messaging_sqs.arrivals import Arrivals
from messaging_sqs.batches import in_batches, is_gone
from messaging_sqs.bounds import Bounds, bounds_of
from messaging_sqs.connection import Absent, Interrupted
from messaging_sqs.entries import Token, unpack
from messaging_sqs.envelopes import Envelopes
from messaging_sqs.guard import Marks, suspects_of
from messaging_sqs.leases import judged, tend
from messaging_sqs.lost_letters import LostLetters
from messaging_sqs.moved import renewed
from messaging_sqs.polling import Polls
from messaging_sqs.settings import LONGEST_LEASE

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import Ownership, Settled, Settlement, Subscription
    from messaging_sqs.connection import Connection
    from messaging_sqs.topology import TopologyKeeper

HELD_HERE = 1.0
"""The last seconds of a delay are waited for in the member: the service counts whole ones."""


class Member(Consumer):
    """What every member does alike."""

    def __init__(
        self,
        connection: Connection,
        topology: TopologyKeeper,
        subscription: Subscription,
        ownership: Ownership,
        member: str,
    ) -> None:
        self.connection = connection
        self.topology = topology
        self.group = subscription.group
        self.ownership = ownership
        self.lease = connection.settings.lease
        self.where = f"{self.group.topic.name}/{self.group.name}"
        self.marks = Marks(connection, member)
        self._envelopes = Envelopes(self.where)
        self.url = ""
        self.bounds = Bounds(connection.settings.max_receives)
        self._letters = LostLetters(topology, subscription.group)
        self._polls = Polls(
            connection,
            number=connection.settings.pollers,
            lease=connection.settings.lease,
            take=self._take_in,
            changed=self._changed,
        )
        self._arrivals = Arrivals(self.forget)
        self._held: dict[RawDelivery, None] = {}
        """Everything that is ours, in the order it came."""
        self._leaving: set[RawDelivery] = set()
        """What is being removed or given back: an extension that finds it gone says nothing."""
        self._arrived = asyncio.Event()
        self._settling = asyncio.Lock()
        self._underway = Underway()
        self._tending: asyncio.Task[None] | None = None
        self._connected = False
        self._closed = False
        self._unextended: MessagingError | None = None
        """Why the last extension was not taken."""

    # --- receive -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        """See `Consumer.receive`. The polls that a cancelled call began go on; the next call gets what they bring."""
        self._check_open()
        until = time.monotonic() + wait
        if not self.url:
            await self._join()
        while True:
            if taken := self._arrivals.take(limit, paused):
                return taken
            if self._polls.failure is not None:
                raise await self._failed()
            self._polls.start(self.url, self._arrivals.room(limit) - self._polls.requested)
            self._arrived.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                return ()
            self._check_open()

    async def _join(self) -> None:
        try:
            url = await self.topology.queue_url(self.group)
            self.bounds = await bounds_of(self.topology.queues, url, self.bounds)
        except (Absent, TopicNotFound) as error:
            raise await self._gone(str(error)) from error
        self.url = url
        self._connected = True
        if self._tending is None:
            lease, held, leaving = self.connection.settings.lease, self._held, self._leaving
            tending = tend(lease, held=held, leaving=leaving, ended=self._end, extend=self._keep_waiting)
            self._tending = asyncio.create_task(tending, name="messaging-sqs-tend")

    async def _failed(self) -> MessagingError:
        error, self._polls.failure = self._polls.failure, None
        assert error is not None
        self._connected = False
        if isinstance(error, Absent):
            self.url = ""
            return await self._gone(f"the queue of {self.where} is gone: was the group deleted? {error}")
        return error

    async def _gone(self, text: str) -> TopicNotFound:
        """The queue is not there. Whoever deletes the group deletes its dead letters with it."""
        kept = await self.topology.forget_queue(self.group)
        return TopologyLost(text) if kept else TopicNotFound(text)

    async def _take_in(self, messages: Sequence[dict[str, Any]], came: float) -> None:
        """What a poll brought: judged by the crash guard, and sent on where it is too early for it."""
        self._connected = True
        messages = self._envelopes.opened(messages)
        now, since = self.connection.time.handed_over(messages), time.monotonic()
        deliveries = self.unpacked(messages, came + self.connection.settings.lease, now)
        deliveries = await renewed(self, deliveries)
        if suspects := suspects_of(deliveries):
            await self.marks.judge(self.url, suspects)
        early: list[tuple[RawDelivery, float]] = []
        now += time.monotonic() - since
        for delivery in deliveries:
            token: Token = delivery.token
            self._held[delivery] = None
            if token.due and (left := token.due - now) > 0:
                if left > HELD_HERE:
                    early.append((delivery, left))
                    continue
                delivery.hold = left
            self._arrivals.add(delivery)
        if early:
            await self._step(early)

    def unpacked(self, messages: Sequence[dict[str, Any]], until: float, now: float) -> list[RawDelivery]:
        """The deliveries, with leases that end at `until`; `now` is the service's time."""
        return [unpack(raw, self.group, Lease(until), now) for raw in messages]

    async def _step(self, early: list[tuple[RawDelivery, float]]) -> None:
        """The next step of a long delay; what cannot be sent on hides until its time, or for as long as a step."""
        steps = [copies.next_step(delivery, left, self.bounds.step) for delivery, left in early]
        lefts = dict(early)
        unsent = await self.replace(list(lefts), steps)
        await self._hide(unsent, [min(lefts[delivery], copies.LONGEST_STEP) for delivery in unsent])

    def _changed(self) -> None:
        self._arrived.set()

    def _check_open(self) -> None:
        if self._closed:
            raise self._is_closed()

    def _is_closed(self) -> Closed:
        return Closed(f"this member of {self.where} is closed: make a new one")

    # --- settle ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """See `Consumer.settle`."""
        try:
            # To its end even if whoever asks is cancelled: a copy and its removal belong together.
            return await shielded(
                self._underway.start(self._settle(settlements), name="messaging-sqs-settle")
            )
        except asyncio.CancelledError:
            if not self._closed or this_task().cancelling():
                raise
            return [SettleError(self._is_closed())] * len(settlements)  # `close` waited no longer

    async def _settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        async with self._settling:
            results: list[Settled] = [DONE] * len(settlements)
            removed: list[int] = []
            hidden: list[tuple[int, float]] = []
            copied: dict[str, list[tuple[int, copies.Copy]]] = {}
            seen: set[RawDelivery] = set()
            now = time.monotonic()
            for index, settlement in enumerate(settlements):
                delivery = settlement.delivery
                token: Token = delivery.token
                if token.done or delivery in seen:
                    continue
                seen.add(delivery)
                if delivery.lease.deadline <= now:
                    results[index] = self.lost(delivery)
                elif isinstance(settlement.outcome, Ack) or token.copied:
                    removed.append(index)
                else:
                    try:
                        plan = await self.plan(settlement)
                    except MessagingError as error:
                        results[index] = SettleError(error)
                        continue
                    if isinstance(plan, Hold):
                        results[index] = plan
                    elif isinstance(plan, (int, float)):
                        hidden.append((index, plan))
                    else:
                        url, copy = plan
                        copied.setdefault(url, []).append((index, copy))
            await asyncio.gather(
                *(self._copy(url, parcels, settlements, removed, results) for url, parcels in copied.items())
            )
            await self._conclude(settlements, removed, hidden, results)
            return results

    async def _copy(
        self,
        url: str,
        parcels: Sequence[tuple[int, copies.Copy]],
        settlements: Sequence[Settlement],
        removed: list[int],
        results: list[Settled],
    ) -> None:
        errors = await self._stored(url, [copy for _, copy in parcels])
        for (index, _), error in zip(parcels, errors, strict=True):
            if error is None:
                settlements[index].delivery.token.copied = True
                removed.append(index)
            else:
                token: Token = settlements[index].delivery.token
                token.too_large |= copies.refused_for_size(error)
                token.doubtful |= isinstance(error, Interrupted)
                results[index] = SettleError(error)

    async def _stored(self, url: str, those: Sequence[copies.Copy]) -> list[MessagingError | None]:
        """Store these; where they are dead letters whose queue somebody deleted, make it anew first (25)."""
        errors = await copies.store(self.connection, url, those)
        if url == self.url:
            return errors
        lost = [at for at, error in enumerate(errors) if isinstance(error, Absent)]
        if not lost:
            self._letters.there()
        elif reason := await self._letters.mend():
            for at in lost:
                errors[at] = reason
        else:
            again = await copies.store(self.connection, url, [those[at] for at in lost])
            for at, error in zip(lost, again, strict=True):
                errors[at] = error
        return errors

    async def _conclude(
        self,
        settlements: Sequence[Settlement],
        removed: Sequence[int],
        hidden: Sequence[tuple[int, float]],
        results: list[Settled],
    ) -> None:
        finished = [settlements[index].delivery for index in removed]
        given_back = [settlements[index].delivery for index, _ in hidden]
        for delivery in given_back:
            await self.unmark(delivery)  # before it can come back
        if hidden:
            errors, refusals = await asyncio.gather(
                self._remove(finished), self._hide(given_back, [seconds for _, seconds in hidden])
            )
        else:
            errors, refusals = await self._remove(finished), []
        for delivery in finished:
            if delivery.token.done:
                await self.unmark(delivery)  # after it is gone: one that a crash leaves here stays marked
        for index, error in zip(
            (*removed, *(index for index, _ in hidden)), (*errors, *refusals), strict=True
        ):
            if error is None:
                continue
            delivery = settlements[index].delivery
            results[index] = self.lost(delivery) if is_gone(error) else SettleError(error)

    @abstractmethod
    async def plan(self, settlement: Settlement) -> Hold | float | tuple[str, copies.Copy]:
        """How to settle what is not an Ack: hold it, hide it for so many seconds, or store a copy in a queue."""

    async def letter(self, settlement: Settlement) -> tuple[str, copies.Copy]:
        """Store a dead letter, cut where it is too large."""
        try:
            url = await self.topology.dead_url(self.group)
        except TopicNotFound:
            if reason := await self._letters.mend():
                raise reason from None
            url = await self.topology.dead_url(self.group)
        copy = copies.dead(settlement.delivery, url, settlement.failure)
        if not copies.fits(settlement.delivery, copy):
            copy = copies.cut(settlement, url, self.group.name, copy[0].size)
        return url, copy

    async def unmark(self, delivery: RawDelivery) -> None:
        """It is settled, or given back: it has not ended this process. Nothing for what was never marked."""
        if delivery.guard == "none":
            return
        try:
            await self.marks.remove(self.url, delivery)
        except MessagingError:
            return  # if it comes back, it comes back suspected

    async def _remove(self, deliveries: Sequence[RawDelivery]) -> list[MessagingError | None]:
        entries = [{"ReceiptHandle": delivery.token.handle} for delivery in deliveries]
        return await self._give_up("delete_message_batch", deliveries, entries)

    async def replace(
        self, deliveries: Sequence[RawDelivery], those: Sequence[copies.Copy]
    ) -> list[RawDelivery]:
        """Store these copies in the queue instead; what does not fit, or could not be stored, is left, and returned."""
        fitting = [
            (delivery, copy)
            for delivery, copy in zip(deliveries, those, strict=True)
            if copies.fits(delivery, copy)
        ]
        errors = await copies.store(self.connection, self.url, [copy for _, copy in fitting])
        stored = {delivery for (delivery, _), error in zip(fitting, errors, strict=True) if error is None}
        for delivery in stored:
            delivery.token.copied = True
            self._held[delivery] = None
        await self._remove(list(stored))
        return [delivery for delivery in deliveries if delivery not in stored]

    async def _hide(
        self, deliveries: Sequence[RawDelivery], seconds: Sequence[float]
    ) -> list[MessagingError | None]:
        """Give these back, each after so many seconds; in this order, and one batch after the other."""
        entries = [
            {"ReceiptHandle": delivery.token.handle, "VisibilityTimeout": math.ceil(after)}
            for delivery, after in zip(deliveries, seconds, strict=True)
        ]
        return await self._give_up(
            "change_message_visibility_batch", deliveries, entries, in_turn=self.group.ordered
        )

    async def _give_up(
        self,
        operation: str,
        deliveries: Sequence[RawDelivery],
        entries: Sequence[dict[str, Any]],
        *,
        in_turn: bool = False,
    ) -> list[MessagingError | None]:
        if not deliveries:
            return []
        self._leaving.update(deliveries)
        try:
            fates = await in_batches(
                self.connection, "sqs", operation, entries, in_turn=in_turn, QueueUrl=self.url
            )
        finally:
            self._leaving.difference_update(deliveries)
        return self._told(deliveries, fates)

    def _told(
        self, deliveries: Sequence[RawDelivery], fates: Sequence[object]
    ) -> list[MessagingError | None]:
        errors = [fate if isinstance(fate, MessagingError) else None for fate in fates]
        for delivery, error in zip(deliveries, errors, strict=True):
            if error is None:
                delivery.token.done = True
                self.forget(delivery)
        return errors

    async def give_back(self, deliveries: Sequence[RawDelivery], after: float) -> None:
        """Of a message group the last first: its order is kept."""
        given_back = list(reversed(deliveries))
        await self._hide(given_back, [after] * len(given_back))

    def lost(self, delivery: RawDelivery) -> SettleError:
        """Its lease has ended: it belongs to whoever gets it next."""
        self.forget(delivery)
        return SettleError(
            LeaseLost(
                f"the lease of message {delivery.message.id} of {self.where} ended before it was settled: it is "
                f"delivered again"
            )
        )

    def forget(self, delivery: RawDelivery) -> None:
        self._held.pop(delivery, None)

    # --- leases ------------------------------------------------------------------------------------------------

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        """See `Consumer.extend`. SQS lends a message for 12 hours at most: then its lease ends."""
        sent = time.monotonic()
        ours = [
            delivery for delivery in deliveries if delivery.lease.deadline > sent and not delivery.token.done
        ]
        asked = {
            one: max(1, math.floor(min(seconds, one.token.received + LONGEST_LEASE - sent))) for one in ours
        }
        entries = [{"ReceiptHandle": one.token.handle, "VisibilityTimeout": asked[one]} for one in ours]
        fates = await in_batches(
            self.connection, "sqs", "change_message_visibility_batch", entries, QueueUrl=self.url
        )
        settled = {one for one in ours if one.token.done or one in self._leaving}
        gone, failed, self._unextended = judged(ours, fates, settled)
        for delivery in ours:
            if id(delivery.lease) not in failed:
                delivery.lease.deadline = sent + asked[delivery]
        if self._unextended is not None:
            raise ConnectionFailed(f"leases of {self.where} are not extended: {self._unextended}")
        kept = set(ours) - gone
        # What was settled meanwhile is not lost: its settlement answers for it.
        return [delivery in kept or delivery.token.done for delivery in deliveries]

    async def isolate(self, delivery: RawDelivery) -> bool:
        """See `Consumer.isolate`."""
        if delivery.token.done or delivery.lease.deadline <= time.monotonic():
            raise LeaseLost(
                f"the lease of message {delivery.message.id} of {self.where} ended before it was isolated"
            )
        try:
            await self.marks.add(self.url, delivery)
        except Absent as error:  # `receive` tells what that means
            raise LeaseLost(
                f"message {delivery.message.id} was not isolated: the queue of {self.where} is gone"
            ) from error
        delivery.guard = "alone"
        return True

    async def _keep_waiting(self) -> None:
        """Keep what waits for the next `receive`, which nobody else extends; remove what its copy stands beside."""
        await self._remove([one for one in self._held if one.token.copied and one not in self._leaving])
        if self._arrivals.waiting:
            await self.extend(self._arrivals.waiting, self.connection.settings.lease)

    def _end(self, deliveries: list[RawDelivery]) -> None:
        for delivery in deliveries:
            self.forget(delivery)
        why = f", as it was not extended: {self._unextended}" if self._unextended else ""
        self.ownership.on_lost(deliveries, f"their lease ended{why}")

    # --- lifecycle ---------------------------------------------------------------------------------------------

    def status(self) -> ConsumerStatus:
        """See `Consumer.status`."""
        return ConsumerStatus(connected=self._connected and not self._closed)

    async def close(self) -> None:
        """See `Consumer.close`. Waits for the polls and the settlements that are under way, both bounded."""
        if self._closed:
            return
        self._closed = True
        self._changed()
        async with AsyncExitStack() as parts:  # each is ended, though the end of another is cut off
            parts.push_async_callback(self._leave)
            parts.push_async_callback(self._underway.end, self.connection.settings.settle_timeout)
            if self._tending is not None:
                parts.push_async_callback(given_up, (self._tending,), 0)
            await self._polls.close()

    async def _leave(self) -> None:
        now = time.monotonic()
        left = [delivery for delivery in self._held if delivery.lease.deadline > now]
        for delivery in left:
            await self.unmark(delivery)
        self._arrivals.clear()
        await self.leave_behind([one for one in left if not one.token.copied])
        await self._remove([one for one in left if one.token.copied and not one.token.done])

    @abstractmethod
    async def leave_behind(self, deliveries: list[RawDelivery]) -> None:
        """Give these back, uncounted, when the member leaves."""
