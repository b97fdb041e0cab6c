"""The dispatcher: receive -> lanes -> handler -> settle, for one subscription of one member.

State has one owner: the lanes know what is held, the workers what runs, the settler what waits to be settled, the
consumer what is ours on the broker.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from messaging import failure
from messaging.adapter import DONE, Hold, SettleError, Settlement
from messaging.backoff import Backoff
from messaging.clock import check_cancelled, sleep
from messaging.delay import bounded
from messaging.errors import LeaseLost, MessagingError, is_fatal
from messaging.health import SubscriptionHealth
from messaging.lanes import Lanes
from messaging.lasting import lasting, this_task
from messaging.message import Ack, Reject, Release, Retry, seconds
from messaging.settlement import Settler
from messaging.shielded import to_its_end
from messaging.workers import ABANDON_AFTER, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from messaging.adapter import Adapter, Consumer, RawDelivery, Settled
    from messaging.binding import Binding
    from messaging.clock import Clock, Timer
    from messaging.message import Message, Outcome

logger = logging.getLogger("messaging")

RECEIVE_WAIT = 1.0
"""Seconds that one `receive` may wait; bounds how late a change of the paused partitions is seen."""


class Dispatcher:
    """Runs one subscription until it is stopped or fails for good."""

    def __init__(self, adapter: Adapter, binding: Binding, clock: Clock) -> None:
        self._binding = binding
        self._subscription = binding.subscription
        group = binding.subscription.group
        self.topic, self.group = group.topic.name, group.name
        self._clock = clock
        self._consumer: Consumer = adapter.consumer(binding.subscription, self)
        self._lanes = Lanes(ordered=binding.subscription.group.ordered, window=self._consumer.window)
        self._held = self._lanes.held
        self._settler = Settler(
            settle=self._consumer.settle,
            reply=adapter.reply,
            settled=self._settled,
            wanted=self._still_ours,
            clock=clock,
        )
        self._workers = Workers(
            binding,
            self._lanes,
            self._consumer,
            clock,
            conclude=self._conclude,
            lose=lambda delivery, reason: self._forget_lost((delivery,), reason),
            park=self._go_on_holding,
            changed=self._changed,
        )
        self._fences: dict[int, int] = {}
        """The newest fence that came from each partition."""
        self._revoked: dict[int, float] = {}
        """Partitions that are handed over, with the newest fence of the ownership that ends by it."""
        self._lost: set[RawDelivery] = set()
        self._taken: set[RawDelivery] = set()
        """Being settled, and gone from the broker, which has others of the same ownership as ours: it took them."""
        self._parting: list[RawDelivery] = []
        """Done with here while this member leaves, and its own on the broker until it has left."""
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._stop = asyncio.Event()
        self._draining = False
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self.receiving = False
        self.last_error: str | None = None
        self._lease_error: str | None = None

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume until `stop`, then drain. Raises what ends a subscription for good.

        Cancellation gives back, uncounted, what was not settled.
        """
        failed: BaseException | None = None
        me = this_task()
        parts = {
            "messaging-settle": self._settler.run,
            "messaging-leases": self._keep_leases,
            "messaging-workers": self._workers.run,
            "messaging-receive": self._receive,
        }
        try:
            async with asyncio.TaskGroup() as tasks:
                *background, receiver = [
                    tasks.create_task(
                        lasting(part, name, lambda: self._draining or me.cancelling() > 0), name=name
                    )
                    for name, part in parts.items()
                ]
                await self._stop.wait()
                await self._drain(receiver)
                for task in background:
                    task.cancel()
        except BaseExceptionGroup as group:
            # The first error ended the task group; the others only followed from it.
            failed = group.exceptions[0]
        finally:
            self.receiving = False
            if self._timer is not None:
                self._timer.cancel()
            try:
                await self._workers.end()
                await self._settler.flush(ABANDON_AFTER)
            finally:
                # What is given back in peace is not counted; the crash guard has to see a message that ends processes.
                if not self._workers.exiting:
                    await to_its_end(self._consumer.close(), ABANDON_AFTER)
        if failed is not None:
            raise failed

    def stop(self) -> None:
        """Ask `run` to drain and return."""
        self._stop.set()

    async def _drain(self, receiver: asyncio.Task[None]) -> None:
        """Finish and settle what runs, within the grace period; what has not started goes back with `close`."""
        self._draining = True
        self._workers.stop()
        receiver.cancel()
        self._withdraw(lambda _: True)
        deadline = self._clock.monotonic() + self._binding.grace
        await self._until(lambda: not self._workers.running, deadline)
        for delivery in list(self._workers.running):
            self._workers.interrupt(delivery)
        await self._until(lambda: not self._lanes.started, deadline + ABANDON_AFTER)

    # --- receive -----------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        backoff = Backoff()
        prefetch = self._subscription.prefetch
        batch = max(1, prefetch // 4)
        while True:
            check_cancelled()
            self._binding.store.check()
            room = prefetch - self._lanes.unparked
            # Small gaps are left to grow while every worker is busy, so that messages come in batches.
            if room < (1 if self._workers.idle else batch) or self._workers.alone is not None:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await self._consumer.receive(room, RECEIVE_WAIT, self._lanes.full)
            except MessagingError as error:
                if is_fatal(error):
                    raise
                await self._wait_to_reconnect(error, backoff)
                continue
            if not self.receiving:
                self.receiving, self.last_error = True, None
                backoff.reset()
            self._take_in(deliveries)

    async def _wait_to_reconnect(self, error: MessagingError, backoff: Backoff) -> None:
        check_cancelled()
        wait = backoff.next()
        if self.receiving or self.last_error is None:
            logger.warning(
                "Receiving from %s/%s was interrupted: %s. Trying again.",
                *(self.topic, self.group, error),
                extra=self._extra(),
            )
        self.receiving = False
        self.last_error = str(error)
        self._binding.counters.reconnects += 1
        await sleep(self._clock, wait)

    def _take_in(self, deliveries: Collection[RawDelivery]) -> None:
        revoked = self._revoked
        if self._binding.max_hold < inf:
            now = self._clock.monotonic()
            for one in deliveries:
                one.received = now
        self._lanes.add([one for one in deliveries if not self._leaving(one)] if revoked else deliveries)
        self._fences.update({one.partition: one.fence for one in deliveries})
        self._binding.counters.received += len(deliveries)
        self._workers.wake(len(deliveries))

    # --- settle ------------------------------------------------------------------------------------------------

    def _conclude(self, delivery: RawDelivery, outcome: Outcome) -> None:
        """Hand the outcome of one handling to the settler."""
        if delivery not in self._held or (self._lost and delivery in self._lost):
            self._forget(delivery)
            self._workers.end_alone(delivery)
            return
        reply: tuple[str, Message] | None = None
        if self._binding.answer is not None:
            outcome, answer = self._binding.answer(delivery, outcome)
            if answer is not None and delivery.reply_to is not None:
                reply = (delivery.reply_to, answer)
        if isinstance(outcome, Ack):
            if self._lanes.ordered and delivery is not self._workers.alone:
                self._lanes.advance(delivery)
            settlement = Settlement(delivery, outcome)
        elif isinstance(outcome, Release):
            settlement = Settlement(delivery, outcome, after=seconds(outcome.after or 0.0))
        else:
            settlement = self._failed(delivery, outcome)
        self._settler.add(settlement, reply)

    def _failed(self, delivery: RawDelivery, outcome: Retry | Reject) -> Settlement:
        after = 0.0
        if isinstance(outcome, Retry):
            after = seconds(outcome.after or 0.0)
            outcome = bounded(outcome, after, self._longest_delay(delivery))
        cause = outcome.cause if isinstance(outcome, Reject) else "exception"
        record = failure.record(
            delivery.failure,
            message=delivery.message,
            group=self.group,
            attempt=failure.attempts_begun(delivery, outcome),
            deliveries=delivery.deliveries,
            partition=delivery.partition,
            position=delivery.position,
            handler=self._binding.handler_name,
            reason=outcome.reason,
            cause=cause,
            error=outcome.__cause__,
            now=datetime.fromtimestamp(self._clock.time(), UTC),
            service=self._binding.service,
        )
        if isinstance(outcome, Reject):
            failure.log_dead_letter(delivery, outcome, cause, self._extra())
        return Settlement(delivery, outcome, after=after, failure=record)

    def _longest_delay(self, delivery: RawDelivery) -> float:
        """No longer than the broker lets a delivery be held, since it was received (8)."""
        longest, hold = self._binding.max_delay, self._binding.max_hold
        if hold == inf:
            return longest
        return min(longest, hold - (self._clock.monotonic() - delivery.received))

    def _settled(self, settlements: Sequence[Settlement], results: Sequence[Settled]) -> None:
        unwatched = self._binding.observer is None and not self._lost and not self._workers.lonely
        acked = [
            one.delivery
            for one, result in zip(settlements, results, strict=True)
            if unwatched and result is DONE and one.outcome.__class__ is Ack
        ]
        self._binding.counters.acked += self._lanes.finish_all(acked)
        if len(acked) < len(settlements):
            for one, result in zip(settlements, results, strict=True):
                # Those that are finished are not held any more.
                if one.delivery in self._held and one.delivery not in self._lost:
                    self._take_result(one, result)
                    self._workers.end_alone(one.delivery)
        self._freed(len(settlements))

    def _take_result(self, settlement: Settlement, result: Settled) -> None:
        """One that is not just acked: it failed, is held, or somebody wants to know of it."""
        delivery = settlement.delivery
        if isinstance(result, SettleError):
            self._forget_lost((delivery,), str(result.error))
            return
        if self._binding.observer is not None:
            self._binding.observer.settled(delivery, result)
        self._binding.counters.count(settlement.outcome)
        if isinstance(result, Hold) and not (self._draining or self._leaving(delivery)):
            self._hold(settlement, result.until)
        else:
            if isinstance(result, Hold) and self._draining:
                self._parting.append(delivery)
            self._lanes.finish(delivery)

    def _hold(self, settlement: Settlement, until: float) -> None:
        """Park a delivery that stays with this member; its failure is recorded, so its returns start anew."""
        delivery = settlement.delivery
        if isinstance(settlement.outcome, Retry):
            delivery.attempt += 1
            delivery.failure = settlement.failure
            delivery.returns = 0
        delivery.guard = "none"  # the broker forgets the mark with the settlement: it has to be stored anew
        self._park(delivery, until)

    def _go_on_holding(self, delivery: RawDelivery) -> None:
        """Hold for what is left of a delay that a former owner began."""
        until, delivery.hold = self._clock.monotonic() + delivery.hold, 0.0
        self._park(delivery, until)

    def _park(self, delivery: RawDelivery, until: float) -> None:
        self._lanes.park(delivery, until)
        self._changed()
        self._schedule_wake()

    def _forget(self, delivery: RawDelivery) -> None:
        self._lost.discard(delivery)
        self._lanes.finish(delivery)
        self._freed(1)

    def _freed(self, most: int) -> None:
        """Deliveries were finished, `most` at most: there is room, and their lanes may go on."""
        self._changed()
        if self._lanes.ordered:
            self._workers.wake(most)

    # --- ownership ---------------------------------------------------------------------------------------------

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        """See `Ownership.on_revoke`.

        A partition may be lost before it is handed over, and come back: what then comes has a newer fence, and stays.
        """
        ending = {partition: self._fences.get(partition, inf) for partition in partitions}
        self._revoked |= ending
        mine = dict.fromkeys(self._lanes.of_partitions(partitions)).keys()
        try:
            self._withdraw(mine.__contains__)
            for delivery in mine:
                if delivery not in self._lanes.started:
                    self._forget(delivery)
            await self._until(lambda: mine.isdisjoint(self._workers.running), deadline)
            for delivery in self._workers.running:
                if delivery in mine:
                    self._workers.interrupt(delivery)
            await self._until(lambda: mine.isdisjoint(self._lanes.started), deadline + ABANDON_AFTER)
            # The next owner has these: no settlement that is answered later brings them back here.
            self._forget_lost(mine & self._lanes.started, "the partition was handed over")
        finally:
            for partition, fence in ending.items():
                if self._revoked.get(partition) == fence:
                    del self._revoked[partition]

    def _leaving(self, delivery: RawDelivery) -> bool:
        """Whether it is handed over with its partition."""
        return delivery.fence <= self._revoked.get(delivery.partition, -inf)

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        """See `Ownership.on_lost`."""
        self._binding.ack_timeout.seen(self._consumer.ack_timeout)
        self._forget_lost(deliveries, reason)

    def _forget_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        lost = 0
        for delivery in self._lost_with(deliveries):
            if delivery not in self._held or delivery in self._lost:
                continue
            lost += 1
            if self._binding.observer is not None:
                self._binding.observer.settled(delivery, SettleError(LeaseLost(reason)))
            if delivery in self._workers.running:
                # Its lane stays blocked until the handler has ended: nothing of the key overlaps in this process.
                self._lost.add(delivery)
                self._workers.interrupt(delivery)
            else:
                self._forget(delivery)
                self._workers.end_alone(delivery)
        if lost:
            self._binding.counters.lost += lost
            logger.warning(
                "%d deliveries of %s/%s were lost to this member: %s. They are delivered again.",
                *(lost, self.topic, self.group, reason),
                extra=self._extra(),
            )

    def _lost_with(self, deliveries: Collection[RawDelivery]) -> Collection[RawDelivery]:
        """These, and on an ordered group all that this member holds of their keys by the same ownership: these again.

        Whoever has the key now handles the lost ones first: their successors must not start here (7).
        """
        if not self._lanes.ordered:
            return deliveries
        told = [one for one in deliveries if one in self._held and one not in self._taken]
        return [*deliveries, *self._lanes.of_keys(told)]

    def _withdraw(self, unwanted: Callable[[RawDelivery], bool]) -> None:
        for delivery in self._workers.withdraw_suspects(unwanted):
            if self._draining:
                self._parting.append(delivery)
            self._forget(delivery)

    def _still_ours(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Those whose delivery is still ours; the others are lost."""
        held, lost, now = self._held, self._lost, self._clock.monotonic()
        ours = [one for one in settlements if one.delivery in held and not (lost and one.delivery in lost)]
        ended = [one.delivery for one in ours if one.delivery.lease.deadline <= now]
        if ended:
            self._forget_lost(ended, "its lease ended before it was settled")
            ours = [one for one in ours if one.delivery.lease.deadline > now]
        return ours

    async def _keep_leases(self) -> None:
        """Extend what is held, at a third of the lease (15); what cannot be extended is lost when its lease ends."""
        lease = self._consumer.lease
        if lease is None:
            return
        while True:
            check_cancelled()
            await sleep(self._clock, lease / 3)
            held = [delivery for delivery in self._lanes.held if delivery not in self._lost]
            try:
                extended = await self._consumer.extend([*held, *self._parting], lease) if held else ()
                ours, self._lease_error = extended[: len(held)], None
            except MessagingError as error:
                if is_fatal(error):
                    raise
                now, self._lease_error = self._clock.monotonic(), str(error)
                ours = [delivery.lease.deadline > now for delivery in held]
            # What is being settled may be gone just because it was settled: its settlement tells.
            settling = self._settler.deliveries
            gone = [delivery for delivery, kept in zip(held, ours, strict=True) if not kept]
            owned = {(one.partition, one.fence) for one, kept in zip(held, ours, strict=True) if kept}
            self._taken = {one for one in gone if one in settling and (one.partition, one.fence) in owned}
            reason = "its lease ended" if self._lease_error else "the broker gave it away"
            self._forget_lost([one for one in gone if one not in settling], reason)

    # --- looking in ------------------------------------------------------------------------------------------------

    @property
    def binding(self) -> Binding:
        return self._binding

    def held(self, partition: int) -> Collection[RawDelivery]:
        """What of this partition is not settled yet, parked or not."""
        return self._lanes.of_partitions({partition})

    def health(self, broker: str) -> SubscriptionHealth:
        """What this process knows of the subscription."""
        store = self._binding.store.failing(self._clock.monotonic())
        errors = (self.last_error, self._settler.error, self._lease_error, self._workers.error, store)
        return SubscriptionHealth(
            topic=self.topic,
            group=self.group,
            broker=broker,
            receiving=self.receiving,
            running=len(self._workers.running),
            held=len(self._lanes),
            parked=self._lanes.parked,
            parked_full=bool(self._lanes.full or self._consumer.status().full),
            last_error=next(filter(None, errors), None),
            unsettled=self._settler.error is not None or self._lease_error is not None,
            store=store,
            stuck=self._workers.stuck,
            **asdict(self._binding.counters),
        )

    # --- waking ------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._room.set()
        self._progress.set()

    def _schedule_wake(self) -> None:
        due = self._lanes.next_due()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.monotonic()), self._wake_parked)

    def _wake_parked(self) -> None:
        self._timer = None
        self._workers.wake(self._lanes.wake(self._clock.monotonic()))
        self._room.set()
        self._schedule_wake()

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait for a condition that changes with progress, until the deadline at most."""
        timer: Timer | None = None
        try:
            while not condition():
                if self._clock.monotonic() >= deadline:
                    return
                if timer is None:
                    timer = self._clock.call_later(deadline - self._clock.monotonic(), self._progress.set)
                self._progress.clear()
                await self._progress.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _extra(self) -> dict[str, str]:
        return {"topic": self.topic, "group": self.group}
