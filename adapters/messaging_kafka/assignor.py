"""Who owns what: how the leader of a group deals the units out, and what members tell each other about it.

A unit is what must have one owner: a partition of an ordered group with the redrive partition of the same number, whose
lanes are shared; else one partition of the topic, one of the retry ladder, or one of those behind it. Whoever owns a
unit keeps it. A unit that has to move stays with its owner, who is told to give it up, finishes what runs, and joins
again without it; only then somebody else gets it (as KIP-429 does). So a rebalance stops nothing but what moves, and no
two own the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NAME = "messaging-1"
"""The protocol's name and version: members of one group must speak the same."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says of itself when it joins."""

    owned: tuple[int, ...] = ()
    """What it wants to keep most comes first."""
    generation: int = -1
    """In which it got them."""
    busy: bool = False
    """It has had no room for messages for a while."""


@dataclass(slots=True)
class Share:
    """What a member is told."""

    units: set[int] = field(default_factory=set[int])
    give_up: set[int] = field(default_factory=set[int])
    """Of its units, those that somebody else shall have."""
    relief: bool = False
    """Whether somebody in the group has room."""
    shared: int = 0
    """How many units there are for due retries: none where the leader is of an earlier version."""


def deal(claims: Mapping[str, Claim], kinds: Sequence[range]) -> dict[str, Share]:
    """Deal the units of each kind out evenly, moving as few as may be. A third kind is that of due retries.

    Only the first kind goes to busy members too: the others are where those with room take what is too much for them.
    """
    free_members = {member: claim for member, claim in claims.items() if not claim.busy}
    shares = {
        member: Share(relief=bool(free_members), shared=len(kinds[2]) if len(kinds) > 2 else 0)
        for member in claims
    }
    owners = _owners(claims)
    spare = 0
    takers: Mapping[str, Claim] = claims
    for units in kinds:
        held = {
            member: [unit for unit in claims[member].owned if unit in units and owners[unit] == member]
            for member in sorted(claims)
        }
        free = [unit for unit in units if unit not in owners]
        quota = _quota({member: held[member] for member in sorted(takers)}, len(units), spare)
        # The members that got one more of this kind get one less of the next.
        spare += len(units) % len(takers)
        for member, owned in held.items():
            may = quota.get(member, 0)
            keep, surplus = owned[:may], owned[may:]
            share = shares[member]
            share.units.update(keep, surplus)
            share.give_up.update(surplus)
            wanted = may - len(keep)
            share.units.update(free[:wanted])
            del free[: max(0, wanted)]
        takers = free_members or claims
    return shares


def _owners(claims: Mapping[str, Claim]) -> dict[int, str]:
    """The owner of each unit that has one; of two that claim the same, the one with the later generation."""
    owners: dict[int, str] = {}
    for member in sorted(claims, key=lambda member: (claims[member].generation, member)):
        for unit in claims[member].owned:
            owners[unit] = member
    return owners


def _quota(held: Mapping[str, Collection[int]], units: int, turn: int) -> dict[str, int]:
    """How many each may have: those who hold most get what is left over, else the next in turn."""
    least, over = divmod(units, len(held))
    names = list(held)
    turn %= len(names)
    order = sorted(names[turn:] + names[:turn], key=lambda member: -len(held[member]))
    return {member: least + (at < over) for at, member in enumerate(order)}


def encode_claim(claim: Claim) -> bytes:
    fields = {"owned": claim.owned, "generation": claim.generation, "busy": claim.busy}
    return json.dumps(fields).encode()


def decode_claim(raw: bytes | None) -> Claim:
    """What is unreadable claims nothing."""
    fields = _fields(raw)
    generation = fields.get("generation")
    owned = tuple(dict.fromkeys(_numbers(fields.get("owned"))))
    return Claim(owned, generation if isinstance(generation, int) else -1, fields.get("busy") is True)


def encode_share(share: Share) -> bytes:
    fields = {"units": sorted(share.units), "give_up": sorted(share.give_up)}
    return json.dumps({**fields, "relief": share.relief, "shared": share.shared}).encode()


def decode_share(raw: bytes | None) -> Share:
    fields = _fields(raw)
    units = set(_numbers(fields.get("units")))
    shared = fields.get("shared")
    return Share(
        units,
        set(_numbers(fields.get("give_up"))) & units,
        fields.get("relief") is True,
        shared if type(shared) is int else 0,
    )


def _fields(raw: bytes | None) -> dict[str, object]:
    try:
        value: object = json.loads(raw or b"")
    except ValueError:
        return {}
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _numbers(value: object) -> list[int]:
    return [one for one in cast("list[object]", value) if type(one) is int] if isinstance(value, list) else []
