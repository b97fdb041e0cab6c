"""Workers: a fixed number of tasks that take deliveries from the lanes and run the handler in place.

There is no task per message. A message that is suspected of killing its process runs alone (semantics 3). Few workers
are woken at first: one whose handler waits for nothing handles a whole batch, and the others would find nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from messaging.adapter import SUSPECT_AFTER
from messaging.apart import Apart
from messaging.backoff import Backoff
from messaging.clock import sleep
from messaging.current import current_delivery, still_leased
from messaging.delay import FirstSeen, judge_early
from messaging.errors import DecodeError, LeaseLost, MessagingError, TopicNotFound, is_fatal
from messaging.message import Delivery, Reject, Release, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from messaging.adapter import Consumer, RawDelivery
    from messaging.binding import Binding
    from messaging.clock import Clock
    from messaging.lanes import Lanes
    from messaging.message import Outcome

logger = logging.getLogger("messaging")

LATE = "its lease ended before its handler started"
CONTROL = "messaging."
"""What the type of a message begins with that may be for us, and not for a handler."""
WOKEN_AT_ONCE = 2
"""Workers that one wakes while there is more to run: with handlers that wait, all are at work after a few steps."""
BURST = 128
"""Messages after which a worker lets others run, as handlers that wait for nothing never do: results go out, and more
comes in, while it goes on.
"""
CANCELLED_AGAIN = 1.0
"""Seconds until a message comes again whose handler was cancelled, not by us: that may happen each time."""
KEPT_WAITING = 30.0
"""Seconds for which what came back may wait for another subscription before health tells of it."""
ABANDON_AFTER = 5.0
"""Seconds given to a handler that was cancelled, before it is left behind."""


class Workers:
    """Run what the lanes give, and report each outcome to `conclude`, in the worker's own task.

    `lose(delivery, reason)` is called for a delivery whose lease ended before its handler started, `park(delivery)`
    for one that must still be held, `changed` whenever a worker starts waiting.
    """

    def __init__(
        self,
        binding: Binding,
        lanes: Lanes,
        consumer: Consumer,
        clock: Clock,
        *,
        conclude: Callable[[RawDelivery, Outcome], None],
        lose: Callable[[RawDelivery, str], None],
        park: Callable[[RawDelivery], None],
        changed: Callable[[], None],
    ) -> None:
        self._binding = binding
        self._lanes = lanes
        self._consumer = consumer
        self._clock = clock
        self._conclude = conclude
        self._lose = lose
        self._park = park
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []
        self._at_work: list[RawDelivery | None] = []
        """What each worker runs, by its number."""
        self._interrupted: set[RawDelivery] = set()
        self._suspects: deque[RawDelivery] = deque()
        self._returned: deque[RawDelivery] = deque()
        """What came back and is no suspect yet: it begins when no other subscription runs one."""
        self._early = FirstSeen()
        self._waiting: deque[asyncio.Future[None]] = deque()
        group = binding.subscription.group
        self._group = group.name
        self.name = f"{group.topic.name}/{group.name}"
        self._isolation = binding.isolation
        self._kept_waiting: float | None = None
        """Since when what came back waits for another subscription."""
        self._ordinary = None if group.topic.name.startswith(CONTROL) else group.topic.name
        """The type of most messages."""
        self._stopped = False
        self._ended = False
        self.alone: RawDelivery | None = None
        """The suspect that runs, or is being settled, with nothing beside it."""
        self.error: str | None = None
        """Why it cannot be marked, while that is tried again."""
        self.exiting = False
        """A handler has raised SystemExit: its process ends of its message, which is a crash (3)."""

    @property
    def running(self) -> Collection[RawDelivery]:
        return [delivery for delivery in self._at_work if delivery is not None]

    @property
    def idle(self) -> bool:
        """Whether a worker waits for something to run."""
        return bool(self._waiting)

    @property
    def lonely(self) -> bool:
        """Whether a suspect runs alone, or something waits for one."""
        return self.alone is not None or bool(self._suspects or self._returned)

    @property
    def stuck(self) -> str | None:
        """Why something that came back has waited for long; None while nothing has."""
        waiting = [*self._suspects, *self._returned]
        since = self._kept_waiting
        if not waiting or since is None or self._clock.monotonic() < since + KEPT_WAITING:
            return None
        others = [one.name for one in self._isolation.before(self) if isinstance(one, Workers)]
        return (
            f"messages of {self.name} that came back ({len(waiting)}, message {waiting[0].message.id} among them) wait "
            f"until what came back to {', '.join(others)} in this program is over: each may have ended a process"
        )

    async def run(self) -> None:
        """Work until cancelled; raises what ends a worker, which never ends by itself."""
        concurrency = self._binding.subscription.concurrency
        self._at_work = [None] * concurrency
        self._tasks = [
            asyncio.create_task(self._work(number), name=f"messaging-worker-{number}")
            for number in range(concurrency)
        ]
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for worker in done:
            worker.result()

    async def end(self) -> None:
        """Cancel what still runs. A handler that ignores it for `ABANDON_AFTER` seconds is left behind."""
        self._ended = True
        for worker in self._tasks:
            worker.cancel()
        try:
            if self._tasks:
                _, left = await asyncio.wait(self._tasks, timeout=ABANDON_AFTER)
                if left:
                    self._log_abandoned()
        finally:
            self._isolation.gone(self)

    def stop(self) -> None:
        """Start nothing more."""
        self._stopped = True

    def wake(self, most: int) -> None:
        """Up to `most` deliveries may have become startable: let waiting workers look, who wake the others."""
        waiting = self._waiting
        most = min(most, WOKEN_AT_ONCE)
        while waiting and most > 0:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                most -= 1

    def interrupt(self, delivery: RawDelivery) -> None:
        """Cancel the handler of this delivery; its worker lives on and concludes it as a Release."""
        if delivery not in self._at_work or delivery in self._interrupted:
            return
        task = self._tasks[self._at_work.index(delivery)]
        if task is not asyncio.current_task():
            self._interrupted.add(delivery)
            task.cancel()

    def withdraw_suspects(self, unwanted: Callable[[RawDelivery], bool]) -> list[RawDelivery]:
        """Take back the suspects that wait to run alone, and what waits for those of others."""
        withdrawn = [delivery for delivery in (*self._suspects, *self._returned) if unwanted(delivery)]
        for delivery in withdrawn:
            self.end_alone(delivery)
        return withdrawn

    def end_alone(self, delivery: RawDelivery) -> None:
        """The delivery is over here: if it ran alone, or waited to, the others go on."""
        if delivery is self.alone:
            self.alone = None
            self._isolation.leave(self)
        elif delivery in self._suspects:
            self._suspects.remove(delivery)
        elif delivery in self._returned:
            self._returned.remove(delivery)
        else:
            return
        if not (self._suspects or self._returned):
            self._kept_waiting = None
        self.wake(len(self._waiting))
        self._changed()

    async def _work(self, number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        binding, lanes, at_work, ordinary = self._binding, self._lanes, self._at_work, self._ordinary
        still_leased.set(lambda: self._in_time(at_work[number]))
        apart: Apart[Outcome] = Apart()
        woken, run = False, 0
        while not self._over():  # a handler may have swallowed the cancellation
            delivery = self._next()
            if delivery is None:
                await self._wait()
                woken = True
                continue
            if woken:
                woken = False
                if lanes.ready or self._returned:
                    self.wake(WOKEN_AT_ONCE)
            at_work[number] = delivery
            came_back = delivery.returns and delivery is not self.alone
            try:
                message = delivery.message
                kind, outcome = message.type, None
                if (
                    delivery is self.alone
                    or message.not_before is not None
                    or (kind != ordinary and kind is not None and kind.startswith(CONTROL))
                ):
                    outcome = await self._unusual(delivery)
                if outcome is None:
                    given = self._given(delivery)
                    if isinstance(given, Reject):
                        outcome = given
                    else:
                        current_delivery.set(given)
                        if (waiting := apart.begin(binding.handler(given))) is not None:
                            await waiting
                        outcome = apart.result
            except asyncio.CancelledError as error:
                if self._over():
                    raise
                # Interrupted, or cancelled by another part of the program: the worker lives on.
                outcome = self._cancelled(delivery) if task.cancelling() else _unasked(error)
            except SystemExit:
                self.exiting = self._isolation.exiting = True
                raise
            finally:
                at_work[number] = None
                if came_back:
                    self._isolation.end_returned(self)
            if self._interrupted:
                self._interrupted.discard(delivery)
            self._conclude(delivery, outcome)
            run += 1
            if run == BURST or task.cancelling():
                run = 0
                await self._waited(asyncio.sleep(0))

    def _cancelled(self, delivery: RawDelivery) -> Release:
        """What becomes of a message whose handler's task was cancelled, by us or by another part of the program."""
        if delivery in self._interrupted:
            return Release()
        logger.warning(
            "Handler %s was cancelled by itself or another part of this program, which ends no handler: message %s "
            "comes again in %g s",
            *(self._binding.handler_name, delivery.message.id, CANCELLED_AGAIN),
            extra={"message_id": delivery.message.id},
        )
        return Release(after=CANCELLED_AGAIN)

    def _over(self) -> bool:
        """Whether nothing starts any more: cancelled, or its program exits."""
        return self._ended or self._isolation.exiting

    async def _wait(self) -> None:
        """For something to run."""
        current_delivery.set(None)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._changed()
        await self._waited(waiter)

    async def _waited(self, wait: Awaitable[None]) -> None:
        """Wait. What cancelled the worker, while that was not to end, was meant for its handler, or is not its owner.

        Before Python 3.13 the next wait raises what was asked for, whether or not it was taken back.
        """
        try:
            await wait
        except asyncio.CancelledError:
            if self._over():
                raise
        task = asyncio.current_task()
        while task is not None and task.cancelling() and not self._over():
            task.uncancel()

    def _next(self) -> RawDelivery | None:
        """The next delivery to run; a suspect only when nothing else runs, and nothing elsewhere that came back."""
        while self.alone is None and not self._stopped:
            if self._suspects and self._let(self._suspects, self._isolation.free_for(self, self._freed)):
                if self.running:
                    return None
                suspect = self._suspects.popleft()
                if self._leased(suspect):
                    self.alone = suspect
                    self._isolation.take(self)
                    return suspect
                continue
            if self._returned and self._let(
                self._returned, self._isolation.begin_returned(self, self._freed)
            ):
                returned = self._returned.popleft()
                if self._leased(returned):
                    return returned
                self._isolation.end_returned(self)
                continue
            delivery = self._lanes.take()
            if delivery is None:
                return None
            if delivery.lease.deadline <= self._clock.monotonic():
                self._lose(delivery, LATE)
                continue
            if not (delivery.hold or delivery.returns or delivery.guard != "none"):
                return delivery
            if delivery.hold > 0:
                self._park(delivery)
            elif delivery.guard == "tripped":
                reason = f"its process ended {delivery.deliveries - 1} times while handling it, the last time alone"
                self._conclude(delivery, Reject(reason, cause="lease_lost"))
            elif delivery.guard == "alone" or delivery.returns >= SUSPECT_AFTER:
                self._suspects.append(delivery)
            else:
                self._returned.append(delivery)
        return None

    def _let(self, waiting: deque[RawDelivery], free: bool) -> bool:
        """Whether the next of these may begin; notes since when it may not."""
        if not free and self._kept_waiting is None:
            self._kept_waiting = self._clock.monotonic()
        elif free and (waiting is self._suspects or not self._suspects):
            self._kept_waiting = None
        return free

    def _freed(self) -> None:
        self.wake(len(self._waiting))

    def _leased(self, delivery: RawDelivery) -> bool:
        """Whether it may start; one that somebody else may have by now is lost."""
        if self._in_time(delivery):
            return True
        self._lose(delivery, LATE)
        return False

    def _in_time(self, delivery: RawDelivery | None) -> bool:
        return delivery is None or delivery.lease.deadline > self._clock.monotonic()

    async def _unusual(self, raw: RawDelivery) -> Outcome | None:
        """The outcome of what no handler gets now: it is early, a suspect that may not run, or for us."""
        if raw.message.not_before is not None and not self._lanes.ordered:
            early = judge_early(raw.message, self._clock.time(), self._binding.max_delay)
            if isinstance(early, Release):
                after = self._early.left(raw.message, seconds(early.after or 0), self._clock.monotonic())
                early = Release(after=after) if after > 0 else None
            if early is not None:
                return early
        if raw is self.alone and raw.guard == "none" and not await self._isolated(raw):
            return Release()
        control, kind = self._binding.control, raw.message.type
        return await control(raw) if control is not None and kind and kind.startswith(CONTROL) else None

    def _given(self, raw: RawDelivery) -> Delivery[Any] | Reject:
        """What the handler gets, unless the body cannot be read."""
        message = raw.message
        try:
            payload = self._binding.codec.decode(message.body, message.content_type)
        except DecodeError as error:
            rejected = Reject(str(error), cause="deserialize")
            rejected.__cause__ = error
            return rejected
        delivery = Delivery(
            payload,
            message,
            dict(message.headers) if message.headers else {},
            message.key,
            self._group,
            raw.attempt,
            raw.deliveries,
            raw.partition,
            raw.position,
            raw.fence,
            raw.native,
        )
        if self._binding.observer is not None:
            current_delivery.set(None)
            self._binding.observer.started(delivery, raw)
        return delivery

    async def _isolated(self, suspect: RawDelivery) -> bool:
        """Whether the durable mark is stored and the suspect may run now; else it is over here, or given back.

        Raises what is known to be fatal (25).
        """
        backoff = Backoff()
        try:
            while not self._stopped and self._leased(suspect):
                try:
                    marked = await self._consumer.isolate(suspect)
                except (LeaseLost, TopicNotFound) as error:
                    # `receive` tells whether what is gone is made anew.
                    self._lose(suspect, str(error))
                    return False
                except MessagingError as error:
                    if is_fatal(error):
                        raise
                    self._not_marked(suspect, error)
                    await sleep(self._clock, backoff.next())
                else:
                    if not marked:
                        self._lanes.finish(suspect)
                    return marked and self._leased(suspect)
            return False
        finally:
            self.error = None

    def _not_marked(self, suspect: RawDelivery, error: MessagingError) -> None:
        if self.error is None:
            logger.warning(
                "Message %s, which may end its process, cannot be marked to run alone: %s. Nothing else runs while "
                "this is tried again",
                suspect.message.id,
                error,
                extra={"message_id": suspect.message.id},
            )
        self.error = str(error)

    def _log_abandoned(self) -> None:
        for delivery in self.running:
            logger.error(
                "Handler %s ignores its cancellation and is left behind; message %s is delivered again",
                self._binding.handler_name,
                delivery.message.id,
                extra={"message_id": delivery.message.id},
            )


def _unasked(error: asyncio.CancelledError) -> Reject:
    """What a codec or middleware raised outside the retry policy: released, it would come again for ever."""
    rejected = Reject("waited for something that was cancelled", cause="exception")
    rejected.__cause__ = error
    return rejected
