"""From a call of `publish` to its results: prepare, declare at first use, through the middleware, hand over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from messaging.clock import timeout
from messaging.errors import (
    ConnectionFailed,
    MessagingError,
    PublishError,
    UnsupportedCapability,
    is_fatal,
)
from messaging.middleware.publishing import PublishMiddleware, publish_through
from messaging.prepare import checked_timeout, passed_on
from messaging.refusals import SILENT
from messaging.waiting import Waiter, Waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from messaging.adapter import Capability, TopicSpec
    from messaging.calls import Failed
    from messaging.catalogue import Catalogue
    from messaging.clock import Clock
    from messaging.message import Duration, Key, Message, Receipt, Topic
    from messaging.prepare import Options, Preparation
    from messaging.routing import Broker, Routing
    from messaging.turns import Turns


@dataclass(slots=True, eq=False, kw_only=True)
class Sender:
    """Publishes for one bus."""

    preparation: Preparation
    catalogue: Catalogue
    routing: Routing
    middleware: Sequence[PublishMiddleware]
    clock: Clock
    within: float
    """Seconds for a call that does not say it."""
    turns: Turns
    """Calls that go through middleware."""
    waiting: Waiting = field(init=False)
    """Calls that wait for their topic."""

    def __post_init__(self) -> None:
        """What fails further on takes with it what waits for its topic."""
        self.waiting = Waiting(self._failed_before)
        self.turns.fail_behind = self.waiting.fail_behind
        for broker in self.routing.brokers:
            broker.publisher.fail_behind = self.waiting.fail_behind

    def _failed_before(self, topic: str, key: Key | None) -> Failed | None:
        for failed in self.turns.failed.get((topic, key), {}).values():
            return failed
        return self.routing.of(topic).publisher.failed_before(topic, key)

    def send(
        self, topic: Topic[Any], payloads: Iterable[Any], options: Options, within: Duration | None
    ) -> Awaitable[Sequence[Receipt | PublishError]]:
        """One result each, in order. Raises InvalidMessage and MessageTooLarge before anything is sent."""
        messages = self.preparation.messages(topic, payloads, options)
        remaining = self.within if within is None else checked_timeout(within)
        spec = self.catalogue.declared(topic)
        if spec is None:
            return self._declare_and_deliver(topic, messages, options, remaining)
        deliver = self._deliver_through if self.middleware else self._deliver
        return deliver(spec, messages, options, remaining)

    async def _declare_and_deliver(
        self, topic: Topic[Any], messages: Sequence[Message], options: Options, within: float
    ) -> Sequence[Receipt | PublishError]:
        start = self.clock.monotonic()
        known = self.catalogue.kept(self.catalogue.spec(topic))[-1]
        with self.waiting.call(topic.name, messages, ordered=known.ordered) as waiter:
            spec = known if waiter.over else await self._declare_within(topic, known, waiter, within)
            remaining = max(0.0, within - (self.clock.monotonic() - start))
            deliver = self._deliver_through if self.middleware else self._deliver
            failed = waiter.failed
            if not failed:
                return await deliver(spec, messages, options, remaining)
            messages = [message for at, message in enumerate(messages) if at not in failed]
            with self.catalogue.using(topic.name):  # who comes meanwhile has to see what failed
                others = iter(await deliver(spec, messages, options, remaining))
            return [failed.get(at) or next(others) for at in range(len(failed) + len(messages))]

    async def _declare_within(
        self, topic: Topic[Any], spec: TopicSpec, waiter: Waiter, within: float
    ) -> TopicSpec:
        """The first use of a topic, as a part of the call's time; `spec` where others have done it meanwhile."""
        broker = self.routing.of(topic.name)
        try:
            async with waiter, timeout(self.clock, within):
                spec = await self.catalogue.declare_topic(topic)
        except TimeoutError:
            error = PublishError(
                f"Nothing was sent to {topic.name}: {broker.name} did not declare it within {within:g} s"
            )
            waiter.fail_behind(error)
            if within >= SILENT:
                broker.refusals.note(topic.name, error)
            raise error from None
        except MessagingError as error:
            # What the program did wrong is fatal, and so are refused credentials, which the broker is to tell of.
            if isinstance(error, ConnectionFailed) or not is_fatal(error):
                broker.refusals.note(topic.name, error)
            raise
        return spec

    async def _deliver_through(
        self, spec: TopicSpec, messages: Sequence[Message], options: Options, within: float
    ) -> Sequence[Receipt | PublishError]:
        # With headers of their own: what middleware changes in place is seen.
        given = {message.id: replace(message, headers=dict(message.headers)) for message in messages}
        most = self.routing.of(spec.name).bounds.max_message_bytes
        with self.turns.enter(spec.name, messages if spec.ordered else (), within) as turn:

            async def send(message: Message) -> Receipt:
                message = passed_on(given, spec.name, message, most)
                (result,) = await self._deliver(spec, (message,), options, turn.hand_over(message))
                if isinstance(result, PublishError):
                    raise result
                return result

            return await publish_through(self.middleware, send, messages, turn, ordered=spec.ordered)

    def _deliver(
        self, spec: TopicSpec, messages: Sequence[Message], options: Options, within: float
    ) -> Awaitable[Sequence[Receipt | PublishError]]:
        broker = self.routing.of(spec.name)
        if self.preparation.once and options.reply_to is None:
            check_once(broker, broker.adapter.publishes_once(spec), f"topic {spec.name}")
        outgoing = self.preparation.outgoing(spec, messages, options, broker.bounds)
        return broker.publisher.publish(outgoing, within)


def check_once(broker: Broker, capability: Capability, what: str) -> None:
    """Raises UnsupportedCapability where the setting `idempotent_publish` cannot be kept."""
    if capability.level == "unsupported":
        raise UnsupportedCapability(
            f"idempotent_publish asks {broker.name} to store each message of {what} once: {capability.reason}"
        )
