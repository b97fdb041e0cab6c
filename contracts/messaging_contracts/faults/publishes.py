"""What publishers were told: each publish has one fate, and what is behind a failed one fails with it (7)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from messaging_contracts.faults.handlings import Message

if TYPE_CHECKING:
    from collections.abc import Collection

    from messaging_contracts.faults.history import Fate, Published, Redriven
    from messaging_contracts.faults.verdict import Verdict


@dataclass(slots=True, eq=False)
class _Publish:
    """One call of a publisher that keeps order."""

    sent: Published
    fate: Fate = "sent"
    failed: Published | None = None
    """What was called before it with its key, and failed while it was under way."""


class Publishes:
    """The messages of a history, as their publishers know them.

    `ordered`: whether one that fails takes those behind it with it.
    """

    def __init__(self, verdict: Verdict, *, ordered: bool) -> None:
        self.messages: dict[str, Message] = {}
        self._verdict = verdict
        self._ordered = ordered
        self._lanes: dict[tuple[str, str], list[_Publish]] = defaultdict(list)
        """Of each publisher and key, the calls since one of them was under way."""
        self._behind: list[_Publish] = []

    def told(self, event: Published) -> None:
        """A message was sent, or its publisher was told what became of it."""
        message = self.messages.setdefault(event.id, Message(event))
        if event.fate == "sent":
            message.under_way += 1
            message.sent_at.append(event.at)
            message.due.append(-inf if event.due is None else event.due)
            message.expires.append(inf if event.expires is None else event.expires)
            self._sent(event)
        elif not message.under_way:
            self._verdict.impossible.append(f"{event.id} is {event.fate} at {event.at} and was not under way")
        else:
            message.under_way -= 1
            self._concluded(message, event)

    def redriven(self, event: Redriven) -> None:
        """A dead letter was put back, or whoever did it was told what became of it: another copy is sent."""
        message = self.messages.get(event.id)
        if message is None:
            return  # published by somebody else
        if event.fate == "sent":
            message.sent_at.append(event.at)
            message.due.append(-inf)
            message.expires.append(max(message.expires, default=inf))
            message.redriven_at.append(event.at)
        elif event.fate == "failed":
            last = message.sent_at.index(message.redriven_at.pop())
            del message.sent_at[last], message.due[last], message.expires[last]

    def judge(self, stored: Collection[str]) -> None:
        """Add what is found to the verdict; `stored`: messages that were handled, or are dead letters."""
        for one in self._behind:
            copies = self.messages[one.sent.id].copies
            alone = one.fate != "failed" and copies == 1 and one.sent.id in stored
            if one.failed is not None and (one.fate == "confirmed" or alone):
                self._verdict.overtook_failed.append(
                    f"{one.sent.id} ({one.fate}) was under way behind {one.failed.id}, which failed at "
                    f"{one.failed.at:.3f}"
                )

    def _concluded(self, message: Message, event: Published) -> None:
        if event.fate == "confirmed":
            message.confirmed = True
            message.lasts = max(message.lasts, inf if event.expires is None else event.expires)
            message.confirmed_at = min(message.confirmed_at, event.at)
        elif event.fate == "uncertain":
            message.uncertain = True
        else:
            message.failed = True
            message.sent_at.pop()
            message.due.pop()
            message.expires.pop()
        self._ended(event)

    def _sent(self, event: Published) -> None:
        if self._ordered and event.key is not None:
            lane = self._lanes[event.publisher, event.key]
            if all(one.fate != "sent" for one in lane):
                lane.clear()
            lane.append(_Publish(event))

    def _ended(self, event: Published) -> None:
        lane = self._lanes.get((event.publisher, event.key or ""), [])
        mine = [place for place, one in enumerate(lane) if one.sent.id == event.id and one.fate == "sent"]
        if not mine:
            return
        lane[mine[0]].fate = event.fate
        if event.fate == "failed":
            for one in lane[mine[0] + 1 :]:
                if one.sent.sequence > event.sequence and one.failed is None:
                    one.failed = event
                    self._behind.append(one)
