"""What a group was at work on, and when: what was sent before a message may hold it up, and its repeat, too."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_contracts.faults.handlings import Handling, Message


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something was done with a message: the group was at work on what was sent by then."""

    place: float
    at: float
    sent: float


class Work:
    """All that one group did."""

    def __init__(self, by_id: Mapping[str, Sequence[Handling]], messages: Mapping[str, Message]) -> None:
        self._messages = messages
        marks: list[_Mark] = []
        for id, handlings in by_id.items():
            message = messages.get(id)
            if message is not None:
                for one in handlings:
                    marks.append(_Mark(one.first, one.begun.at, message.sent.at))
                    if one.last < inf:
                        marks.append(_Mark(one.last, one.end, message.sent.at))
        self._marks = sorted(marks, key=attrgetter("place"))

    def before(self, one: Handling, since: float) -> float:
        """When it last did something, since then and before this handling, with what was sent before its message.

        Some brokers put a message that comes again in its place behind these.
        """
        message = self._messages.get(one.begun.id)
        for mark in reversed(self._marks):
            if message is None or (mark.place < one.first and mark.at <= since):
                break
            if mark.place < one.first and mark.sent < message.sent.at:
                return mark.at
        return -inf
