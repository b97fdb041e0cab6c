"""The app: records handlers, binds them to a bus late, runs them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

from messaging.definition import Defaults, Definition, check_kind
from messaging.errors import Closed, ConfigurationError
from messaging.lasting import lasting, this_task
from messaging.message import Endpoint, Topic
from messaging.middleware.retry import RetryPolicy
from messaging.names import check_group
from messaging.signals import stop_asked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from messaging.adapter import Start, TopologyMode
    from messaging.bus import Bus
    from messaging.dispatch import Dispatcher
    from messaging.generations import Subscriber
    from messaging.message import Duration, Message, Middleware, Outcome
    from messaging.middleware.expiry import OnExpired
    from messaging.middleware.retry import OnExhausted
    from messaging.subscription import Plan
    from messaging.testing.harness import AppTest

M = TypeVar("M")
"""The payload; without a default, so that a handler of another type is refused by the type checker."""
A = TypeVar("A")
P = ParamSpec("P")
Result = TypeVar("Result", bound="Awaitable[Outcome | None] | Outcome | None")

Lifespan: TypeAlias = "Callable[[Bus], AbstractAsyncContextManager[Any]]"

RESPONDERS = "responders"
"""The group that answers requests, unless `respond(group=)` names another (semantics 22)."""
THREADS = 32
"""Most synchronous handlers of an app that run at once."""


class App:
    """A service: its handlers, and what they share.

    `name` is the group of its subscriptions. `lifespan(bus)` is an async context manager whose resource, or tuple of
    resources, fills the handlers' parameters by type. The other arguments are defaults for every subscription.
    """

    def __init__(
        self,
        name: str,
        *,
        lifespan: Lifespan | None = None,
        middleware: Sequence[Middleware] = (),
        retry: RetryPolicy | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        timeout: Duration | None = None,
        idempotent: bool | Callable[[Message], str] = False,
    ) -> None:
        self.name = check_group(name)
        self._lifespan = lifespan
        self._defaults = Defaults(
            app=name,
            retry=RetryPolicy() if retry is None else retry,
            middleware=middleware,
            concurrency=concurrency,
            prefetch=prefetch,
            timeout=timeout,
            idempotent=idempotent,
        )
        self._definitions: list[tuple[Definition, Defaults]] = []
        self._included: list[App] = []
        self._buses: list[Bus] = []
        """Where it runs, once for each time."""

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    @property
    def bus(self) -> Bus:
        """The running bus, the latest of several. Raises Closed when the app does not run."""
        if not self._buses:
            raise Closed(
                f"{self!r} is not running: app.bus is there inside app.running(bus) or app.serve(bus)"
            )
        return self._buses[-1]

    # --- recording -----------------------------------------------------------------------------------------------

    def subscribe(
        self,
        topic: Topic[M],
        *,
        group: str | None = None,
        concurrency: int | None = None,
        prefetch: int | None = None,
        ordered: bool | None = None,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        idempotent: bool | Callable[[Message], str] | None = None,
        start: Start | None = None,
        on_expired: OnExpired | None = None,
        on_exhausted: OnExhausted | None = None,
        middleware: Sequence[Middleware] = (),
        native: str | None = None,
        topology: TopologyMode | None = None,
    ) -> Callable[[Callable[Concatenate[M, P], Result]], Callable[Concatenate[M, P], Result]]:
        """Handle the topic's messages with the decorated function, which is returned unchanged.

        At most `concurrency` handlers run at once and `prefetch` deliveries are in the process. `timeout` is
        seconds per attempt. `ordered=False` gives up the order of an ordered topic. `idempotent` is True for the
        message's id, or a function from message to key. `start` is where a new group begins; a time without a zone
        is UTC. What has expired is dropped and counted, or with `on_expired="dead_letter"` kept as a dead letter; what
        has no attempt left is a dead letter, or with `on_exhausted="hold_key"` tried again for ever while its key
        waits. `middleware` is inside the app's. `native` names an existing queue or group of the broker;
        `topology` says, for this group alone, whether it is declared, verified or taken as it is.

        Raises ConfigurationError for an argument that means nothing.
        """
        check_kind(
            topic, Topic, f'{self!r}.subscribe() takes a Topic: @app.subscribe(Topic("orders", Order))'
        )

        def record(function: Callable[Concatenate[M, P], Result]) -> Callable[Concatenate[M, P], Result]:
            self._record(
                Definition(
                    app=self.name,
                    topic=topic,
                    group=check_group(group or self.name),
                    function=function,
                    concurrency=concurrency,
                    prefetch=prefetch,
                    ordered=ordered,
                    retry=retry,
                    timeout=timeout,
                    idempotent=idempotent,
                    start=start,
                    on_expired=on_expired,
                    on_exhausted=on_exhausted,
                    middleware=middleware,
                    native=native,
                    topology=topology,
                )
            )
            return function

        return record

    def respond(
        self,
        endpoint: Endpoint[M, A],
        *,
        group: str = RESPONDERS,
        concurrency: int | None = None,
        prefetch: int | None = None,
        timeout: Duration | None = None,
        idempotent: bool | Callable[[Message], str] | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[
        [Callable[Concatenate[M, P], Awaitable[A] | A]], Callable[Concatenate[M, P], Awaitable[A] | A]
    ]:
        """Answer the endpoint's requests with what the decorated function returns.

        It runs once for each request, without dead letters; what it raises reaches the requester as RemoteError
        (22). An idempotent responder stores its reply and sends it again.

        Raises ConfigurationError for an argument that means nothing.
        """
        check_kind(
            endpoint,
            Endpoint,
            f'{self!r}.respond() takes an Endpoint: @app.respond(Endpoint("prices", Ask, Price))',
        )

        def record(
            function: Callable[Concatenate[M, P], Awaitable[A] | A],
        ) -> Callable[Concatenate[M, P], Awaitable[A] | A]:
            self._record(
                Definition(
                    app=self.name,
                    topic=endpoint.topic,
                    group=check_group(group),
                    function=function,
                    endpoint=endpoint,
                    concurrency=concurrency,
                    prefetch=prefetch,
                    timeout=timeout,
                    idempotent=idempotent,
                    middleware=middleware,
                )
            )
            return function

        return record

    def include(self, other: App) -> None:
        """Run the other app's subscriptions with this one; they keep their groups, defaults and lifespan.

        Raises ConfigurationError when the other app is, or includes, this one.
        """
        if self in other._members():
            raise ConfigurationError(f"{self!r} cannot include {other!r}: an app cannot include itself")
        self._included.append(other)

    def _record(self, definition: Definition) -> None:
        if not (definition.middleware or self._defaults.middleware):  # which may pass another payload on
            from messaging.mismatch import check_payload

            check_payload(definition)
        self._definitions.append((definition, self._defaults))

    # --- binding -------------------------------------------------------------------------------------------------

    @property
    def definitions(self) -> Sequence[Definition]:
        """All subscriptions, those of included apps too."""
        return [definition for app in self._family() for definition, _ in app._definitions]  # noqa: SLF001

    def plans(self, bus: Bus) -> Sequence[Plan]:
        """The subscriptions with the bus's settings applied.

        Raises ConfigurationError when two have the same topic and group.
        """
        return [made for app in self._family() for made in app._own_plans(bus)]  # noqa: SLF001

    def _own_plans(self, bus: Bus) -> list[Plan]:
        from messaging.subscription import plan

        return [plan(definition, defaults, bus) for definition, defaults in self._definitions]

    def _members(self) -> list[App]:
        """This app and all that it includes, each once."""
        members: list[App] = [self]
        for app in self._included:
            members.extend(member for member in app._members() if member not in members)  # noqa: SLF001
        return members

    def _family(self) -> list[App]:
        """The members. Raises ConfigurationError when two handlers have the same topic and group."""
        family = self._members()
        names = [definition.name for app in family for definition, _ in app._definitions]  # noqa: SLF001
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"Two handlers subscribe to the same topic and group: {', '.join(twice)}. Give one another group"
            )
        return family

    # --- running -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(
        self, bus: Bus, *, provide: Sequence[object] | None = None, middleware: Sequence[Middleware] = ()
    ) -> AsyncGenerator[App]:
        """Handle messages while the body runs, then drain.

        At exit nothing new starts, what runs is finished within the drain timeout and settled, the rest goes back
        uncounted. A handler that ignores its cancellation then, or a synchronous one that goes on, is given ten
        seconds more and left behind. Where the body raises or is cancelled, what runs is cancelled at once, and goes
        back too. A fatal error of a subscription cancels the body and is raised (semantics 25).
        `provide` replaces what the lifespan would yield; `middleware` is added to every subscription's, innermost.
        Raises UnsupportedCapability or ConfigurationError before anything runs.
        """
        from messaging.bus import Bus
        from messaging.generations import subscriber  # what only publishes never loads what consumes
        from messaging.subscription import check

        check_kind(bus, Bus, f"{self!r}.running() takes a Bus: async with connect() as bus, app.running(bus)")
        bus.check_open()
        family = self._family()
        check(self.plans(bus), bus)
        await bus.declare(self)
        async with AsyncExitStack() as stack:
            executor = ThreadPoolExecutor(THREADS, thread_name_prefix=f"messaging-{self.name}")
            stack.callback(executor.shutdown, wait=False)
            for app in family:
                app._buses.append(bus)  # noqa: SLF001
                stack.callback(app._buses.remove, bus)  # noqa: SLF001
            dispatchers: list[Dispatcher | Subscriber] = []
            for app in family:
                provided = await app._resources(bus, stack, provide)  # noqa: SLF001
                dispatchers += [
                    subscriber(bus, made.within(middleware).bind(bus, [bus, *provided], executor))
                    for made in app._own_plans(bus)  # noqa: SLF001
                ]
            async with _run_all(dispatchers, bus):
                yield self

    async def serve(self, bus: Bus) -> None:
        """Open the bus and run until SIGTERM or SIGINT, then drain. A second signal ends the process as usual.

        A signal that comes before all has started cancels the start: the lifespan gets CancelledError where it waits.
        Several apps of one loop may be served at once: a signal is for all.
        Raises what ends a subscription for good, and ConfigurationError outside the main thread.
        """
        from messaging.bus import Bus

        check_kind(bus, Bus, f"{self!r}.serve() takes a Bus: app.serve(connect())")
        with stop_asked() as stop:
            async with AsyncExitStack() as started:
                with stop.cancels():
                    await started.enter_async_context(bus)
                    await started.enter_async_context(self.running(bus))
                await stop.wait()

    def test(self, *, provide: Sequence[object] | None = None) -> AbstractAsyncContextManager[AppTest]:
        """Run this app in memory, on a virtual clock, on production's code path: see `messaging.testing`."""
        from messaging.testing.harness import app_test

        return app_test(self, provide=provide)

    async def _resources(
        self, bus: Bus, stack: AsyncExitStack, provide: Sequence[object] | None
    ) -> Sequence[object]:
        if provide is not None:
            return provide
        if self._lifespan is None:
            return ()
        yielded: object = await stack.enter_async_context(self._lifespan(bus))
        if yielded is None:
            return ()
        return cast("tuple[object, ...]", yielded) if isinstance(yielded, tuple) else (yielded,)


@asynccontextmanager
async def _run_all(dispatchers: Sequence[Dispatcher | Subscriber], bus: Bus) -> AsyncGenerator[None]:
    """Run these beside the body; the first error, of a subscription or of the body, ends all and is raised alone."""
    failed: list[BaseException] = []
    me = this_task()
    try:
        async with asyncio.TaskGroup() as tasks:
            for dispatcher in dispatchers:
                name = f"messaging-{dispatcher.topic}/{dispatcher.group}"
                running = partial(lasting, dispatcher.run, name, lambda: bool(failed) or me.cancelling() > 0)
                tasks.create_task(_run_one(running, dispatcher, bus, failed), name=name)
            bus.dispatchers.extend(dispatchers)
            try:
                yield
            except BaseException as error:  # kept to be raised below as it is
                failed.append(error)
                raise
            for dispatcher in dispatchers:
                dispatcher.stop()
    except BaseExceptionGroup:
        # Raised below, as it was: with the cause that it came with, and a group of the body's own as that group.
        failed = [error for error in failed if not isinstance(error, asyncio.CancelledError)]
    finally:
        bus.dispatchers = [one for one in bus.dispatchers if one not in dispatchers]
    if failed:
        raise failed[0]


async def _run_one(
    running: Callable[[], Awaitable[None]],
    dispatcher: Dispatcher | Subscriber,
    bus: Bus,
    failed: list[BaseException],
) -> None:
    name = dispatcher.topic, dispatcher.group
    bus.ended.pop(name, None)
    try:
        await running()
    except BaseException as error:  # a cancellation too: `failed` has what came first
        failed.append(error)
        if isinstance(error, Exception):
            bus.ended[name] = error
        raise
