"""What a probe is told (semantics 26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import BrokerHealth
    from messaging.dispatch import Dispatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionHealth:
    """One running subscription of this process. Counts are since it started."""

    topic: str
    group: str
    receiving: bool
    running: int
    held: int
    parked: int
    parked_full: bool
    """The parked deliveries of some partition fill its window: that partition waits (8)."""
    lag: int | None
    oldest: float | None
    """Age of the oldest unhandled message, seconds, where the broker can tell."""
    dead_letters: int | None
    received: int
    acked: int
    retried: int
    rejected: int
    released: int
    lost: int
    expired: int
    reconnects: int
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`red`: the broker is not reached or a subscription ended. `yellow`: something waits that should not."""

    status: Literal["green", "yellow", "red"]
    connected: bool
    subscriptions: Sequence[SubscriptionHealth] = ()
    groups_without_members: Sequence[str] = ()
    late_replies: int = 0
    last_error: str | None = None


def assess(
    broker: BrokerHealth, dispatchers: Sequence[Dispatcher], *, late_replies: int, fatal: BaseException | None
) -> Health:
    """Put together what the broker answers and what this process knows."""
    known = {(group.topic, group.group): group for group in broker.groups}
    subscriptions: list[SubscriptionHealth] = []
    for dispatcher in dispatchers:
        group = known.get((dispatcher.topic, dispatcher.group))
        subscriptions.append(
            dispatcher.health(
                lag=group.lag if group else None,
                oldest=group.oldest if group else None,
                dead_letters=group.dead_letters if group else None,
            )
        )
    errors = [broker.error, *(one.last_error for one in subscriptions), str(fatal) if fatal else None]
    waiting = any(one.parked_full or not one.receiving for one in subscriptions)
    return Health(
        status="red" if fatal or not broker.connected else "yellow" if waiting else "green",
        connected=broker.connected,
        subscriptions=tuple(subscriptions),
        groups_without_members=tuple(
            f"{group.topic}/{group.group}" for group in broker.groups if group.members == 0
        ),
        late_replies=late_replies,
        last_error=next((error for error in reversed(errors) if error), None),
    )
