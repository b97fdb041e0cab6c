"""When a message is first handled: soon after it is due, unless a fault or what was sent before it held it up."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_contracts.faults.handlings import Causes, Handling, Message
    from messaging_contracts.faults.verdict import Verdict
    from messaging_contracts.faults.work import Work


@dataclass(frozen=True, slots=True)
class Firsts:
    """Judges one group's first handlings. `lateness`: how late they may be, in seconds."""

    causes: Causes
    work: Work
    lateness: float

    def judge(
        self, by_id: Mapping[str, Sequence[Handling]], messages: Mapping[str, Message], verdict: Verdict
    ) -> None:
        """Add what is found to the verdict."""
        for id, handlings in by_id.items():
            message = messages.get(id)
            first = handlings[0]
            due = -inf if message is None else message.due_by(first.begun.at)
            if message is None or due == -inf:
                continue
            late = first.begun.at - max(due, self.causes.over_for_all(due, first.begun.at))
            if late <= self.lateness:
                continue
            late = min(late, first.begun.at - self.work.before(first, due))
            if late > self.lateness + self.causes.clocks_apart(first.begun.at):
                verdict.late_firsts.append(f"{id}, due at {due:.3f}: {first}")
