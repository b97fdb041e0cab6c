"""Which broker a topic lives on: the one of the URL, unless a route in the settings names another.

A bus has one `Broker` for each broker that its settings name, with a publisher and an inbox for replies of its own.
Whoever needs an adapter asks for the one of its topic: nothing above the SPI knows that there are several.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

from messaging.adapter import AdapterContext
from messaging.clock import timeout
from messaging.errors import ConfigurationError, ConnectionFailed
from messaging.names import check_namespace
from messaging.publish import Publisher
from messaging.refusals import Refusals
from messaging.registry import adapter_class, adapter_for, known_adapters, redact, split_namespace
from messaging.requests import Requester

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from messaging.adapter import Adapter, Capabilities
    from messaging.clock import Clock
    from messaging.settings import Settings


class Broker:
    """One broker that a bus is connected to.

    `name` is how errors and health call it: what the settings call it, else its URL without user and password.
    """

    def __init__(self, name: str, url: str, namespace: str | None, adapter: Adapter, clock: Clock) -> None:
        self.name = name
        self.url = url
        self.namespace = namespace
        self.adapter = adapter
        self.refusals = Refusals(name, clock)
        self.publisher = Publisher(adapter, clock, self.refusals)
        self.requester = Requester(adapter, clock)
        self._clock = clock

    def __repr__(self) -> str:
        return f"Broker({self.name!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What this broker promises, with its bounds; complete once the bus is open."""
        return self.adapter.capabilities

    @cached_property
    def bounds(self) -> Capabilities:
        """The capabilities as they were at the first publish, for each message: no bound changes while it is open."""
        return self.adapter.capabilities

    @property
    def native(self) -> Any:
        """The raw client of the broker's library."""
        return self.adapter.native

    async def open(self, within: float) -> None:
        """Connect. Raises ConnectionFailed, also after `within` seconds, or AuthenticationFailed."""
        await open_within(self.adapter.open, redact(self.url), self._clock, within)

    async def close(self, within: float) -> None:
        """Send what waits, for `within` seconds at most; then close everything, whatever becomes of each part."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.adapter.close)
            stack.push_async_callback(self.requester.close)
            stack.push_async_callback(self.publisher.close, within)


class Routing:
    """The brokers of one bus, and which of them a topic lives on. Makes the adapters; no I/O before `open`."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        clock: Clock,
        source: str,
        member: str,
        wrap: Callable[[Adapter], Adapter] | None = None,
    ) -> None:
        self._settings = settings
        self._wrap = wrap
        self._clock = clock
        self._source = source
        self._member = member
        self._options: dict[Broker, Mapping[str, Any]] = {}
        base, named = split_namespace(url)
        self.default = self._made(_named(base), base, named, settings.namespace, {})
        """The broker of every topic that no route names."""
        self._check_sections()
        routes = {pattern: self._routed(pattern, target) for pattern, target in settings.routes.items()}
        self._exact = {pattern: broker for pattern, broker in routes.items() if not pattern.endswith("*")}
        prefixes = [pattern for pattern in routes if pattern.endswith("*")]
        self._prefixes = [
            (pattern[:-1], routes[pattern]) for pattern in sorted(prefixes, key=len, reverse=True)
        ]

    @property
    def brokers(self) -> Sequence[Broker]:
        """Each once, the one of the URL first."""
        return tuple(self._options)

    def of(self, topic: str) -> Broker:
        """The broker of a topic: of the route that is its name, else of the longest prefix, else of the URL."""
        if topic in self._exact:
            return self._exact[topic]
        for prefix, broker in self._prefixes:
            if topic.startswith(prefix):
                return broker
        return self.default

    def pattern(self, topic: str) -> str | None:
        """The route by which `of` chooses; None without one."""
        if topic in self._exact:
            return topic
        return next((f"{prefix}*" for prefix, _ in self._prefixes if topic.startswith(prefix)), None)

    async def open(self, within: float) -> None:
        """Connect to each, `within` seconds each. Raises as `Broker.open`; what is open then, `close` closes."""
        for broker in self.brokers:
            await broker.open(within)

    async def close(self, within: float) -> None:
        """Close all, each within `within` seconds and some more, all at once."""
        closing = asyncio.gather(*(broker.close(within) for broker in self.brokers), return_exceptions=True)
        try:
            await asyncio.sleep(0)  # cancelled before they begin, they would close nothing
        except asyncio.CancelledError:
            closing.cancel()
            await closing
            raise
        for result in await closing:
            if isinstance(result, BaseException):
                raise result

    def _check_sections(self) -> None:
        """Refuse options for a broker that there is not: they would be lost in silence."""
        from messaging.sources import CODE, dotted, nearest  # slow to import; loaded with the settings by now

        known = known_adapters() | {self.default.adapter.name} | set(self._settings.named_brokers())
        for name, options in self._settings.broker.items():
            if name not in known:
                origins = self._settings.origins()
                origin = next(
                    (
                        origins[key]
                        for key in (dotted(("broker", name, o)) for o in options)
                        if key in origins
                    ),
                    CODE,
                )
                raise ConfigurationError(
                    f"{origin}: {dotted(('broker', name))} is neither an adapter nor a broker with a url"
                    f"{nearest(name, sorted(known))}"
                )

    def _routed(self, pattern: str, target: str) -> Broker:
        """The broker that a route names: by URL, or by the name of a `[broker.<name>]` that has a URL."""
        from messaging.sources import CODE, dotted, nearest  # slow to import; loaded with the settings by now

        if "://" in target:
            return self._at(None, target, {})
        url = self._settings.broker_url(target)
        if url is None:
            key = dotted(("routes", pattern))
            origin = self._settings.origins().get(key, CODE)
            known = self._settings.named_brokers()
            hint = nearest(target, known) if known else ""
            # It may be a URL with its password, and a slip in its scheme.
            if not re.fullmatch(r"[\w.-]+", target):
                raise ConfigurationError(
                    f"{origin}: {key} is neither a URL nor the name of a broker: a URL has ://"
                )
            raise ConfigurationError(
                f"{origin}: {key} is {target!r}, which is neither a URL nor the name of a broker: "
                f"set {dotted(('broker', target, 'url'))}{hint}"
            )
        return self._at(target, url, self._settings.adapter_options(target))

    def _at(self, name: str | None, url: str, options: Mapping[str, Any]) -> Broker:
        base, named = split_namespace(url)
        return self._made(name or _named(base), base, named, self.default.namespace, options)

    def _made(
        self, name: str, url: str, named: str | None, common: str | None, options: Mapping[str, Any]
    ) -> Broker:
        """A broker with these options over those of its adapter; the one that is there already, if it is the same.

        Its namespace is `named`, by its URL, else that of its options, else the `common` one.
        """
        options = {**self._settings.adapter_options(adapter_class(url).name), **options}
        its_own = _checked_namespace(options.pop("namespace", None))
        namespace = named or its_own or common
        for known, its_options in self._options.items():
            if (known.url, known.namespace, its_options) == (url, namespace, options):
                return known
        adapter = adapter_for(
            url,
            AdapterContext(
                clock=self._clock,
                namespace=namespace,
                source=self._source,
                member=self._member,
                options=options,
            ),
        )
        if self._wrap is not None:
            adapter = self._wrap(adapter)
        broker = Broker(name, url, namespace, adapter, self._clock)
        self._options[broker] = options
        return broker


async def open_within(opening: Callable[[], Awaitable[None]], name: str, clock: Clock, within: float) -> None:
    """Open it, called `name` in errors. Raises what `opening` does, and ConnectionFailed after `within` seconds."""
    try:
        async with timeout(clock, within):
            await opening()
    except TimeoutError:
        raise ConnectionFailed(f"{name} did not answer within {within:g} s") from None


def _checked_namespace(given: object) -> str | None:
    if given is not None and not isinstance(given, str):
        raise ConfigurationError(f"the option namespace of a broker is {given!r}; it takes a name")
    return None if given is None else check_namespace(given)


def _named(url: str) -> str:
    """What a broker without a name is called: its URL without user and password."""
    return re.sub(r"://[^/@]*@", "://", redact(url))
