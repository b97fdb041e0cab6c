"""The dispatcher: receive -> lanes -> handler -> settle, for one subscription of one member.

A fixed number of workers take deliveries from the lanes and run the handler in place: there is no task per
message. State has one owner: lanes know what is held, the settler what waits to be settled, the consumer what is
ours on the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from messaging import failure
from messaging.adapter import Hold, SettleError, Settlement
from messaging.backoff import Backoff
from messaging.binding import current_delivery
from messaging.clock import sleep
from messaging.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    LeaseLost,
    MessagingError,
)
from messaging.health import SubscriptionHealth
from messaging.lanes import Lanes
from messaging.message import Ack, Delivery, Reject, Release, Retry, seconds
from messaging.settlement import Settler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from messaging.adapter import Adapter, Consumer, RawDelivery, Settled
    from messaging.binding import Binding
    from messaging.clock import Clock, Timer
    from messaging.message import Message, Outcome

logger = logging.getLogger("messaging")

SUSPECT_AFTER = 3
"""Returns without a recorded failure after which a message is run alone (semantics 3)."""
RECEIVE_WAIT = 1.0
"""Seconds that one `receive` may wait; bounds how late a change of the paused partitions is seen."""
ABANDON_AFTER = 5.0
"""Seconds given to a handler that was cancelled, before it is left behind."""


class Dispatcher:
    """Runs one subscription until it is stopped or fails for good."""

    def __init__(self, adapter: Adapter, binding: Binding, clock: Clock) -> None:
        self._binding = binding
        self._subscription = binding.subscription
        self._clock = clock
        self._consumer: Consumer = adapter.consumer(binding.subscription, self)
        self._lanes = Lanes(ordered=binding.subscription.group.ordered, window=self._consumer.window)
        self._settler = Settler(
            settle=self._consumer.settle,
            reply=adapter.reply,
            settled=self._settled,
            wanted=self._still_ours,
            clock=clock,
        )
        self._running: dict[RawDelivery, asyncio.Task[None]] = {}
        self._interrupted: set[RawDelivery] = set()
        self._revoked: set[int] = set()
        self._suspects: deque[RawDelivery] = deque()
        self._alone: RawDelivery | None = None
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._stop = asyncio.Event()
        self._draining = False
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self.receiving = False
        self.last_error: str | None = None

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume until `stop`, then drain. Raises what ends a subscription for good.

        Cancellation gives back, uncounted, what was not settled.
        """
        # Workers are outside the task group: it would wait for ever for a handler that ignores its cancellation.
        workers = [
            asyncio.create_task(self._work(), name=f"messaging-worker-{number}")
            for number in range(self._subscription.concurrency)
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._settler.run(), name="messaging-settle"),
                    tasks.create_task(self._keep_leases(), name="messaging-leases"),
                    tasks.create_task(_first_failure(workers), name="messaging-workers"),
                ]
                receiver = tasks.create_task(self._receive(), name="messaging-receive")
                await self._stop.wait()
                await self._drain(receiver)
                for task in background:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _single(group) from group
        finally:
            self.receiving = False
            if self._timer is not None:
                self._timer.cancel()
            try:
                await self._end_workers(workers)
                await self._settler.flush()
            finally:
                await self._consumer.close()

    def stop(self) -> None:
        """Ask `run` to drain and return."""
        self._stop.set()

    async def _drain(self, receiver: asyncio.Task[None]) -> None:
        """Finish and settle what runs, within the grace period; what has not started goes back with `close`."""
        self._draining = True
        receiver.cancel()
        deadline = self._clock.monotonic() + self._binding.grace
        await self._until(lambda: not self._running, deadline)
        for delivery in list(self._running):
            self._interrupt(delivery)
        await self._until(lambda: not self._lanes.started, deadline + ABANDON_AFTER)

    async def _end_workers(self, workers: Collection[asyncio.Task[None]]) -> None:
        for worker in workers:
            worker.cancel()
        _, left = await asyncio.wait(workers, timeout=ABANDON_AFTER)
        if left:
            for delivery in self._running:
                _log_abandoned(delivery, self._binding.handler_name)

    # --- receive -----------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        backoff = Backoff()
        prefetch = self._subscription.prefetch
        batch = max(1, prefetch // 4)
        while True:
            room = prefetch - self._lanes.unparked
            # Small gaps are left to grow while every worker is busy, so that messages come in batches.
            if room < (1 if self._idle else batch) or self._alone is not None:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                deliveries = await self._consumer.receive(room, RECEIVE_WAIT, self._lanes.full)
            except (AuthenticationFailed, ConfigurationError):
                raise
            except ConnectionFailed as error:
                await self._wait_to_reconnect(error, backoff)
                continue
            if not self.receiving:
                self.receiving = True
                self.last_error = None
                backoff.reset()
            self._take_in(deliveries)

    async def _wait_to_reconnect(self, error: ConnectionFailed, backoff: Backoff) -> None:
        wait = backoff.next()
        if self.receiving or self.last_error is None:
            logger.warning(
                "Receiving from %s/%s was interrupted: %s. Trying again.",
                self._subscription.group.topic.name,
                self._subscription.group.name,
                error,
                extra=self._extra(),
            )
        self.receiving = False
        self.last_error = str(error)
        self._binding.counters.reconnects += 1
        await sleep(self._clock, wait)

    def _take_in(self, deliveries: Collection[RawDelivery]) -> None:
        for delivery in deliveries:
            if delivery.partition not in self._revoked:
                self._lanes.add(delivery)
        self._binding.counters.received += len(deliveries)
        self._wake_workers(len(deliveries))

    # --- handle ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        while True:
            delivery = self._next()
            if delivery is None:
                waiter = loop.create_future()
                self._idle.append(waiter)
                self._room.set()
                await waiter
                continue
            self._running[delivery] = task
            try:
                outcome = await self._handle(delivery)
            except asyncio.CancelledError:
                if delivery not in self._interrupted:
                    raise
                outcome = Release()
            finally:
                del self._running[delivery]
                self._progress.set()
            if self._interrupted and delivery in self._interrupted:
                self._interrupted.discard(delivery)
                task.uncancel()
            self._conclude(delivery, outcome)

    def _next(self) -> RawDelivery | None:
        """The next delivery to run; suspects run when nothing else does."""
        while self._alone is None and not self._draining:
            if self._suspects:
                if self._running:
                    return None
                self._alone = self._suspects.popleft()
                if self._alone in self._lanes:
                    return self._alone
                self._alone = None
                continue
            delivery = self._lanes.take()
            if delivery is None:
                return None
            if delivery.lease.deadline <= self._clock.monotonic():
                self._forget_lost((delivery,), "its lease ended before its handler started")
            elif delivery.guard == "tripped":
                reason = (
                    f"the process died {delivery.deliveries - 1} times while handling it, the last time alone"
                )
                self._conclude(delivery, Reject(reason, cause="lease_lost"))
            elif delivery.guard == "alone" or delivery.returns >= SUSPECT_AFTER:
                self._suspects.append(delivery)
            else:
                return delivery
        return None

    async def _handle(self, raw: RawDelivery) -> Outcome:
        if raw is self._alone and raw.guard == "none":
            try:
                marked = await self._consumer.isolate(raw)
            except MessagingError as error:
                self._forget_lost((raw,), str(error))
                return Release()
            if not marked:
                self._forget(raw)
                return Release()
        message = raw.message
        try:
            payload = self._binding.codec.decode(message.body, message.content_type)
        except DecodeError as error:
            return _caused(Reject(str(error), cause="deserialize"), error)
        delivery = Delivery(
            payload,
            message,
            dict(message.headers),
            message.key,
            self._subscription.group.name,
            raw.attempt,
            raw.deliveries,
            raw.partition,
            raw.position,
            raw.fence,
            raw.native,
        )
        if self._binding.observer is not None:
            self._binding.observer.started(delivery, raw)
        token = current_delivery.set(delivery)
        try:
            return await self._binding.handler(delivery)
        finally:
            current_delivery.reset(token)

    # --- settle ------------------------------------------------------------------------------------------------

    def _conclude(self, delivery: RawDelivery, outcome: Outcome) -> None:
        """Hand the outcome of one handling to the settler."""
        if delivery not in self._lanes:
            self._end_alone(delivery)
            return
        reply: tuple[str, Message] | None = None
        if self._binding.answer is not None:
            outcome, answer = self._binding.answer(delivery, outcome)
            if answer is not None and delivery.reply_to is not None:
                reply = (delivery.reply_to, answer)
        if isinstance(outcome, Ack):
            if delivery is not self._alone:
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
            if after > self._binding.max_delay:
                outcome = _delay_unsupported(outcome, after, self._binding.max_delay)
        cause = outcome.cause if isinstance(outcome, Reject) else "exception"
        record = failure.record(
            delivery.failure,
            message=delivery.message,
            group=self._subscription.group.name,
            attempt=delivery.attempt,
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
            _log_dead_letter(delivery, outcome, cause, self._extra())
        return Settlement(delivery, outcome, after=after, failure=record)

    def _settled(self, settlement: Settlement, result: Settled) -> None:
        delivery = settlement.delivery
        if delivery not in self._lanes:
            return
        if isinstance(result, SettleError):
            self._forget_lost((delivery,), str(result.error))
        else:
            self._count(settlement.outcome)
            if self._binding.observer is not None:
                self._binding.observer.settled(delivery, result)
            if isinstance(result, Hold) and not self._draining and delivery.partition not in self._revoked:
                self._hold(settlement, result.until)
            else:
                self._forget(delivery)
        self._end_alone(delivery)

    def _hold(self, settlement: Settlement, until: float) -> None:
        """Park a delivery that stays with this member; its failure is recorded, so its returns start anew."""
        delivery = settlement.delivery
        if isinstance(settlement.outcome, Retry):
            delivery.attempt += 1
            delivery.failure = settlement.failure
            delivery.returns = 0
            delivery.guard = "none"
        self._lanes.park(delivery, until)
        self._room.set()
        self._progress.set()
        self._schedule_wake()

    def _count(self, outcome: Outcome) -> None:
        counters = self._binding.counters
        if isinstance(outcome, Ack):
            counters.acked += 1
        elif isinstance(outcome, Release):
            counters.released += 1
        elif isinstance(outcome, Retry):
            counters.retried += 1
        else:
            counters.rejected += 1

    def _forget(self, delivery: RawDelivery) -> None:
        self._lanes.finish(delivery)
        self._room.set()
        self._progress.set()
        if self._lanes.ordered and self._idle:
            self._wake_workers(1)

    def _end_alone(self, delivery: RawDelivery) -> None:
        if delivery is self._alone:
            self._alone = None
            self._room.set()
            self._wake_workers(len(self._idle))

    # --- ownership ---------------------------------------------------------------------------------------------

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        """See `Ownership.on_revoke`."""
        self._revoked.update(partitions)
        try:
            for delivery in self._lanes.of_partitions(partitions):
                if delivery not in self._lanes.started:
                    self._forget(delivery)
            await self._until(lambda: not _any_of(self._running, partitions), deadline)
            for delivery in list(self._running):
                if delivery.partition in partitions:
                    self._interrupt(delivery)
            await self._until(lambda: not _any_of(self._lanes.started, partitions), deadline + ABANDON_AFTER)
        finally:
            self._revoked.difference_update(partitions)

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        """See `Ownership.on_lost`."""
        self._forget_lost(deliveries, reason)

    def _forget_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        lost = 0
        for delivery in deliveries:
            if delivery in self._lanes:
                lost += 1
                if self._binding.observer is not None:
                    self._binding.observer.settled(delivery, SettleError(LeaseLost(reason)))
                if delivery in self._running and self._running[delivery] is not asyncio.current_task():
                    self._interrupt(delivery)
                self._forget(delivery)
                if delivery not in self._running:
                    self._end_alone(delivery)
        if lost:
            self._binding.counters.lost += lost
            logger.warning(
                "%d deliveries of %s/%s were lost to this member: %s. They are delivered again.",
                lost,
                self._subscription.group.topic.name,
                self._subscription.group.name,
                reason,
                extra=self._extra(),
            )

    def _interrupt(self, delivery: RawDelivery) -> None:
        """Cancel the handler of one delivery; its worker lives on."""
        if delivery not in self._interrupted:
            self._interrupted.add(delivery)
            self._running[delivery].cancel()

    def _still_ours(self, delivery: RawDelivery) -> bool:
        if delivery not in self._lanes:
            return False
        if delivery.lease.deadline <= self._clock.monotonic():
            self._forget_lost((delivery,), "its lease ended before it was settled")
            return False
        return True

    async def _keep_leases(self) -> None:
        """Extend what is held, at a third of the lease (15)."""
        lease = self._consumer.lease
        if lease is None:
            return
        while True:
            await sleep(self._clock, lease / 3)
            held = list(self._lanes.held)
            if not held:
                continue
            try:
                ours = await self._consumer.extend(held, lease)
            except ConnectionFailed as error:
                self.last_error = str(error)
                continue
            lost = [delivery for delivery, kept in zip(held, ours, strict=True) if not kept]
            self._forget_lost(lost, "the broker gave it to another member")

    # --- health ------------------------------------------------------------------------------------------------

    @property
    def topic(self) -> str:
        return self._subscription.group.topic.name

    @property
    def group(self) -> str:
        return self._subscription.group.name

    def health(
        self, *, lag: int | None, oldest: float | None, dead_letters: int | None
    ) -> SubscriptionHealth:
        """What this process knows of the subscription, beside what the broker told."""
        counters = self._binding.counters
        return SubscriptionHealth(
            topic=self.topic,
            group=self.group,
            receiving=self.receiving,
            running=len(self._running),
            held=len(self._lanes),
            parked=self._lanes.parked,
            parked_full=bool(self._lanes.full),
            lag=lag,
            oldest=oldest,
            dead_letters=dead_letters,
            last_error=self.last_error,
            **asdict(counters),
        )

    # --- waking ------------------------------------------------------------------------------------------------

    def _wake_workers(self, most: int) -> None:
        idle = self._idle
        while idle and most > 0:
            waiter = idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                most -= 1

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
        self._wake_workers(self._lanes.wake(self._clock.monotonic()))
        self._room.set()
        self._schedule_wake()

    async def _until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait for a condition that changes with progress; False at the deadline."""
        timer: Timer | None = None
        try:
            while not condition():
                if timer is None:
                    timer = self._clock.call_later(
                        max(0.0, deadline - self._clock.monotonic()), self._progress.set
                    )
                elif self._clock.monotonic() >= deadline:
                    return False
                self._progress.clear()
                await self._progress.wait()
            return True
        finally:
            if timer is not None:
                timer.cancel()

    def _extra(self) -> dict[str, str]:
        group = self._subscription.group
        return {"topic": group.topic.name, "group": group.name}


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a task group: the others only followed from it."""
    first: BaseException = group.exceptions[0]
    return first


async def _first_failure(workers: Collection[asyncio.Task[None]]) -> None:
    """Raise what ended a worker: a worker never ends by itself."""
    done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
    for worker in done:
        worker.result()


def _any_of(deliveries: Collection[RawDelivery], partitions: Collection[int]) -> bool:
    return any(delivery.partition in partitions for delivery in deliveries)


def _caused(outcome: Reject, error: BaseException) -> Reject:
    outcome.__cause__ = error
    return outcome


def _delay_unsupported(outcome: Retry, after: float, longest: float) -> Reject:
    reason = f"{outcome.reason or 'failed'}; a retry after {after:g} s is beyond the broker's longest, {longest:g} s"
    return _caused(Reject(reason, cause="delay_unsupported"), outcome.__cause__ or outcome)


def _log_dead_letter(delivery: RawDelivery, outcome: Reject, cause: str, extra: dict[str, str]) -> None:
    logger.error(
        "Message %s of %s became a dead letter of group %s (%s): %s",
        delivery.message.id,
        extra["topic"],
        extra["group"],
        cause,
        outcome.reason,
        extra={**extra, "message_id": delivery.message.id, "cause": cause},
    )


def _log_abandoned(delivery: RawDelivery, handler: str) -> None:
    logger.error(
        "Handler %s ignores its cancellation and is left behind; message %s is delivered again",
        handler,
        delivery.message.id,
        extra={"message_id": delivery.message.id},
    )
