"""One simulated process: a member of the group with a bus, a clock and a connection of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from messaging import App, Bus, Delivery, Outcome, Reject, Release, Retry, RetryPolicy, fixed
from messaging.clock import sleep
from messaging.errors import ConnectionFailed
from messaging.message import seconds
from messaging_contracts.faults import Begun, Ended, Event, Struck
from messaging_contracts.simulation.adapter import FaultyAdapter
from messaging_contracts.simulation.loop import ProcessClock
from messaging_contracts.simulation.store import FaultyStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Adapter
    from messaging.middleware.publishing import PublishMiddleware
    from messaging_contracts.faults.history import End
    from messaging_contracts.simulation.world import World

GROUP = "billing"
STUBBORN = 2.0
"""Seconds for which a stubborn handler ignores its cancellation."""


class Process:
    """A simulated process with a bus; `crash` ends it as kill -9 does, `freeze` and `thaw` as SIGSTOP and SIGCONT."""

    adapts: ClassVar[type[FaultyAdapter]] = FaultyAdapter

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = ProcessClock(world.loop)
        self.store = FaultyStore(
            world.store,
            world.faults,
            self.clock,
            world.outage,
            lease=world.scenario.key_lease,
            requested=world.requested,
            member=name,
            record=self.record,
        )
        self.in_hand: dict[str, None] = {}
        """What is worked on by hand, and not settled."""
        self.bus = Bus(
            world.settings,
            publish_middleware=self.publish_middleware,
            clock=self.clock,
            wrap=self._wrap,
            wrap_store=lambda _: self.store,
        )
        self.dead = False

    @property
    def publish_middleware(self) -> Sequence[PublishMiddleware]:
        """What its messages go through."""
        return ()

    @property
    def drained(self) -> bool:
        """Whether it leaves, and what it still runs has had its time."""
        return False

    def _wrap(self, _: Adapter) -> Adapter:
        world = self.world
        inner = world.memory(ProcessClock(world.loop))
        self.inner = inner
        self.adapter = self.adapts(
            inner,
            world.faults,
            self.clock,
            self.name,
            window=world.scenario.window,
            cut=self._living(inner.cut),
            lapse=self._living(inner.lapse),
            drained=lambda: self.drained,
            unstored=lambda: {*self.store.completing, *self.store.unclear},
            in_hand=self.in_hand.keys(),
            requested=world.requested,
            problem=world.problem,
        )
        return self.adapter

    def _living(self, strike: Any) -> Any:
        def struck() -> None:
            if not self.dead:
                strike()

        return struck

    def record(self, event: Event) -> None:
        """Into the history; the dead record nothing."""
        if not self.dead:
            self.world.history.record(event)

    def now(self) -> float:
        return self.clock.monotonic()


class Member(Process):
    """A process that runs the app. `stop` makes it drain and leave."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._stop = asyncio.Event()
        self._handlings = 0
        self._frozen_at = self._stopped_at = 0.0
        self.running = 0
        self.answering = 0
        """Requests."""
        self.task = asyncio.create_task(self._live(), name=f"member-{name}")

    @property
    def alive(self) -> bool:
        """Neither dead nor leaving."""
        return not (self.dead or self._stop.is_set() or self.task.done())

    @property
    def drained(self) -> bool:
        return self._stop.is_set() and self.now() >= self._stopped_at + self.world.scenario.grace

    async def _live(self) -> None:
        try:
            async with self.bus:
                await self.serve()
        except ConnectionFailed:
            self.stop()  # it could not start; as a service would, it ends and is started again
            self.world.start_again()
        except Exception as error:
            if not self.dead:
                self.world.problem(f"{self.name} ended with {error!r}")

    async def serve(self) -> None:
        """Handle messages until it is to stop."""
        scenario = self.world.scenario
        app = App(GROUP, retry=RetryPolicy(scenario.attempts, fixed(scenario.delay)))
        app.subscribe(
            self.world.topic,
            concurrency=scenario.concurrency,
            prefetch=scenario.prefetch,
            timeout=scenario.timeout,
            idempotent=scenario.idempotent,
            on_expired=scenario.on_expired,
            on_exhausted="hold_key" if scenario.hold_key else "dead_letter",
        )(self._handle)
        self.extend(app)
        async with app.running(self.bus):
            await self.stopped()

    def extend(self, app: App) -> None:
        """Add subscriptions to those of all members."""

    async def stopped(self) -> None:
        """Wait until it is to stop."""
        await self._stop.wait()

    def stop(self) -> None:
        """Leave in an orderly way."""
        if not self._stop.is_set():
            self._stopped_at = self.now()
        self._stop.set()
        self.world.deserted()

    def freeze(self) -> None:
        """Stand still, until `thaw`."""
        self.store.frozen()
        self.clock.freeze()
        self._frozen_at = self.now()

    def thaw(self) -> None:
        """Go on."""
        if self.clock.frozen:
            # It excuses what is late; what was lost meanwhile is recorded by itself.
            self.record(Struck(at=self._frozen_at, kind="frozen", member=self.name, until=self.now(), ids=()))
        self.clock.thaw()

    def crash(self) -> None:
        """End without a word."""
        if self.dead or self.task.done():
            return
        self.record(Struck(at=self.now(), kind="crash", member=self.name, fatal=True))
        named = self.world.requested.name
        isolating = tuple(named(one.isolating) for one in self.adapter.consumers if one.isolating is not None)
        self.record(Struck(at=self.now(), kind="crash while isolating", member=self.name, ids=isolating))
        self.dead = self.store.dead = True
        self.inner.crash()
        self.clock.thaw()
        self.task.cancel()
        self.world.deaths += 1

    def begin(self, payload: Any, delivery: Delivery[Any]) -> str:
        """Record that this delivery is handled from now on; the name of its handling."""
        id = delivery.message.id
        token = self.store.tokens[id] if self.world.scenario.idempotent else 0
        return self.begun(delivery, id, sequence=payload[1], token=token)

    def begun(
        self, delivery: Delivery[Any], id: str, *, token: int, group: str = GROUP, sequence: int = 0
    ) -> str:
        """The same, for whatever is handled."""
        self._handlings += 1
        name = f"{self.name}/{self._handlings}"
        self.record(
            Begun(
                at=self.now(),
                handling=name,
                id=id,
                group=group,
                member=self.name,
                key=None if delivery.key is None else str(delivery.key),
                sequence=sequence,
                attempt=delivery.attempt,
                deliveries=delivery.deliveries,
                partition=delivery.partition,
                fence=delivery.fence,
                token=token,
            )
        )
        return name

    async def _handle(self, payload: Any, delivery: Delivery[Any]) -> Outcome | None:
        name = self.begin(payload, delivery)
        self.running += 1
        if self.running > self.world.scenario.concurrency and not self.dead:
            self.world.problem(f"{self.name} runs {self.running} handlers")
        begun = self.now()
        try:
            outcome = await self.behave(delivery)
        except asyncio.CancelledError:
            if self.timed_out(begun, self.world.scenario.timeout):
                self.end(name, *self._failure(delivery, None))
            else:
                self.end(name, "cancelled")
            raise
        except Exception:
            self.end(name, *self._failure(delivery, None))
            raise
        finally:
            self.running -= 1
        if isinstance(outcome, Reject):
            self.end(name, "rejected")
        elif isinstance(outcome, Retry):
            self.end(name, *self._failure(delivery, outcome))
        elif isinstance(outcome, Release):
            self.end(name, "released", seconds(outcome.after or 0.0))
        else:
            self.end(name, "succeeded")
        return outcome

    def timed_out(self, begun: float, timeout: float | None) -> bool:
        """Whether what began then is cancelled by its timeout, and not, too, because the member gives it up."""
        task = asyncio.current_task()
        late = timeout is not None and self.now() > begun + timeout - 1e-6
        return late and task is not None and task.cancelling() == 1

    def _failure(self, delivery: Delivery[Any], retry: Retry | None) -> tuple[End, float]:
        scenario = self.world.scenario
        if delivery.attempt >= scenario.attempts and not scenario.hold_key:
            return "rejected", 0.0
        if retry is None or retry.after is None:
            return "failed", scenario.delay
        return "failed", seconds(retry.after)

    def end(self, name: str, how: End, after: float = 0.0) -> None:
        """Record the end of this handling."""
        self.record(Ended(at=self.now(), handling=name, how=how, after=after))

    async def behave(self, delivery: Delivery[Any]) -> Outcome | None:
        """What a handler does, as drawn."""
        world = self.world
        if delivery.message.id == world.poison:
            self.crash()
            await asyncio.Event().wait()
        random = world.random
        if world.faults.calm:
            return None
        if random.random() < 0.5:
            await sleep(self.clock, random.choice((0.0, 0.01, 0.3)))
        for name, rate in world.scenario.behaviours.items():
            if random.random() < rate:
                return await self._misbehave(name)
        return None

    async def _misbehave(self, name: str) -> Outcome | None:
        random = self.world.random
        if name == "raise":
            raise RuntimeError("simulated")
        if name == "retry":
            return Retry("simulated", after=random.choice((None, 0.0, 0.5, 4.0)))
        if name == "reject":
            return Reject("simulated")
        if name == "release":
            return Release()
        if name == "release_later":
            return Release(after=random.choice((0.1, 3.0)))
        if name == "slow":
            await sleep(self.clock, random.uniform(0.0, self.world.scenario.lease * 1.5))
        elif name == "hang":
            await sleep(self.clock, self.world.scenario.lease * 4)
        else:
            await self._ignore_cancellation(random.uniform(0.0, self.world.scenario.lease))
        return None

    async def _ignore_cancellation(self, seconds: float) -> None:
        try:
            await sleep(self.clock, seconds)
        except asyncio.CancelledError:
            await sleep(self.clock, STUBBORN)
