"""One subscription of an app as it runs: what the settings make of its definition, and the chain of its handler.

The chain, outermost first: retrying, expiring, idempotent, within_ack_timeout, timing_out, the app's and the
subscription's own middleware, the handler.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

from messaging.adapter import Subscription
from messaging.binding import Binding, Counters, StoreState
from messaging.errors import ConfigurationError, UnsupportedCapability
from messaging.message import OUTCOMES, Ack, checked_seconds, seconds
from messaging.middleware.expiry import expiring
from messaging.middleware.idempotency import idempotent
from messaging.middleware.retry import Delay, RetryPolicy, is_count, retrying
from messaging.middleware.timeout import AckTimeout, timing_out, within_ack_timeout
from messaging.parameters import bind, concluded, name_of
from messaging.requests import Answer, answering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from messaging.adapter import GroupSpec, TopologyMode
    from messaging.bus import Bus
    from messaging.definition import Defaults, Definition
    from messaging.message import Delivery, Endpoint, Handler, Message, Middleware, Outcome
    from messaging.middleware.expiry import OnExpired
    from messaging.middleware.retry import OnExhausted
    from messaging.settings import AppSettings, SubscriptionSettings

logger = logging.getLogger("messaging")

CONCURRENCY = 16
DONE_FOR = 24 * 3600.0
"""Seconds for which an idempotency key stays done."""
PROGRESS_LEASE = 30.0
"""Seconds after which an idempotency key in progress may be taken over, unless its owner extends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A subscription with its settings applied: every choice is made."""

    definition: Definition
    group: GroupSpec
    concurrency: int
    prefetch: int
    retry: RetryPolicy
    timeout: float | None
    idempotent: bool | Callable[[Message], str]
    on_expired: OnExpired
    on_exhausted: OnExhausted
    middleware: Sequence[Middleware]
    topology: TopologyMode | None

    @property
    def longest_delay(self) -> float:
        """The longest delay that the policy asks for, in seconds."""
        return self.retry.delay.longest if self.on_exhausted == "hold_key" else self.retry.longest

    def missing(self, bus: Bus) -> list[str]:
        """What is asked for and cannot be had of the topic's broker, with the way out."""
        broker = bus.broker(self.group.topic.name)
        capabilities = broker.capabilities
        wanted = {"groups": True, "order": self.group.ordered, "history": self.group.start != "latest"}
        wanted["requests"] = self.definition.endpoint is not None
        wanted["delayed_retry"] = not self.group.ordered and self.retry.attempts > 1
        reasons = [
            f"{self.definition.name} asks {broker.name} for {name.replace('_', ' ')}: {capability.reason}"
            for name, needed in wanted.items()
            if needed and (capability := getattr(capabilities, name)).level == "unsupported"
        ]
        longest = self.longest_delay
        bound = capabilities.longest_wait(ordered=self.group.ordered)
        if longest > bound:
            reasons.append(
                f"{self.definition.name} may retry after {longest:g} s; {capabilities.broker} at {broker.name} "
                f"can wait {bound:g} s there: lower the policy's maximum"
            )
        elif self.group.ordered and self.on_exhausted != "hold_key" and self.retry.total > bound:
            reasons.append(
                f"{self.definition.name} may retry for {self.retry.total:g} s in all; {capabilities.broker} at "
                f"{broker.name} can hold a message of an ordered group for {bound:g} s: lower the policy's delays or "
                "attempts"
            )
        if self.on_exhausted == "hold_key" and not self.group.ordered:
            reasons.append(f"{self.definition.name} holds keys, which only an ordered group has")
        if self.idempotent and bus.store is None:
            reasons.append(
                f"{self.definition.name} is idempotent, which needs a store that all members share: "
                'connect(store="redis://...") or MESSAGING_STORE'
            )
        return reasons

    def within(self, middleware: Sequence[Middleware]) -> Plan:
        """The plan with more middleware, innermost."""
        return replace(self, middleware=(*self.middleware, *middleware))

    def bind(self, bus: Bus, provided: Sequence[object], executor: Executor) -> Binding:
        """Make the chain. Raises ConfigurationError for a parameter that nothing can fill."""
        definition = self.definition
        capabilities = bus.broker(self.group.topic.name).capabilities
        counters, store, ack_timeout = Counters(), StoreState(), AckTimeout()
        ordered = self.group.ordered
        handler = bind(
            definition.function,
            provided,
            executor,
            bus.clock,
            concluded if definition.endpoint is None else _replied,
        )
        return Binding(
            subscription=Subscription(
                group=self.group,
                prefetch=self.prefetch,
                concurrency=self.concurrency,
                max_hold=self.longest_delay,
            ),
            codec=definition.topic.codec,
            handler=self._chain(handler, bus, counters, store, ack_timeout),
            handler_name=name_of(definition.function),
            service=definition.app,
            grace=bus.settings.drain_timeout,
            max_delay=capabilities.longest_wait(ordered=ordered),
            # A key that is held for ever comes again where the broker takes it back.
            max_hold=capabilities.max_hold if ordered and self.on_exhausted == "dead_letter" else inf,
            answer=None
            if definition.endpoint is None
            else answering(definition.endpoint.reply_codec, source=bus.source, clock=bus.clock),
            counters=counters,
            store=store,
            ack_timeout=ack_timeout,
            isolation=bus.isolation,
        )

    def _chain(
        self, handler: Handler, bus: Bus, counters: Counters, store: StoreState, ack_timeout: AckTimeout
    ) -> Handler:
        def count_expired(_: object) -> None:
            counters.expired += 1

        chain: list[Middleware] = [
            retrying(self.retry, on_exhausted=self.on_exhausted),
            expiring(self.on_expired, clock=bus.clock, expired=count_expired),
        ]
        if self.idempotent and bus.store is not None:
            namespace = bus.broker(self.group.topic.name).namespace or ""
            encode, decode = _reply_storage(self.definition.endpoint)
            chain.append(
                idempotent(
                    bus.store,
                    scope=f"{namespace}:{self.group.topic.name}:{self.group.name}",
                    key=self.idempotent if callable(self.idempotent) else None,
                    lease=PROGRESS_LEASE,
                    ttl=DONE_FOR,
                    clock=bus.clock,
                    owner=bus.member,
                    state=store,
                    encode_reply=encode,
                    decode_reply=decode,
                )
            )
        if bus.broker(self.group.topic.name).capabilities.max_hold < inf:
            chain.append(within_ack_timeout(ack_timeout, clock=bus.clock))
        if self.timeout is not None:
            chain.append(timing_out(self.timeout, clock=bus.clock))
        if self.definition.endpoint is not None:
            chain.append(_answered)
        for middleware in reversed([*chain, *self.middleware]):
            handler = middleware(handler)
            if not callable(handler):  # pyright: ignore[reportUnnecessaryComparison]  a forgotten return
                raise ConfigurationError(
                    f"Middleware {name_of(middleware)} of {self.definition.name} returned a "
                    f"{type(handler).__name__}: it must return a handler"
                )
        return handler


def plan(definition: Definition, defaults: Defaults, bus: Bus) -> Plan:
    """Apply the settings: code < TOML < environment, the subscription's over the app's.

    Settings for all (`[app]`) override what the app says, not what a subscription says itself.
    Raises ConfigurationError naming the subscription for a choice that means nothing.
    """
    settings = bus.settings.subscription(definition.topic.name, definition.group)
    for_all = bus.settings.app
    defaults = replace(
        defaults,
        retry=_retry(for_all, defaults.retry),
        concurrency=_first(for_all.concurrency, defaults.concurrency),
        prefetch=_first(for_all.prefetch, defaults.prefetch),
        timeout=_first(for_all.timeout, defaults.timeout),
    )
    topic = bus.catalogue.spec(definition.topic)
    concurrency = _first(settings.concurrency, definition.concurrency, defaults.concurrency, CONCURRENCY)
    timeout = _first(settings.timeout, definition.timeout, defaults.timeout)
    made = Plan(
        definition=definition,
        group=bus.catalogue.group(
            topic,
            definition.group,
            ordered=definition.ordered,
            start=_first(settings.start, definition.start, "latest"),
            native=_first(settings.native, definition.native),
        ),
        concurrency=concurrency,
        prefetch=_first(settings.prefetch, definition.prefetch, defaults.prefetch, 2 * concurrency),
        # A responder runs once (22).
        retry=RetryPolicy(1)
        if definition.endpoint is not None
        else _retry(settings, definition.retry or defaults.retry),
        timeout=None if timeout is None else checked_seconds(timeout, f"The timeout of {definition.name}"),
        idempotent=_idempotent(settings, definition, defaults),
        on_expired=_first(settings.on_expired, definition.on_expired, "drop"),
        on_exhausted=_first(settings.on_exhausted, definition.on_exhausted, "dead_letter"),
        middleware=(*defaults.middleware, *definition.middleware),
        topology=definition.topology,
    )
    _check_bounds(made)
    return made


def _check_bounds(made: Plan) -> None:
    name = made.definition.name
    for bound, value in (("concurrency", made.concurrency), ("prefetch", made.prefetch)):
        if not (is_count(value) and value >= 1):
            raise ConfigurationError(f"The {bound} of {name} is {value!r}; it must be 1 or more")
    if made.timeout is not None and not 0 < made.timeout < inf:
        raise ConfigurationError(
            f"The timeout of {name} is {made.timeout:g} s; it must be more than 0, or None for no bound"
        )


def check(plans: Sequence[Plan], bus: Bus) -> None:
    """Raise UnsupportedCapability with everything that the brokers cannot do for these, together."""
    reasons = [reason for made in plans for reason in made.missing(bus)]
    if reasons:
        raise UnsupportedCapability("; ".join(reasons))
    if any(made.idempotent for made in plans) and bus.store is not None and not bus.store.shared:
        logger.warning(
            "The idempotency store is memory: it protects this process only. Name one that all members share."
        )


def _first(*choices: Any) -> Any:
    """The first that says something; None where none does."""
    return next((choice for choice in choices if choice is not None), None)


def _idempotent(
    settings: SubscriptionSettings, definition: Definition, defaults: Defaults
) -> bool | Callable[[Message], str]:
    said = definition.idempotent if definition.idempotent is not None else defaults.idempotent
    if settings.idempotent is None:
        return said
    return said if settings.idempotent and callable(said) else settings.idempotent


def _retry(settings: AppSettings, policy: RetryPolicy) -> RetryPolicy:
    change = settings.retry
    delay = policy.delay
    initial = delay.initial if change.delay is None else seconds(change.delay)
    maximum = max(delay.maximum, initial) if change.maximum is None else seconds(change.maximum)
    return replace(
        policy,
        attempts=policy.attempts if change.attempts is None else change.attempts,
        delay=Delay(
            initial,
            delay.multiplier if change.multiplier is None else change.multiplier,
            maximum,
            delay.jitter if change.jitter is None else change.jitter,
        ),
    )


def _replied(result: Any) -> Outcome:
    """The outcome of a responder: what it returns is the reply, None too."""
    return result if isinstance(result, OUTCOMES) else Ack(result)


def _answered(next: Handler) -> Handler:
    """The middleware that marks the reply of a responder, or of the user's middleware around it, as one to send."""

    async def handle(delivery: Delivery[Any]) -> Outcome:
        outcome = await next(delivery)
        return Ack(Answer(outcome.reply)) if isinstance(outcome, Ack) else outcome

    return handle


def _reply_storage(
    endpoint: Endpoint[Any, Any] | None,
) -> tuple[Callable[[Answer], bytes] | None, Callable[[bytes], Answer] | None]:
    """How a responder's reply is kept with its idempotency key."""
    if endpoint is None:
        return None, None
    codec = endpoint.reply_codec

    def encode(reply: Answer) -> bytes:
        body, content_type = codec.encode(reply.value)
        return json.dumps(content_type).encode() + b"\n" + body

    def decode(stored: bytes) -> Answer:
        content_type, _, body = stored.partition(b"\n")
        return Answer(codec.decode(body, json.loads(content_type)))

    return encode, decode
