"""Messages that are stored once (`Outgoing.once`) and whose fate is unknown: they may be sent again until it is known.

Once an attempt ended with an unknown fate, no later one can say that the broker does not have the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import Untraceable
from messaging.calls import UNDER_WAY, uncertain
from messaging.errors import PublishError, PublishUncertain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.calls import Lane, Place, Result
    from messaging.clock import Clock
    from messaging.message import Key

ONCE_FOR = 240.0
"""Seconds for which every broker that stores a message once knows it again (SQS: five minutes)."""


class Unconfirmed:
    """Of one exchange: those whose fate is unknown, and what was not sent because of one before it.

    All others are concluded: `conclude` is told their results, and whoever waits for them.
    """

    def __init__(self, clock: Clock, conclude: Callable[[Sequence[tuple[Place, Result]]], None]) -> None:
        self._clock = clock
        self._conclude = conclude
        self._errors: dict[Place, PublishError] = {}
        self._since: dict[Place, float] = {}
        """When the fate of a message was first unknown."""

    def __len__(self) -> int:
        return len(self._errors)

    @property
    def lanes(self) -> set[Lane]:
        """Where something is unknown."""
        sent = (call.messages[at] for call, at in self._errors)
        return {(outgoing.topic.name, outgoing.partition) for outgoing in sent}

    def take(self, places: Sequence[Place], results: Sequence[Result]) -> None:
        """The results of an attempt, the first or one with all that was still wanted."""
        self._errors = self._unknown(places, results)
        self._conclude([one for one in zip(places, results, strict=True) if one[0] not in self._errors])

    def _unknown(self, places: Sequence[Place], results: Sequence[Result]) -> dict[Place, PublishError]:
        unknown: dict[Place, PublishError] = {}
        broken: set[Lane] = set()
        for place, result in zip(places, results, strict=True):
            call, at = place
            outgoing = call.messages[at]
            if (
                outgoing.once is None
                or not isinstance(result, PublishError)
                or isinstance(result, Untraceable)
            ):
                continue
            if isinstance(result, PublishUncertain):
                self._since.setdefault(place, self._clock.monotonic())
            lane = outgoing.topic.name, outgoing.partition
            if place in self._since:
                broken.add(lane)
                unknown[place] = (
                    result if isinstance(result, PublishUncertain) else uncertain(outgoing, result)
                )
            elif outgoing.topic.ordered and lane in broken:
                unknown[place] = result
        return unknown

    def still_wanted(self) -> list[Place]:
        """What is sent again; concluded is what nobody waits for any more, and of its key what is behind it (7)."""
        wanted: list[Place] = []
        given_up: list[tuple[Place, Result]] = []
        broken: set[tuple[str, Key | None]] = set()
        known_until = self._clock.monotonic() - ONCE_FOR
        for place, error in self._errors.items():
            call, at = place
            topic, since = call.messages[at].topic, self._since.get(place)
            key = topic.name, call.messages[at].message.key
            is_open = call.results[at] is UNDER_WAY
            if is_open and key not in broken and (since is None or since > known_until):
                wanted.append(place)
            else:
                given_up.append((place, error))
                if topic.ordered:
                    broken.add(key)
        self._conclude(given_up)
        return wanted

    def give_up(self, places: Sequence[Place], error: BaseException) -> None:
        """Nothing is sent again; an attempt with these places was under way, and its fate is unknown."""
        for place in places:
            if not isinstance(self._errors[place], PublishUncertain):
                call, at = place
                self._errors[place] = uncertain(call.messages[at], error)
        self._conclude(list(self._errors.items()))
