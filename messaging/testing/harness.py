"""Run an app in a test: in memory, on a virtual clock, through the code that runs in production."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from messaging.bus import connect
from messaging.message import checked_seconds
from messaging.settings import Settings
from messaging.testing.clock import VirtualClock
from messaging.testing.threads import threads_are_waited_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence

    from messaging.app import App
    from messaging.bus import Bus
    from messaging.dead_letters import DeadLetter
    from messaging.message import Delivery, Duration, Endpoint, Handler, Key, Outcome, Q, R, Topic

V = TypeVar("V")

STEP = 0.1
"""Seconds by which time passes while a request waits for its reply, and while the app drains."""


class AppTest:
    """A running app and what its test needs; made by `app.test()`.

    No time passes but by `advance` and while `request` waits. `handled` has a delivery for every call of a handler,
    in order, retries too. Retry delays, timeouts, leases and expiry follow `clock`, which stands while a handler waits
    for `asyncio.to_thread`. A plain `asyncio.sleep` in a handler does not follow it, nor is a socket waited for.
    """

    def __init__(self, app: App, bus: Bus, clock: VirtualClock) -> None:
        self.bus = bus
        self.clock = clock
        self.handled: list[Delivery[Any]] = []
        self.publish = bus.publish
        """As `Bus.publish`: the broker has the message then; `settle` or `advance` have it handled."""
        self.publish_many = bus.publish_many
        self._app = app
        self._moving = asyncio.Lock()

    async def advance(self, duration: Duration) -> None:
        """Let time pass, in seconds or as a timedelta: what comes due happens, in its order."""
        async with self._moving:
            await self.clock.advance(checked_seconds(duration, "The duration"))

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        async with self._moving:
            await self.clock.settle()

    async def request(
        self,
        endpoint: Endpoint[Q, R],
        payload: Q,
        *,
        timeout: Duration | None = None,
        key: Key | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> R:
        """As `Bus.request`; time passes until there is a reply, or RequestTimeout."""
        asked = self.bus.request(endpoint, payload, timeout=timeout, key=key, headers=headers)
        asking = asyncio.create_task(asked)
        try:
            await self.settle()
            while not asking.done():
                await self.advance(STEP)
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        return asking.result()

    def dead(self, topic: Topic[Any] | str, *, group: str | None = None) -> list[DeadLetter]:
        """The dead letters now, oldest first, of this group or the app's own. Consumes nothing."""
        letters = self.bus.dead_letters(topic, group=group or self._app.name)

        async def browse() -> list[DeadLetter]:
            return [letter async for letter in letters.browse()]

        return _at_once(browse())

    def recording(self, next: Handler) -> Handler:
        """The middleware that fills `handled`."""

        async def handle(delivery: Delivery[Any]) -> Outcome:
            self.handled.append(delivery)
            return await next(delivery)

        return handle


@asynccontextmanager
async def app_test(app: App, *, provide: Sequence[object] | None = None) -> AsyncGenerator[AppTest]:
    """Run the app on a memory broker and a memory store of its own; at the end it drains as in production.

    `provide` replaces what its lifespan would yield. The settings of file and environment hold, except for where the
    broker and the store are. An error that ends a subscription for good cancels the body and is raised.
    """
    clock = VirtualClock()
    # Whatever production says of its topology, a broker that is empty has to be given one.
    settings = Settings.load(url="memory://", store="memory://").model_copy(update={"topology": "declare"})
    bus = connect(settings, clock=clock)
    test = AppTest(app, bus, clock)
    with threads_are_waited_for(clock):
        async with (
            _Ending(test) as ending,
            bus,
            app.running(bus, provide=provide, middleware=[test.recording]),
        ):
            try:
                yield test
            finally:
                ending.begin()


class _Ending:
    """Lets time pass while the app drains: a handler that waits for its clock would else never end."""

    def __init__(self, test: AppTest) -> None:
        self._test = test
        self._passing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    def begin(self) -> None:
        self._passing = asyncio.create_task(self._pass())

    async def _pass(self) -> None:
        while True:
            # A program that does not come to rest is about to be stopped: draining has bounds of its own.
            with suppress(RuntimeError):
                await self._test.advance(STEP)

    async def __aexit__(self, *exc_info: object) -> None:
        if self._passing is not None:
            self._passing.cancel()
            await asyncio.wait({self._passing})


def _at_once(call: Coroutine[Any, Any, V]) -> V:
    """The result of a call that has nothing to wait for, as those to the memory broker have not."""
    try:
        call.send(None)
    except StopIteration as returned:
        return returned.value  # type: ignore[no-any-return]  # it is what the coroutine returns
    call.close()
    raise RuntimeError("the memory broker made the caller wait")
