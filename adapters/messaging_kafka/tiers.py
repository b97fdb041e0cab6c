"""The ladder of delay tiers of an unordered group: partitions of its retry topic, each of one fixed delay (5).

All records of a tier wait equally long, so they are due in the order they lie, and a partition needs no look before its
first record is due. A tier has one owner: what is due and too much for it goes to the partitions behind the tiers, in
which nothing waits: there is one for each partition of the group's topic, and all members share them.
"""

from __future__ import annotations

from random import randrange

UNIT = 0.125
"""The shortest tier, seconds: 2^-3."""
TIERS = 16
"""2^-3 ... 2^12 s; longer delays take several steps."""


def tier_for(remaining: float) -> int:
    """The tier of the next step: the largest that fits into what remains, the last part rounded up."""
    units = -(-max(remaining, 0.0) // UNIT)
    return min(max(int(units), 1).bit_length(), TIERS) - 1


def delay_of(partition: int) -> float:
    """How long the records of a partition wait, in seconds."""
    return UNIT * (1 << partition) if partition < TIERS else 0.0


def partition_for(remaining: float, shared: int) -> int:
    """Where a record goes that is due in so many seconds; any of the `shared` partitions where it is due already."""
    return TIERS + randrange(shared) if shared and remaining <= 0 else tier_for(remaining)
