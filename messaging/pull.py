"""Consuming by hand: the same dispatcher, with the program in the handler's place."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Self

from messaging.adapter import SettleError, Subscription
from messaging.binding import Binding, Counters
from messaging.errors import Closed, ConfigurationError, LeaseLost, UnsupportedCapability
from messaging.generations import subscriber
from messaging.lasting import lasting, this_task
from messaging.message import OUTCOMES, Release, T
from messaging.middleware.expiry import expiring, has_expired
from messaging.middleware.retry import RetryPolicy, retrying

if TYPE_CHECKING:
    from types import TracebackType

    from messaging.adapter import Capability, RawDelivery, Settled, Start
    from messaging.bus import Bus
    from messaging.dispatch import Dispatcher
    from messaging.generations import Subscriber
    from messaging.message import Delivery, Outcome, Topic

REMEMBERED = 1000
"""Deliveries that are gone, and that the program may still try to settle: it is told so."""


@dataclass(slots=True, eq=False)
class _Open:
    """A delivery in the program's hands: its outcome, and what the broker answered."""

    delivery: Delivery[Any]
    raw: RawDelivery
    outcome: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    settled: asyncio.Future[Settled] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    given_back: bool = False


class Pull(Generic[T]):
    """An async iterator over deliveries, each to be given to `settle`. Made by `Bus.consume`, opened by `async with`.

    At most `prefetch` are unsettled; what is not settled at exit goes back uncounted. A Retry waits and is handed
    out again as a handler's would be; its attempts are not limited.
    """

    def __init__(
        self, bus: Bus, topic: Topic[T], *, group: str, prefetch: int, ordered: bool | None, start: Start
    ) -> None:
        if prefetch < 1:
            raise ConfigurationError(f"The prefetch of bus.consume() is {prefetch}; it must be 1 or more")
        self._bus = bus
        self._topic = topic
        self._group = bus.catalogue.group(bus.catalogue.spec(topic), group, ordered=ordered, start=start)
        self._prefetch = prefetch
        self._ready: deque[Delivery[Any]] = deque()
        self._open: dict[int, _Open] = {}
        self._by_raw: dict[RawDelivery, int] = {}
        self._gone: dict[int, tuple[Delivery[Any], SettleError]] = {}
        self._arrived = asyncio.Event()
        self._dispatcher: Dispatcher | Subscriber | None = None
        self._task: asyncio.Task[None] | None = None
        self._in_use = False
        self._leaving = False
        self._closed = False

    async def __aenter__(self) -> Self:
        """Declare the group and join it.

        Raises UnsupportedCapability where the broker cannot do what is asked, ConfigurationError while it is open.
        """
        self._bus.check_open()
        if self._in_use:
            raise ConfigurationError(
                f"This bus.consume() of {self._topic.name}/{self._group.name} is open already: call bus.consume() "
                f"again for another member"
            )
        self._in_use = True
        try:
            await self._join()
        except BaseException:
            self._in_use = False
            raise
        return self

    async def _join(self) -> None:
        broker = self._bus.broker(self._topic)
        capabilities = broker.capabilities
        wanted = {"order": self._group.ordered, "history": self._group.start != "latest"}
        for name, needed in wanted.items():
            capability: Capability = getattr(capabilities, name)
            if needed and capability.level == "unsupported":
                raise UnsupportedCapability(
                    f"{self._topic.name}/{self._group.name} asks {broker.name} for {name}: {capability.reason}"
                )
        await self._bus.catalogue.declare([self._group], [self._group.topic], again=True)
        counters = Counters()

        def count_expired(_: object) -> None:
            counters.expired += 1

        dropping = expiring(clock=self._bus.clock, expired=count_expired)
        binding = Binding(
            subscription=Subscription(self._group, prefetch=self._prefetch, concurrency=self._prefetch),
            codec=self._topic.codec,
            handler=retrying(RetryPolicy(2**31))(dropping(self._hand_out)),
            counters=counters,
            handler_name="bus.consume",
            service=self._group.name,
            grace=0.0,
            max_delay=capabilities.longest_wait(ordered=self._group.ordered),
            max_hold=capabilities.max_hold if self._group.ordered else inf,
            observer=self,
            isolation=self._bus.isolation,
        )
        self._dispatcher = subscriber(self._bus, binding)
        self._bus.dispatchers.append(self._dispatcher)
        name, me = f"messaging-consume-{self._topic.name}", this_task()
        self._leaving = self._closed = False
        running = lasting(self._dispatcher.run, name, lambda: self._leaving or me.cancelling() > 0)
        self._task = asyncio.create_task(running, name=name)
        self._task.add_done_callback(self._ended)
        self._bus.pulls.add(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._dispatcher is not None and self._task is not None  # noqa: PT018  set by __aenter__
        self._bus.pulls.discard(self)
        self._bus.dispatchers.remove(self._dispatcher)
        try:
            self._leave(self._dispatcher)
            await self._left(self._task)
        finally:
            self._in_use = False
        if error is None and not self._task.cancelled():
            self._task.result()

    def stop(self) -> None:
        """The bus closes before the block has ended: the next delivery raises Closed."""
        assert self._dispatcher is not None
        self._closed = True
        self._leave(self._dispatcher)

    async def stopped(self) -> None:
        """When what was unsettled is given back."""
        assert self._task is not None
        await self._left(self._task)

    def _leave(self, dispatcher: Dispatcher | Subscriber) -> None:
        self._leaving = True
        dispatcher.stop()

    async def _left(self, task: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()  # where the wait was cancelled
            await asyncio.wait((task,))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery[T]:
        """The next delivery. Raises what ended the subscription for good. Cancelling loses nothing.

        One whose lease has ended while it waited here is not given out (9): it is delivered again. Nor is one that has
        expired: it is dropped (6).
        """
        while True:
            while self._ready:
                delivery = self._ready.popleft()
                if self._still_ours(delivery):
                    return delivery
            if self._task is None:
                raise Closed("bus.consume() is opened by `async with` before deliveries are taken")
            if self._task.done():
                self._task.result()
                if self._closed:
                    self._bus.check_open()
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    def _still_ours(self, delivery: Delivery[T]) -> bool:
        entry = self._open.get(id(delivery))
        clock = self._bus.clock
        expired = has_expired(delivery.message, clock)
        if entry is None or (entry.raw.lease.deadline > clock.monotonic() and not expired):
            return not expired
        if not entry.outcome.done():
            entry.outcome.set_result(Release())  # it comes again, or is dropped then
        return False

    async def settle(self, delivery: Delivery[T], outcome: Outcome) -> None:
        """Settle; returns when the broker has taken it. Settling twice is a no-op.

        Raises TypeError for what is no outcome: the delivery stays open. Raises LeaseLost when the delivery is no
        longer ours: its message is delivered again. Cancelling leaves it open whether the broker takes it.
        """
        self._bus.check_open()
        if not isinstance(outcome, OUTCOMES):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
            raise TypeError(f"settle takes Ack, Release, Retry or Reject, not {outcome!r}")
        entry = self._open.get(id(delivery))
        if entry is None:
            gone = self._gone.pop(id(delivery), None)
            if gone is not None:
                raise self._lost(delivery, gone[1])
            return
        if not entry.outcome.done():
            entry.outcome.set_result(outcome)
        result = await asyncio.shield(entry.settled)
        if isinstance(result, SettleError):
            raise self._lost(delivery, result)

    def _lost(self, delivery: Delivery[T], result: SettleError) -> LeaseLost:
        return LeaseLost(
            f"Message {delivery.message.id} of {self._topic.name} was not settled: {result.error}"
        )

    # What the dispatcher tells: see binding.Observer.

    def started(self, delivery: Delivery[Any], raw: RawDelivery) -> None:
        self._open[id(delivery)] = _Open(delivery, raw)
        self._by_raw[raw] = id(delivery)

    def settled(self, raw: RawDelivery, result: Settled) -> None:
        entry = self._open.pop(self._by_raw.pop(raw, 0), None)
        if entry is not None:
            self._tell(entry, result)

    def _tell(self, entry: _Open, result: Settled) -> None:
        if entry.given_back and not isinstance(result, SettleError):
            result = SettleError(LeaseLost("it was given back"))
        if isinstance(result, SettleError):  # the program may settle it later: it is told so
            self._gone[id(entry.delivery)] = entry.delivery, result
            if len(self._gone) > REMEMBERED:
                del self._gone[next(iter(self._gone))]
        entry.settled.set_result(result)

    def _ended(self, task: asyncio.Task[None]) -> None:
        for entry in self._open.values():
            self._tell(entry, SettleError(LeaseLost("the subscription has ended")))
        self._open.clear()
        self._by_raw.clear()
        self._arrived.set()
        if not task.cancelled():
            task.exception()  # it is raised where the program takes the next delivery, or leaves

    async def _hand_out(self, delivery: Delivery[Any]) -> Outcome:
        entry = self._open[id(delivery)]
        self._ready.append(delivery)
        self._arrived.set()
        try:
            return await entry.outcome
        except asyncio.CancelledError:
            entry.given_back = True
            self._ready = deque(one for one in self._ready if one is not delivery)
            raise
