"""What a probe is told (semantics 26)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from messaging.catalogue import merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from messaging.adapter import BrokerHealth, GroupInfo
    from messaging.dispatch import Dispatcher
    from messaging.generations import Subscriber
    from messaging.routing import Broker


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionHealth:
    """One running subscription of this process. Counts are since it started."""

    topic: str
    group: str
    broker: str
    receiving: bool
    running: int
    held: int
    parked: int
    parked_full: bool
    """The parked deliveries of some partition fill its window, or the broker's room for them: it waits (8)."""
    lag: int | None = None
    oldest: float | None = None
    """Age of the oldest unhandled message, seconds, where the broker can tell."""
    dead_letters: int | None = None
    received: int
    acked: int
    retried: int
    rejected: int
    released: int
    lost: int
    expired: int
    reconnects: int
    last_error: str | None
    gone: bool = False
    """Somebody deleted what it reads on the broker, and it is not made anew yet."""
    unsettled: bool = False
    """The broker does not take what became of its messages, such as a dead letter, or does not extend their leases:
    it is tried again.
    """
    store: str | None = None
    """Why its idempotency store does not answer: nothing is handled meanwhile."""
    stuck: str | None = None
    """Why messages wait that no member of the group gets, where that can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """One broker of the bus; `name` is what the settings call it, else its URL without user and password."""

    name: str
    connected: bool
    error: str | None = None
    publishing: str | None = None
    """Why it does not take what is published to it; None where it does, as far as this process has tried."""
    requests: str | None = None
    """Why the replies to this process do not arrive; None where they do, or where it has sent no request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`red`: a broker or an idempotency store is not reached, a subscription ended, somebody deleted what it reads, or
    the replies to this process do not arrive. `yellow`: something waits that should not, a broker does not take what
    is published or may lose it, or does not answer a probe in time on a connection that it has not lost.
    """

    status: Literal["green", "yellow", "red"]
    connected: bool
    """All brokers are reached."""
    brokers: Sequence[BrokerState] = ()
    subscriptions: Sequence[SubscriptionHealth] = ()
    groups_without_members: Sequence[str] = ()
    """As `topic/group`: messages are kept for them, and nobody handles any."""
    late_replies: int = 0
    """Replies that came when their request was over; counted since the bus was opened, and dropped."""
    last_error: str | None = None


def assess(
    brokers: Mapping[Broker, BrokerHealth],
    dispatchers: Sequence[tuple[Broker, Dispatcher | Subscriber]],
    *,
    late_replies: int,
    fatal: BaseException | None,
) -> Health:
    """Put together what the brokers answer and what this process knows; each dispatcher with its broker."""
    groups = [(broker, group) for broker, found in brokers.items() for group in merged(found.groups)]
    known = {(broker, group.topic, group.group): group for broker, group in groups}
    subscriptions = [
        _subscription(dispatcher.health(broker.name), known.get((broker, dispatcher.topic, dispatcher.group)))
        for broker, dispatcher in dispatchers
    ]
    states = [
        BrokerState(
            name=broker.name,
            connected=found.connected,
            error=found.error,
            publishing=found.refusing or broker.refusals.last(),
            requests=broker.requester.failing,
        )
        for broker, found in brokers.items()
    ]
    errors = _errors(states, subscriptions, fatal)
    return Health(
        status=_status(states, subscriptions, brokers.values(), fatal),
        connected=all(state.connected for state in states),
        brokers=tuple(states),
        subscriptions=tuple(subscriptions),
        groups_without_members=tuple(
            f"{group.topic}/{group.group}" for _, group in groups if group.members == 0
        ),
        late_replies=late_replies,
        last_error=errors[-1] if errors else None,
    )


def _subscription(here: SubscriptionHealth, group: GroupInfo | None) -> SubscriptionHealth:
    """What this process knows of it, with what its broker knows of the group."""
    if group is None:
        return here
    return replace(
        here,
        lag=group.lag,
        oldest=group.oldest,
        dead_letters=group.dead_letters,
        stuck=here.stuck or group.stuck,
    )


def _status(
    states: Sequence[BrokerState],
    subscriptions: Sequence[SubscriptionHealth],
    found: Iterable[BrokerHealth],
    fatal: BaseException | None,
) -> Literal["green", "yellow", "red"]:
    if (
        fatal
        or any(not state.connected or state.requests for state in states)
        or any(one.gone or one.store for one in subscriptions)
    ):
        return "red"
    if (
        any(one.parked_full or one.unsettled or one.stuck or not one.receiving for one in subscriptions)
        or any(state.publishing for state in states)
        or any(one.silent or one.unsafe for one in found)
    ):
        return "yellow"
    return "green"


def _errors(
    states: Sequence[BrokerState], subscriptions: Sequence[SubscriptionHealth], fatal: BaseException | None
) -> list[str]:
    """What is wrong; the last of them is what `Health.last_error` tells."""
    errors = [f"{state.name}: {state.error}" for state in states if state.error]
    errors += [one.last_error for one in subscriptions if one.last_error]
    errors += [one.stuck for one in subscriptions if one.stuck]
    errors += [f"{state.name}: {state.publishing}" for state in states if state.publishing]
    errors += [f"{state.name}: {state.requests}" for state in states if state.requests]
    return [*errors, str(fatal)] if fatal else errors
