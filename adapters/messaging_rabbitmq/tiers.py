"""The ladder of delay tiers of a group: queues whose messages go back to the group's queue after a fixed time (5).

Each tier is a quorum queue with one time to live for all its messages, so that none blocks another; it hands them
over at least once, because it dead-letters so and refuses what it cannot keep. No tier expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from messaging_rabbitmq.arguments import quorum

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec
    from messaging_rabbitmq.names import Names

UNIT = 0.125
"""The shortest tier, seconds: 2^-3."""
TIERS = 16
"""2^-3 ... 2^12 s; longer delays take several steps."""
LONGEST = UNIT * 2 ** (TIERS - 1)


SPARES = 2
"""Queues that take the place of one that does not answer. Of a tier, each is a millisecond longer than the last."""


def tier_for(remaining: float) -> int:
    """The tier, in milliseconds, of the next step: the largest that fits, the last part rounded up.

    0 where nothing remains.
    """
    if remaining <= 0:
        return 0
    units = int(-(-min(remaining, LONGEST) // UNIT))
    return 125 << (units.bit_length() - 1)


def all_tiers() -> list[int]:
    """Every tier of the ladder, in milliseconds."""
    return [125 << step for step in range(TIERS)]


def with_spares(milliseconds: int) -> range:
    """The tier, and those that take its place, in milliseconds."""
    return range(milliseconds, milliseconds + 1 + SPARES)


def tier_arguments(names: Names, group: GroupSpec, milliseconds: int) -> dict[str, Any]:
    """What a tier is declared with."""
    return quorum(
        message_ttl=milliseconds,
        dead_letter_exchange="",
        dead_letter_routing_key=names.queue(group),
        dead_letter_strategy="at-least-once",
        overflow="reject-publish",
    )
