"""A topic whose partitions or order change: generations, read side by side and in their order (semantics 16).

Each generation is a topic of its own on the broker. Publishers write to the last one; they look which it is every
`generation_interval` seconds. A group reads all that are kept. Where it keeps order, it reads a generation only when
each former one is finished: behind the last message of every partition lies an end mark, and a partition is finished
when its owner holds nothing before the mark any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Literal, TypeAlias

from messaging.adapter import GroupSpec, Outgoing, Topology
from messaging.backoff import LEFT_ALONE, Backoff
from messaging.catalogue import MOST_PARTITIONS, kept_apart
from messaging.clock import check_cancelled, sleep, timeout
from messaging.dispatch import Dispatcher
from messaging.errors import (
    ConfigurationError,
    MessagingError,
    PublishError,
    TopicNotFound,
    TopologyLost,
    UnsupportedCapability,
    is_fatal,
)
from messaging.health import SubscriptionHealth
from messaging.ids import new_id
from messaging.lasting import lasting, this_task
from messaging.message import Ack, Message, Release

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from messaging.adapter import Adapter, RawDelivery, TopicSpec
    from messaging.binding import Binding
    from messaging.bus import Bus
    from messaging.catalogue import Catalogue
    from messaging.clock import Clock
    from messaging.message import Delivery, Outcome
    from messaging.settings import Settings

logger = logging.getLogger("messaging")

END = "messaging.generation.end"
"""The `type` of an end mark."""
PATIENCE = 3
"""Looks for which a group may wait for end marks before they are published once more; each time for twice as many."""
LOOK_AGAIN = 0.1
"""Seconds for which an end mark waits while something before it is not finished."""
_Step: TypeAlias = Literal["look", "start", "finish"]
"""What a member does to go on to a later generation."""


def subscriber(bus: Bus, binding: Binding) -> Dispatcher | Subscriber:
    """What runs one subscription, on its topic's broker."""
    topic = binding.subscription.group.topic
    adapter = bus.broker(topic.name).adapter
    if topic.native is not None or not kept_apart(adapter):
        return Dispatcher(adapter, binding, bus.clock)
    return Subscriber(adapter, bus.catalogue, binding, bus.clock, bus.settings)


class Subscriber:
    """Runs one subscription on every generation of its topic; to the outside it is one dispatcher."""

    def __init__(
        self, adapter: Adapter, catalogue: Catalogue, binding: Binding, clock: Clock, settings: Settings
    ) -> None:
        self._adapter = adapter
        self._catalogue = catalogue
        self._binding = binding
        self._clock = clock
        self._interval = settings.generation_interval
        self._grace = settings.generation_grace
        self._dispatchers: dict[int, Dispatcher] = {}
        self._waits: Counter[int] = Counter()
        """Looks for which this program has waited for each former generation."""
        self._not_ended: dict[int, float] = {}
        """Since when each former generation is waited for whose end is not on record."""
        self._failing: dict[_Step, tuple[float, MessagingError]] = {}
        """Since when, and why, each step to a later generation fails; it is tried again."""
        self._limit = _Limit(binding.subscription.concurrency)
        self._gone: str | None = None
        """What the broker has lost and does not have again."""
        self._stop = asyncio.Event()

    @property
    def topic(self) -> str:
        return self._binding.subscription.group.topic.name

    @property
    def group(self) -> str:
        return self._binding.subscription.group.name

    async def run(self) -> None:
        """As `Dispatcher.run`."""
        failed: BaseException | None = None
        me = this_task()

        def start(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
            whole = lasting(work, name, lambda: self._stop.is_set() or me.cancelling() > 0)
            return tasks.create_task(whole, name=name)

        try:
            async with asyncio.TaskGroup() as tasks:
                watching = start(partial(self._watch, start), "messaging-generations")
                await self._stop.wait()
                watching.cancel()
                for dispatcher in self._dispatchers.values():
                    dispatcher.stop()
        except BaseExceptionGroup as group:
            # The first error ended the task group; the others only followed from it.
            failed = group.exceptions[0]
        if failed is not None:
            raise failed

    def stop(self) -> None:
        """As `Dispatcher.stop`."""
        self._stop.set()

    def health(self, broker: str) -> SubscriptionHealth:
        """All generations together."""
        states = [one.health(broker) for one in self._dispatchers.values()]
        if not states:
            return SubscriptionHealth(
                topic=self.topic,
                group=self.group,
                broker=broker,
                receiving=False,
                running=0,
                held=0,
                parked=0,
                parked_full=False,
                last_error=None,
                **asdict(self._binding.counters),
            )
        return replace(  # the counters are shared
            states[0],
            receiving=all(state.receiving for state in states),
            running=sum(state.running for state in states),
            held=sum(state.held for state in states),
            parked=sum(state.parked for state in states),
            parked_full=any(state.parked_full for state in states),
            gone=self._gone is not None,
            unsettled=any(state.unsettled for state in states),
            stuck=self._unfollowed
            or self._interrupted
            or next(filter(None, (one.stuck for one in states)), None),
            last_error=self._gone or next((state.last_error for state in states if state.last_error), None),
        )

    @property
    def _unfollowed(self) -> str | None:
        """Why a generation may be missed: at once where that lasts, later where it should have passed by itself."""
        latest = self._clock.monotonic() - self._grace
        reasons = [error for since, error in self._failing.values() if _lasts(error) or since < latest]
        return (
            f"{self.topic}/{self.group} does not follow changes of its topic: {reasons[0]}"
            if reasons
            else None
        )

    def _failed(self, step: _Step, error: MessagingError) -> None:
        """It is tried again, and told, until `_failing` has it no more."""
        since, _ = self._failing.get(step) or (self._clock.monotonic(), error)
        logger.log(
            logging.WARNING if _lasts(error) and step not in self._failing else logging.DEBUG,
            "%s/%s does not follow changes of its topic: %s. Trying again.",
            *(self.topic, self.group, error),
            extra={"topic": self.topic, "group": self.group},
        )
        self._failing[step] = since, error

    @property
    def _interrupted(self) -> str | None:
        """Why a generation is not read, where whoever began it should have ended the former one by now."""
        latest = self._clock.monotonic() - self._grace
        late = [number for number, since in self._not_ended.items() if since < latest]
        if not late:
            return None
        return (
            f"{self.topic}/{self.group} does not read what is behind generation {late[0]}, which was not ended: if its "
            f"change was interrupted, begin the same generation again"
        )

    @property
    def _kept(self) -> Sequence[TopicSpec]:
        return self._catalogue.kept(self._binding.subscription.group.topic)

    def _group(self, spec: TopicSpec) -> GroupSpec:
        return self._catalogue.in_generation(self._binding.subscription.group, spec)

    async def _watch(self, start: Callable[[Callable[[], Awaitable[None]], str], object]) -> None:
        while True:
            for spec in self._kept:
                if spec.generation not in self._dispatchers and await self._may_start(spec):
                    check_cancelled()  # nobody would stop it
                    dispatcher = self._dispatcher(spec)
                    start(partial(self._run, spec, dispatcher), f"messaging-{self.topic}-{spec.generation}")
            check_cancelled()
            await sleep(self._clock, self._interval)
            try:
                await self._catalogue.refresh(self._binding.subscription.group.topic)
            except MessagingError as error:
                self._failed("look", error)
            else:
                self._failing.pop("look", None)

    async def _run(self, spec: TopicSpec, dispatcher: Dispatcher) -> None:
        """Run it; where somebody deleted what it reads, make that anew and go on (25)."""
        while True:
            try:
                await dispatcher.run()
            except TopologyLost as error:
                if not await self._renewed(error):
                    return
            else:
                return
            del self._dispatchers[spec.generation]
            del self._waits[spec.generation]  # its end marks are lost with the rest
            dispatcher = self._dispatcher(spec)
            self._gone = None

    async def _renewed(self, error: TopologyLost) -> bool:
        """False where it is stopped meanwhile. Raises the error where the topology may not be declared."""
        self._gone = str(error)
        logger.error(
            "What held the messages of %s/%s was deleted on the broker. It is made anew, what was in it is lost: %s",
            self.topic,
            self.group,
            error,
            extra={"topic": self.topic, "group": self.group},
        )
        backoff = Backoff()
        wait = LEFT_ALONE
        while not await self._stopped_within(wait):
            try:
                if await self._catalogue.renew(self._binding.subscription.group):
                    return not self._stop.is_set()
            except MessagingError as failed:
                if is_fatal(failed):
                    raise
                self._gone = str(failed)
                wait = backoff.next()
            else:
                raise error
        return False

    async def _stopped_within(self, seconds: float) -> bool:
        check_cancelled()
        try:
            async with timeout(self._clock, seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    async def _may_start(self, spec: TopicSpec) -> bool:
        """Whether nothing of a former generation can be overtaken any more (7)."""
        if not self._group(spec).ordered:
            return True
        try:
            finished = await self._formers_finished(spec)
        except MessagingError as error:
            self._failed("start", error)
            return False
        self._failing.pop("start", None)
        return finished

    async def _formers_finished(self, spec: TopicSpec) -> bool:
        for former in reversed([one for one in self._kept if one.generation < spec.generation]):
            if not self._group(former).ordered:
                break  # nobody kept order over that change
            finished = set(await self._adapter.finished(self._group(former)))
            if len(finished) < former.partitions:
                await self._mark_again(former, finished)
                return False
            self._not_ended.pop(former.generation, None)
        return True

    async def _mark_again(self, former: TopicSpec, finished: Collection[int]) -> None:
        """A group that began after the end marks, or loses them, waits for ever; one that is slow gets few too many."""
        waits = self._waits[former.generation] + 1
        if waits % PATIENCE == 0 and (waits // PATIENCE).bit_count() == 1:
            if await self._adapter.ended(former):
                self._not_ended.pop(former.generation, None)
                await _mark(self._adapter, former, set(range(former.partitions)) - set(finished))
            else:
                self._not_ended.setdefault(former.generation, self._clock.monotonic())
                waits = 0
        self._waits[former.generation] = waits  # not counted where the broker could not be asked

    def _dispatcher(self, spec: TopicSpec) -> Dispatcher:
        binding = self._binding
        handler = binding.handler
        if self._dispatchers:
            handler = self._limit.around(handler)
            for known in self._dispatchers.values():
                known.binding.handler = handler
        made = replace(
            binding,
            subscription=replace(binding.subscription, group=self._group(spec)),
            handler=handler,
            control=partial(self._end_mark, spec),
        )
        dispatcher = self._dispatchers[spec.generation] = Dispatcher(self._adapter, made, self._clock)
        return dispatcher

    async def _end_mark(self, spec: TopicSpec, raw: RawDelivery) -> Outcome | None:
        """What becomes of an end mark; None for a message that only looks like one."""
        if not _is_end(raw.message) or spec.generation >= self._kept[-1].generation:
            return None
        group = self._group(spec)
        if not group.ordered:
            return Ack()
        held = self._dispatchers[spec.generation].held(raw.partition)
        if any(not _is_end(one.message) for one in held):
            return Release(after=LOOK_AGAIN)
        try:
            finished = await self._adapter.finish(group, raw.partition)
        except MessagingError as error:
            self._failed("finish", error)
            return Release(after=1.0)
        self._failing.pop("finish", None)
        return Ack() if finished else Release(after=LOOK_AGAIN)


def _lasts(error: MessagingError) -> bool:
    """Whether somebody has to do something about it; a topic that is gone is made anew."""
    return is_fatal(error) and not isinstance(error, TopicNotFound)


def _is_end(message: Message) -> bool:
    """Whether it is an end mark: a program's own message of that type has a body."""
    return message.type == END and not message.body


class _Limit:
    """At most so many handlers at once over all generations of a subscription."""

    def __init__(self, most: int) -> None:
        self._semaphore = asyncio.Semaphore(most)

    def around(
        self, handler: Callable[[Delivery], Awaitable[Outcome]]
    ) -> Callable[[Delivery], Awaitable[Outcome]]:
        async def handle(delivery: Delivery) -> Outcome:
            async with self._semaphore:
                return await handler(delivery)

        return handle


async def begin(
    adapter: Adapter,
    topic: TopicSpec,
    *,
    partitions: int | None,
    ordered: bool | None,
    grace: float,
    clock: Clock,
) -> TopicSpec:
    """Give the topic another number of partitions, or another order, while its programs run; the new generation.

    Its groups are declared on it before anything is written to it. Where both generations keep order, end marks
    follow behind the last messages of the former one after `grace` seconds: longer than any publisher takes to look
    again and to have its publishes confirmed. Interrupted, call it again with the same: it goes on. Or begin the
    next one: each former generation gets the marks that it lacks.

    Raises UnsupportedCapability, TopicNotFound, ConfigurationError for an illegal number, PublishManyError.
    """
    if not (isfinite(grace) and grace >= 0):
        raise ConfigurationError(f"The grace is {grace:g} s; it must be finite, and 0 or more")
    if not kept_apart(adapter):
        reason = adapter.capabilities.generations.reason
        raise UnsupportedCapability(
            f"Topic {topic.name} cannot be changed on {adapter.capabilities.broker}: {reason}"
        )
    kept = await adapter.generations(topic)
    if not kept:
        raise TopicNotFound(f"Topic {topic.name} does not exist: what is not there needs no new generation")
    last = kept[-1]
    wanted = _next(last, partitions, ordered)
    if (wanted.partitions, wanted.ordered) != (last.partitions, last.ordered):
        await _declare(adapter, last, wanted)
        await adapter.begin_generation(wanted)
        logger.info(
            "topic %s is written to generation %d from now on: %d partitions, ordered=%s",
            *(topic.name, wanted.generation, wanted.partitions, wanted.ordered),
            extra={"topic": topic.name, "generation": wanted.generation},
        )
        kept = [*kept, wanted]
    await _end(
        adapter, [one for one, next_one in pairwise(kept) if one.ordered and next_one.ordered], grace, clock
    )
    return kept[-1]


def _next(last: TopicSpec, partitions: int | None, ordered: bool | None) -> TopicSpec:
    """The generation after the last one; what is None stays. Raises ConfigurationError for an illegal number."""
    wanted = replace(
        last,
        generation=last.generation + 1,
        partitions=last.partitions if partitions is None else partitions,
        ordered=last.ordered if ordered is None else ordered,
    )
    if not 1 <= wanted.partitions <= MOST_PARTITIONS:
        raise ConfigurationError(
            f"Topic {last.name} cannot have {wanted.partitions} partitions: one at least, {MOST_PARTITIONS} at most"
        )
    return wanted


async def _declare(adapter: Adapter, last: TopicSpec, wanted: TopicSpec) -> None:
    """The new generation with all groups of the last one. One that gave order up there does so here."""
    await adapter.declare(Topology(topics=(last,), mode="verify"))
    groups = [
        GroupSpec(wanted, info.group, wanted.ordered and (not last.ordered or info.ordered is not False))
        for info in await adapter.groups()
        if info.topic == last.name and info.generation == last.generation
    ]
    try:
        await adapter.declare(Topology((wanted,), groups, "declare"))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"Generation {wanted.generation} of topic {wanted.name} was declared with other numbers by a change "
            f"that was interrupted: {error}. Begin it with those first, then begin another with these"
        ) from error


async def _end(adapter: Adapter, formers: Sequence[TopicSpec], grace: float, clock: Clock) -> None:
    """Record that these have ended, and mark what is unfinished of each: earlier changes may have been interrupted."""
    if not formers:
        return
    await sleep(clock, grace)
    await adapter.declare(Topology(formers, mode="verify"))
    for former in formers:
        await adapter.end_generation(former)
        await _mark(adapter, former, await _unfinished(adapter, former))


async def _unfinished(adapter: Adapter, former: TopicSpec) -> set[int]:
    """The partitions for whose end some group waits."""
    waiting: set[int] = set()
    for info in await adapter.groups():
        if (info.topic, info.generation) == (former.name, former.generation) and info.ordered is not False:
            finished = await adapter.finished(GroupSpec(former, info.group, ordered=True))
            waiting |= set(range(former.partitions)) - set(finished)
    return waiting


async def _mark(adapter: Adapter, former: TopicSpec, partitions: Iterable[int]) -> None:
    """Publish an end mark to each of these partitions."""
    marks = [
        Outgoing(former, Message(id=new_id(), topic=former.name, body=b"", type=END), partition)
        for partition in partitions
    ]
    for result in await adapter.publish(marks):
        if isinstance(result, PublishError):
            raise result
