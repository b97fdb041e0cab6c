"""When a message is first handled: soon after it is due, unless a fault or what was sent before it held it up."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_contracts.faults.handlings import Causes, Handling, Message
    from messaging_contracts.faults.verdict import Verdict


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something was done with a message: the group was at work on what was sent by then."""

    place: float
    at: float
    sent: float


@dataclass(frozen=True, slots=True)
class Firsts:
    """Judges one group's first handlings. `lateness`: how late they may be, in seconds."""

    causes: Causes
    lateness: float

    def judge(
        self, by_id: Mapping[str, Sequence[Handling]], messages: Mapping[str, Message], verdict: Verdict
    ) -> None:
        """Add what is found to the verdict."""
        marks = self._marks(by_id, messages)
        for id, handlings in by_id.items():
            message = messages.get(id)
            first = handlings[0]
            due = -inf if message is None else message.due_by(first.begun.at)
            if message is None or due == -inf:
                continue
            late = first.begun.at - max(due, self.causes.over_for_all(due, first.begun.at))
            if late <= self.lateness:
                continue
            late = min(late, first.begun.at - _worked(marks, first, message.sent.at, due))
            if late > self.lateness + self.causes.clocks_apart(first.begun.at):
                verdict.late_firsts.append(f"{id}, due at {due:.3f}: {first}")

    def _marks(
        self, by_id: Mapping[str, Sequence[Handling]], messages: Mapping[str, Message]
    ) -> Sequence[_Mark]:
        """In the order of the history."""
        marks: list[_Mark] = []
        for id, handlings in by_id.items():
            message = messages.get(id)
            if message is not None:
                for one in handlings:
                    marks.append(_Mark(one.first, one.begun.at, message.sent.at))
                    if one.last < inf:
                        marks.append(_Mark(one.last, one.end, message.sent.at))
        marks.sort(key=attrgetter("place"))
        return marks


def _worked(marks: Sequence[_Mark], first: Handling, sent: float, due: float) -> float:
    """When the group last did something, before this handling, with a message that was sent before this one."""
    for mark in reversed(marks):
        if mark.place < first.first and mark.at <= due:
            break
        if mark.place < first.first and mark.sent < sent:
            return mark.at
    return -inf
