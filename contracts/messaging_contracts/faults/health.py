"""What health has to tell of a fault, and did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging_contracts.faults.history import Seen, Struck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_contracts.faults.history import Event

AWAY = 1.0
"""Seconds after which whoever probes health must have seen that a broker is away: each process that it hits tells."""
TELLING = 2.0
"""Seconds after a fault for which it may still be told: a look at one's own health waits for its answer."""


def untold(events: Sequence[Event]) -> Sequence[str]:
    """Each fault of which health did not tell the truth.

    Those that it names, and that were well before, have to be well no longer before it is over: each of them, or one
    where it is over sooner than all must see it.
    """
    faults = [one for one in events if isinstance(one, Struck) and one.told_by]
    found: list[str] = []
    asked = 0
    for fault in faults:
        told = {name: _told(events, fault, name) for name in fault.told_by}
        judged = {name: well for name, well in told.items() if well is not None}
        asked += len(judged)
        silent = sorted(name for name, well in judged.items() if not well)
        if silent and (fault.over - fault.at >= AWAY or len(silent) == len(judged)):
            what = f"{fault.kind}, for {fault.over - fault.at:.1f} s"
            found.append(f"the health of {', '.join(silent)} told nothing of a fault: {what}")
    if faults and not asked:
        found.append("nobody whose health had to tell of a fault was well before it")
    return found


def _told(events: Sequence[Event], fault: Struck, name: str) -> bool | None:
    """Whether this one told of the fault, or was not well when it began; None: it never was before."""
    seen = [one for one in events if isinstance(one, Seen) and one.member == name]
    before = [one.status for one in seen if one.at < fault.at]
    if "green" not in before:
        return None
    meanwhile = [one.status for one in seen if fault.at <= one.at <= fault.over + TELLING]
    return any(status != "green" for status in (before[-1], *meanwhile))
