"""What a history says of requests (22): each ends once and in time, with its own reply or a documented error.

Pure. That a responder runs once is told by the handlings, as of any other message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from messaging_contracts.faults.history import Answered, Asked, Begun, Struck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_contracts.faults.history import Event

CANCELLED = "cancelled"
"""The error of a request that its caller gave up."""
DOCUMENTED = frozenset(
    (
        "RequestTimeout",
        "RemoteError",
        "NoGroup",
        "ConnectionFailed",
        "PublishError",
        "PublishUncertain",
        "Closed",
        CANCELLED,
    )
)
"""What a request may end with: the names of errors."""
ROUNDING = 1e-3
"""Seconds by which it may end late."""


@dataclass(slots=True)
class Asking:
    """Violations, one line each."""

    unanswered: list[str] = field(default_factory=list[str])
    """Requests that did not end, or not in time."""
    foreign_replies: list[str] = field(default_factory=list[str])
    """Ended with a reply, or a responder's error, of another request, or of no handling of it."""
    undocumented_errors: list[str] = field(default_factory=list[str])
    errors_without_cause: list[str] = field(default_factory=list[str])
    """Ended with an error while no fault was there, or had just been."""
    impossible: list[str] = field(default_factory=list[str])
    requests: int = 0


def asking(events: Sequence[Event], tolerance: float = 0.0, *, answered: bool = False) -> Asking:
    """Judge all requests. `tolerance`, in seconds, is how late one may end, beside `ROUNDING`.

    `answered`: each gets its reply, but where a fault explains its error.
    """
    found = Asking()
    faults = [event for event in events if isinstance(event, Struck)]
    waiting: dict[str, Asked] = {}
    handlings: dict[str, str] = {}
    for event in events:
        if isinstance(event, Begun):
            handlings[event.handling] = event.id
        elif isinstance(event, Asked):
            found.requests += 1
            waiting[event.id] = event
        elif isinstance(event, Answered):
            asked = waiting.pop(event.id, None)
            if asked is None:
                found.impossible.append(f"{event.id} ends without being asked, or twice, at {event.at}")
                continue
            struck = any(one.at <= event.at and one.noticed >= asked.at for one in faults)
            if answered and event.error and not struck:
                found.errors_without_cause.append(f"{_told(asked)} ended with {event.error}")
            late = event.at - asked.at - asked.within
            if late > tolerance + ROUNDING:
                found.unanswered.append(f"{_told(asked)} ended {late:.3f} s late")
            _judge(asked, event, handlings, found)
    found.unanswered += [f"{_told(asked)} never ended" for asked in waiting.values()]
    return found


def _judge(asked: Asked, answered: Answered, handlings: dict[str, str], found: Asking) -> None:
    if answered.error and answered.error not in DOCUMENTED:
        found.undocumented_errors.append(f"{_told(asked)} ended with {answered.error}")
    if answered.error and not answered.replied_to:
        return
    if answered.replied_to != asked.id:
        found.foreign_replies.append(f"{_told(asked)} got the reply to {answered.replied_to or 'nothing'}")
    elif handlings.get(answered.handling) != asked.id:
        found.foreign_replies.append(f"{_told(asked)} got a reply of {answered.handling or 'nobody'}")


def _told(asked: Asked) -> str:
    return f"{asked.id}, asked at {asked.at:.3f} by {asked.member}, for {asked.within:g} s,"
