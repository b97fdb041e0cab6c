"""What a history says of dead letters: each has its record and its reason, and there is one of each message (1)."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import inf
from typing import TYPE_CHECKING

from messaging.adapter import SUSPECT_AFTER
from messaging_contracts.faults.handlings import STORED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from messaging_contracts.faults.handlings import Causes, Handling, Message
    from messaging_contracts.faults.history import Buried
    from messaging_contracts.faults.verdict import Verdict

ROUNDING = 1e-3
"""Seconds by which a time that went through a calendar may be wrong."""


class Letters:
    """The dead letters of a history. `tolerance`: by how many seconds two clocks differ."""

    def __init__(self, causes: Causes, tolerance: float) -> None:
        self._causes = causes
        self._tolerance = tolerance
        self._found: dict[tuple[str, str], list[Buried]] = defaultdict(list)

    def found(self, letter: Buried) -> None:
        """One that was there at the end."""
        self._found[letter.group, letter.id].append(letter)

    def has(self, group: str, id: str) -> bool:
        """Whether this message became a dead letter of this group."""
        return (group, id) in self._found

    def given_up(self, group: str, id: str) -> bool:
        """Whether it became one because its members were lost, and not for what a handler decided."""
        letters = self._found.get((group, id), ())
        return bool(letters) and all(letter.cause == "lease_lost" for letter in letters)

    @property
    def ids(self) -> set[str]:
        return {id for _, id in self._found}

    @property
    def groups(self) -> set[str]:
        return {group for group, _ in self._found}

    def judge(
        self,
        group: str,
        by_id: Mapping[str, Sequence[Handling]],
        messages: Mapping[str, Message],
        verdict: Verdict,
    ) -> None:
        """Add what is found of this group to the verdict."""
        for (where, id), letters in self._found.items():
            if where == group:
                handlings = by_id.get(id, ())
                verdict.dead_letters += 1
                self._judge_record(letters, verdict)
                self._judge_reason(letters[0], handlings, messages.get(id), verdict)
                self._judge_attempts(letters, handlings, messages.get(id), verdict)
                self._judge_times(letters, handlings, messages.get(id), verdict)
                self._judge_number(letters, handlings, messages.get(id), verdict)

    def _judge_record(self, letters: Sequence[Buried], verdict: Verdict) -> None:
        for letter in letters:
            missing = [
                name
                for name, value in (
                    ("reason", letter.reason),
                    ("cause", letter.cause),
                    ("attempts", letter.attempts or letter.cause == "expired"),
                    ("failed_at", letter.failed_at is not None),
                )
                if not value
            ]
            if missing:
                verdict.bare_dead_letters.append(f"{letter.id} has no {', '.join(missing)}")

    def _judge_reason(
        self, letter: Buried, handlings: Sequence[Handling], message: Message | None, verdict: Verdict
    ) -> None:
        rejected = any(one.how == "rejected" for one in handlings)
        # One of its copies, so that it may have succeeded, or been redriven, as well.
        expired = letter.cause == "expired" and message is not None and min(message.expires) <= letter.at
        gone = letter.cause == "lease_lost" and self._ends_processes(letter, handlings)
        if not (rejected or gone or expired):
            verdict.innocent_dead_letters.append(f"{letter.id} ({letter.cause}): {_told(handlings)}")

    def _ends_processes(self, letter: Buried, handlings: Sequence[Handling]) -> bool:
        """Whether it may be known for that: its members were lost with it as often as makes a suspect of it, and once
        more when it was handled, or marked (3). A lost connection brings nothing nearer to that (2).
        """
        losses = self._causes.losses(letter.id, letter.at)
        hit = [fault for one in handlings for fault in self._causes.of(one, _unsettled(one, letter.at))]
        return len(losses) > SUSPECT_AFTER and (
            any(fault in losses for fault in hit) or self._causes.named(letter.id)
        )

    def _judge_attempts(
        self,
        letters: Sequence[Buried],
        handlings: Sequence[Handling],
        message: Message | None,
        verdict: Verdict,
    ) -> None:
        """As many as the handling had that rejected it, and those that did before it was redriven each time. Of one
        that its members lost: no more than failures make.
        """
        rejected = [one.begun.attempt for one in handlings if one.how == "rejected"]
        most = 1 + sum(one.how in {"failed", "rejected"} for one in handlings)
        for letter in letters:
            if letter.cause == "expired":
                right = letter.attempts <= most + (0 if message is None else message.redriven_by(letter.at))
            elif letter.cause == "lease_lost" or not rejected:
                right = letter.attempts <= most
            else:
                lives = 1 + (0 if message is None else message.redriven_by(letter.at))
                right = not letter.attempts or letter.attempts in _sums(rejected, lives)
            if not right:
                verdict.miscounted_dead_letters.append(
                    f"{letter.id} tells of {letter.attempts} attempts: {_told(handlings)}"
                )

    def _judge_times(
        self,
        letters: Sequence[Buried],
        handlings: Sequence[Handling],
        message: Message | None,
        verdict: Verdict,
    ) -> None:
        """It failed last as a handling ended that rejected it; of one that no handling rejected: once it was sent."""
        rejected = [one for one in handlings if one.how == "rejected"]
        for letter in letters:
            if letter.failed_at is None:
                continue  # told as one without its record
            if letter.cause == "expired" and message is not None:
                times = [(min(message.expires), letter.at)]
            elif letter.cause == "lease_lost" or not rejected:
                times = [(-inf if message is None else message.sent.at, letter.at)]
            else:
                times = [
                    (one.end, max(one.end + STORED, self._causes.over(one, letter.at))) for one in rejected
                ]
            apart = self._tolerance + ROUNDING + self._causes.clocks_apart(letter.at)
            if not any(since - apart <= letter.failed_at <= until + apart for since, until in times):
                verdict.misdated_dead_letters.append(
                    f"{letter.id} tells that it failed at {letter.failed_at:.3f}: {_told(handlings)}"
                )

    def _judge_number(
        self,
        letters: Sequence[Buried],
        handlings: Sequence[Handling],
        message: Message | None,
        verdict: Verdict,
    ) -> None:
        """One of each copy; one more for each handling that rejected it again, and for each fault that hit it: the
        letter was stored, and nobody was told.
        """
        number = max(Counter(letter.look for letter in letters).values())
        verdict.duplicate_dead_letters += number - 1
        ends = [one.end for one in handlings if one.how == "rejected"]
        at = max(ends) + STORED if ends else letters[0].at
        copies = max(1, 0 if message is None else message.copies)
        rejected = max(1, len(ends))
        struck = {id(fault) for one in handlings for fault in self._causes.of(one, at)}
        allowed = max(copies, rejected) + len(struck)
        if number > allowed:
            verdict.repeated_dead_letters.append(
                f"{letters[0].id}: {number} dead letters, {allowed} are explained: {_told(handlings)}"
            )


def _sums(numbers: Sequence[int], most: int) -> Collection[int]:
    """What one of these, or up to `most` of them together, come to."""
    sums: dict[int, set[int]] = {0: {0}}
    for number in numbers:
        for count in range(min(max(sums), most - 1), -1, -1):
            sums.setdefault(count + 1, set()).update(one + number for one in sums[count])
    return {one for count, found in sums.items() if count for one in found}


def _unsettled(one: Handling, at: float) -> float:
    """Until when its member may have held it: a crash between success and settlement looks like the handler's."""
    return min(at, one.end + STORED) if one.how == "succeeded" else at


def _told(handlings: Sequence[Handling]) -> str:
    return "; ".join(map(str, handlings)) or "never handled"
