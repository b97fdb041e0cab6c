"""The bus: the connection to a broker, to publish, request, consume by hand, and look after groups.

Routes in the settings give some topics a broker of their own: see `messaging.routing`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, overload

from messaging.adapter import Start, TopicSpec, TopologyMode
from messaging.catalogue import Catalogue, merged
from messaging.clock import Clock, SystemClock
from messaging.errors import (
    Closed,
    ConfigurationError,
    InvalidMessage,
    PublishError,
    PublishManyError,
)
from messaging.groups import declare, delete
from messaging.ids import new_id
from messaging.isolation import Isolation
from messaging.message import Endpoint, Q, R, Receipt, T, Topic, checked_seconds
from messaging.prepare import NO_OPTIONS, Options, Preparation, checked_timeout
from messaging.registry import redact, store_for
from messaging.requests import read_reply
from messaging.routing import Broker, Routing, open_within
from messaging.sending import Sender, check_once
from messaging.texts import plain
from messaging.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from messaging.adapter import Adapter, Capabilities, GroupInfo
    from messaging.app import App
    from messaging.dead_letters import DeadLetters
    from messaging.dispatch import Dispatcher
    from messaging.generations import Subscriber
    from messaging.health import Health
    from messaging.message import Duration, Key
    from messaging.middleware.publishing import PublishMiddleware
    from messaging.pull import Pull
    from messaging.settings import Settings
    from messaging.store import IdempotencyStore


def connect(
    url: str | Settings | None = None,
    *,
    store: str | None = None,
    source: str | None = None,
    namespace: str | None = None,
    topology: TopologyMode | None = None,
    publish_middleware: Sequence[PublishMiddleware] = (),
    clock: Clock | None = None,
) -> Bus:
    """A bus for the broker at this URL; opened by `async with`. No I/O yet.

    Without a URL it is MESSAGING_URL, or `url` in messaging.toml; memory is never a silent default. `store` is
    where idempotency lives, `namespace` keeps environments apart on one broker, `source` names this program in its
    messages. `topology` says whether topics and groups are created where they are missing ("declare", the default),
    only compared ("verify") or not asked for ("off"). `publish_middleware` is around each publish, the first outermost.
    Raises ConfigurationError for settings that cannot be, MissingExtra for a library to install.
    """
    from messaging.settings import Settings

    if isinstance(url, Settings):
        settings = url
    else:
        given = {"url": url, "store": store, "source": source, "namespace": namespace, "topology": topology}
        settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    return Bus(settings, publish_middleware=publish_middleware, clock=clock or SystemClock())


class Bus:
    """Use it as `async with bus:`, on one event loop (semantics 24). Made by `connect`."""

    def __init__(
        self,
        settings: Settings,
        *,
        publish_middleware: Sequence[PublishMiddleware] = (),
        clock: Clock,
        wrap: Callable[[Adapter], Adapter] | None = None,
        wrap_store: Callable[[IdempotencyStore], IdempotencyStore] | None = None,
    ) -> None:
        """`wrap` puts something between the bus and its adapter: what injects faults, for instance; `wrap_store`
        between the bus and its idempotency store.
        """
        if settings.url is None:
            raise ConfigurationError(
                "No broker was named: give connect() a URL or set MESSAGING_URL, for instance "
                "redis://localhost, amqp://localhost or memory://"
            )
        self.settings = settings
        self.clock = clock
        self.member = f"{socket.gethostname()}-{os.getpid()}-{new_id()[-12:]}"
        self.source = settings.source or "messaging"
        self._routing = Routing(
            settings, settings.url, clock=clock, source=self.source, member=self.member, wrap=wrap
        )
        self.namespace = self._routing.default.namespace
        self._store = None if settings.store is None else store_for(settings.store, clock=clock)
        if self._store is not None and wrap_store is not None:
            self._store = wrap_store(self._store)
        self._catalogue = Catalogue(self._routing, settings, clock)
        self._sender = Sender(
            preparation=Preparation(clock, self.source, settings.idempotent_publish),
            catalogue=self._catalogue,
            routing=self._routing,
            middleware=tuple(publish_middleware),
            clock=clock,
            within=settings.publish_timeout,
            turns=Turns(clock),
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = "new"
        self.dispatchers: list[Dispatcher | Subscriber] = []
        self.pulls: set[Pull[Any]] = set()  # those that are open
        self.isolation = Isolation()
        self.ended: dict[tuple[str, str], Exception] = {}
        """What ended a subscription for good, by topic and group, until it runs again."""

    def __repr__(self) -> str:
        names = ", ".join(repr(broker.name) for broker in self._routing.brokers)
        return f"Bus({names}, {self._state})"

    # --- lifecycle ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect. Raises ConnectionFailed (naming the host) or AuthenticationFailed; closed again on failure."""
        if self._state != "new":
            raise Closed(f"{self!r} was opened before: a bus is opened once; make a new one with connect()")
        self._loop = asyncio.get_running_loop()
        self._state = "opening"
        within = self.settings.connect_timeout
        try:
            await self._routing.open(within)
            if self.settings.idempotent_publish:
                for broker in self._routing.brokers:
                    check_once(broker, broker.capabilities.idempotent_publish, "its topics")
            if self._store is not None:
                name = f"the store at {redact(self.settings.store or '')}"
                await open_within(self._store.open, name, self.clock, within)
        except BaseException:  # a cancelled start leaves nothing open either
            await self._close()
            raise
        self._state = "open"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        self._state = "closed"
        async with AsyncExitStack() as stack:  # each of these, whatever becomes of the others
            if self._store is not None:
                stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._routing.close, self.settings.drain_timeout)
            for pull in self.pulls:  # before their brokers: what they have handed out goes back
                pull.stop()
                stack.push_async_callback(pull.stopped)

    def check_open(self) -> None:
        """Raises Closed unless the bus is open and this is its event loop."""
        if self._state != "open":
            raise Closed(f"{self!r} is not open: use it inside `async with bus:`")
        self.check_loop()

    def check_loop(self) -> None:
        """Raises Closed on another event loop than the one it was opened on (24)."""
        if self._loop is None:
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:  # another thread, a synchronous handler's for instance
            here = None
        if here is not self._loop:
            raise Closed(f"{self!r} belongs to another event loop: make one bus for each loop")

    # --- publish -----------------------------------------------------------------------------------------------

    @overload
    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        delay: Duration | None = None,
        expires: Duration | datetime | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Receipt: ...
    @overload
    async def publish(
        self,
        topic: str,
        payload: Any,
        *,
        key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        delay: Duration | None = None,
        expires: Duration | datetime | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Receipt: ...
    async def publish(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        delay: Duration | None = None,
        expires: Duration | datetime | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Receipt:
        """Publish one message; returns when the broker has confirmed it durably (semantics 20).

        `key` goes before the topic's; `id` is a new one unless given. `timeout` bounds the call (default: the setting
        `publish_timeout`), `expires` says until when a group may begin it (6). Both and `delay` are seconds or a
        timedelta, `expires` also a time with its zone. With a `delay` no group handles it earlier, and on an idle
        broker none much later (`Capabilities.lateness`); an ordered topic takes none (5).
        Raises InvalidMessage and MessageTooLarge before anything is sent, NoGroup with `mandatory=True`,
        PublishUncertain when its fate is unknown, PublishError when the broker does not have it. Cancelling leaves
        the fate unknown, never the connection broken.
        """
        unsaid = key is None and headers is None and id is None and delay is None and expires is None
        options = (
            NO_OPTIONS if unsaid and not mandatory else Options(key, headers, id, delay, expires, mandatory)
        )
        (result,) = await self._publish(topic, (payload,), options, timeout)
        if isinstance(result, Receipt):
            return result
        raise result

    @overload
    async def publish_many(
        self,
        topic: Topic[T],
        payloads: Iterable[T],
        *,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Sequence[Receipt]: ...
    @overload
    async def publish_many(
        self,
        topic: str,
        payloads: Iterable[Any],
        *,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Sequence[Receipt]: ...
    async def publish_many(
        self,
        topic: Topic[Any] | str,
        payloads: Iterable[Any],
        *,
        delay: Duration | None = None,
        timeout: Duration | None = None,
        mandatory: bool = False,
    ) -> Sequence[Receipt]:
        """Publish these in order; one receipt each. `delay` and `mandatory` hold for each, `timeout` for all together.

        One invalid payload fails the call before anything is sent. Raises PublishManyError with a result for each
        when some were not published.
        """
        options = Options(delay=delay, mandatory=mandatory)
        results = await self._publish(topic, payloads, options, timeout)
        receipts = [result for result in results if not isinstance(result, PublishError)]
        if len(receipts) < len(results):
            raise PublishManyError(results)
        return receipts

    def _publish(
        self, topic: Topic[Any] | str, payloads: Iterable[Any], options: Options, within: Duration | None
    ) -> Awaitable[Sequence[Receipt | PublishError]]:
        # What `check_open` asks, for every message: without a call.
        if self._state != "open" or self._loop is not asyncio.get_running_loop():
            self.check_open()
        if not isinstance(topic, Topic):
            topic = self._known(topic)
        return self._sender.send(topic, payloads, options, within)

    # --- request -----------------------------------------------------------------------------------------------

    async def request(
        self,
        endpoint: Endpoint[Q, R],
        payload: Q,
        *,
        timeout: Duration | None = None,
        key: Key | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> R:
        """Ask, and return the first reply (semantics 22).

        Raises RequestTimeout after `timeout` seconds, NoGroup at once where nobody can answer, RemoteError with the
        responder's exception, ConnectionFailed when the connection that would bring the reply is lost, and what
        `publish` raises where the request was not sent, or may not have been. A cancelled one leaves nothing behind.
        """
        self.check_open()
        if not isinstance(endpoint, Endpoint):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
            raise ConfigurationError(
                f"request() takes an Endpoint, whose replies have a type, not {endpoint!r}"
            )
        within = self.settings.request_timeout if timeout is None else checked_timeout(timeout)
        asked = self.clock.monotonic()

        async def send(reply_to: str, correlation_id: str) -> None:
            options = Options(
                key=key,
                headers=headers,
                expires=max(0.0, within - (self.clock.monotonic() - asked)),  # the inbox may open slowly
                mandatory=True,
                reply_to=reply_to,
                correlation_id=correlation_id,
            )
            (result,) = await self._publish(endpoint.topic, (payload,), options, within)
            if isinstance(result, PublishError):
                raise result

        reply = await self._routing.of(endpoint.name).requester.request(endpoint.name, send, within)
        return read_reply(endpoint.reply_codec, reply)  # type: ignore[no-any-return]  # the codec is the endpoint's

    # --- consume by hand -----------------------------------------------------------------------------------------

    def consume(
        self,
        topic: Topic[T],
        *,
        group: str,
        prefetch: int = 32,
        ordered: bool | None = None,
        start: Start = "latest",
    ) -> Pull[T]:
        """A member of the group whose deliveries are settled by hand; opened by `async with`.

        The next delivery of a key is given after the former is settled (12). At most `prefetch` are unsettled; what
        is not settled when the block ends goes back uncounted. `start` is where a new group begins.
        Raises ConfigurationError for what the topic cannot do; opening it also UnsupportedCapability.
        """
        self.check_open()
        from messaging.pull import Pull

        return Pull(self, topic, group=group, prefetch=prefetch, ordered=ordered, start=start)

    # --- groups and topology -------------------------------------------------------------------------------------

    @overload
    async def declare(self, what: App, /) -> None: ...
    @overload
    async def declare(self, what: Topic[Any] | Endpoint[Any, Any], /, groups: Sequence[str] = ()) -> None: ...
    async def declare(
        self, what: App | Topic[Any] | Endpoint[Any, Any], /, groups: Sequence[str] = ()
    ) -> None:
        """Create, or verify, an app's topics and groups, or a topic and groups of it: from now on they get messages.

        Raises ConfigurationError naming both sides where the broker's record differs (16), TopicNotFound where
        something is missing that is only to be verified, ConnectionFailed.
        """
        self.check_open()
        await declare(self, what, groups)

    def dead_letters(
        self, topic: Topic[Any] | str, *, group: str, ordered: bool | None = None
    ) -> DeadLetters:
        """The dead letters of one group; no I/O yet. `ordered=False` is for a group that gives up its topic's order."""
        from messaging.dead_letters import letters_of

        self.check_open()
        return letters_of(self, self._catalogue.known_group(self._known(topic), group, ordered))

    async def groups(self) -> Sequence[GroupInfo]:
        """The groups of the topics that this bus has declared, as their brokers know them. Raises ConnectionFailed."""
        self.check_open()
        return [info for broker in self._routing.brokers for info in merged(await broker.adapter.groups())]

    async def delete_group(self, topic: Topic[Any] | str, group: str) -> None:
        """Delete a group with all that is kept for it; its members end with an error (25). Absent is no error."""
        self.check_open()
        await delete(self, self._known(topic), group)

    async def begin_generation(
        self,
        topic: Topic[Any] | str,
        *,
        partitions: int | None = None,
        ordered: bool | None = None,
        grace: Duration | None = None,
    ) -> TopicSpec:
        """Change a topic's partitions or order while its programs run (16); what is not given stays.

        Returns when the new generation is written to and, where both keep order, `grace` is over and the former one
        has its end marks: groups go on to the new one when they have handled all before these. `grace` is longer
        than any program takes to notice and to have its publishes confirmed: `publish_timeout` and twice
        `generation_interval`, unless given. Called again with the same, it goes on where it was interrupted.

        Raises UnsupportedCapability where the broker cannot, TopicNotFound where there is no such topic, PublishError
        where an end mark was not confirmed, ConfigurationError for numbers that mean nothing, ConnectionFailed.
        """
        from messaging.generations import begin

        self.check_open()
        name = topic if isinstance(topic, str) else topic.name
        return await begin(
            self._routing.of(name).adapter,
            TopicSpec(name),
            partitions=partitions,
            ordered=ordered,
            grace=self.settings.generation_grace if grace is None else checked_seconds(grace, "The grace"),
            clock=self.clock,
        )

    # --- looking in ------------------------------------------------------------------------------------------------

    def broker(self, topic: Topic[Any] | Endpoint[Any, Any] | str) -> Broker:
        """The broker that this topic, or this endpoint's, lives on, with its capabilities and its raw client."""
        return self._routing.of(topic if isinstance(topic, str) else topic.name)

    @property
    def routing(self) -> Routing:
        return self._routing

    @property
    def adapter(self) -> Adapter:
        return self._routing.default.adapter

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    @property
    def store(self) -> IdempotencyStore | None:
        return self._store

    @property
    def capabilities(self) -> Capabilities:
        """What the broker of the URL promises, with its bounds; complete once the bus is open. See `broker`."""
        return self._routing.default.capabilities

    @property
    def native(self) -> Any:
        """The raw client of the library of the URL's broker. See `broker`."""
        return self._routing.default.native

    async def health(self) -> Health:
        """Raises nothing but Closed, on another event loop; never waits for longer than about a second."""
        from messaging.health import assess

        self.check_loop()
        brokers = self._routing.brokers
        found = await asyncio.gather(*(broker.adapter.health() for broker in brokers))
        return assess(
            dict(zip(brokers, found, strict=True)),
            [(self.broker(dispatcher.topic), dispatcher) for dispatcher in self.dispatchers],
            late_replies=sum(broker.requester.late for broker in brokers),
            fatal=next(iter(self.ended.values()), None),
        )

    def _known(self, topic: Topic[Any] | str) -> Topic[Any]:
        if isinstance(topic, str):
            return self._catalogue.untyped(plain(topic))
        if not isinstance(topic, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
            raise InvalidMessage(f"{topic!r} is no topic to publish to: it takes a Topic or a topic's name")
        return topic
