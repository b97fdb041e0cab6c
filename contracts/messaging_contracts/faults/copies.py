"""Why a message was handled again: each handling follows from the one before, or is the first of another copy.

A message that was published again after an unknown fate may be there once for each publish. Each copy has a story of
its own: its attempts, its delays, its failures. Which handling belongs to which copy nobody tells; they are divided
among as many copies as there may be, in the way that leaves the fewest violations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from messaging_contracts.faults.handlings import Causes, Handling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_contracts.faults.handlings import Message
    from messaging_contracts.faults.history import Struck
    from messaging_contracts.faults.verdict import Verdict
    from messaging_contracts.faults.work import Work

WAYS = (24, 240)
"""Ways to divide the handlings that are followed at a time; the more where the best of the few leaves a violation."""
TAKES = 2
"""More handlings of one copy that one fault explains: by who gets it next, and by who had it and does not know that it
is lost. No run showed more.
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to divide the handlings of a message among its copies, and what it would mean."""

    copies: tuple[tuple[Handling, ...], ...] = ()
    violations: tuple[tuple[str, str], ...] = ()
    duplicates: int = 0
    undercounted: int = 0
    latest: float = 0.0
    spent: tuple[tuple[Struck, ...], ...] = ()
    """The faults that explain why each copy was handled again, each as often as it was needed."""
    at_once: int = 0
    """Handlings of one copy that run at once, by twos, which no fault explains."""

    @property
    def cost(self) -> tuple[int, int, int, int]:
        return len(self.violations), self.at_once, self.duplicates, self.undercounted


@dataclass(slots=True)
class _Step:
    """What it means that one handling follows others."""

    violations: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    duplicates: int = 0
    undercounted: int = 0
    late: float = 0.0
    spent: tuple[Struck, ...] = ()


@dataclass(frozen=True, slots=True)
class Copies:
    """Divides the handlings of a message. `tolerance`: how early a retry may be, `lateness`: how late, in seconds;
    `remembers`: whether another member knows of its failures.
    """

    causes: Causes
    work: Work
    tolerance: float
    lateness: float
    remembers: bool

    def judge(self, id: str, message: Message | None, handlings: Sequence[Handling], verdict: Verdict) -> Way:
        """Add what is found to the verdict."""
        best = Way()
        for followed in WAYS:
            best = self._best(id, message, handlings, followed)
            if not (best.violations or best.at_once):
                break
        for kind, text in best.violations:
            getattr(verdict, kind).append(text)
        verdict.duplicates += best.duplicates
        verdict.undercounted += best.undercounted
        verdict.latest_retry = max(verdict.latest_retry, best.latest)
        return best

    def _best(self, id: str, message: Message | None, handlings: Sequence[Handling], followed: int) -> Way:
        ways = [Way()]
        for one in handlings:
            most = 1 if message is None else message.copies_by(one.begun.at)
            further = [
                self._with(way, number, id, one, _redriven(message, way, one))
                for way in ways
                for number in range(min(len(way.copies) + 1, most))
            ]
            further.sort(key=attrgetter("cost"))
            ways = further[:followed]
        return ways[0]

    def _with(self, way: Way, number: int, id: str, one: Handling, redriven: int) -> Way:
        """This way, where this handling is of the copy with this number; so many came of dead letters by now."""
        copies, spent = list(way.copies), list(way.spent)
        if number == len(copies):
            copies.append(())
            spent.append(())
        step = self._step(id, copies[number], one, spent[number])
        # The first of another copy is a duplicate that the publish of unknown fate explains, unless it was redriven.
        another = bool(way.copies) and not copies[number] and number > redriven
        at_once = self._overlaps(copies[number], one)
        copies[number] = (*copies[number], one)
        spent[number] = step.spent
        return Way(
            tuple(copies),
            (*way.violations, *step.violations),
            way.duplicates + step.duplicates + another,
            way.undercounted + step.undercounted,
            max(way.latest, step.late),
            tuple(spent),
            way.at_once + at_once,
        )

    def _overlaps(self, formers: Sequence[Handling], one: Handling) -> int:
        running = (former for former in formers if former.last > one.first)
        return sum(not self.causes.at_once(formers, other, one) for other in running)

    def _step(self, id: str, formers: Sequence[Handling], one: Handling, spent: tuple[Struck, ...]) -> _Step:
        step = _Step(spent=spent)
        attempt = one.begun.attempt
        if formers:
            self._return(step, id, formers, one)
        highest = max((former.begun.attempt for former in formers), default=1)
        if attempt < highest:
            if self._forgotten(formers[-1], one):
                step.undercounted += 1
            else:
                step.violations.append(("attempts_went_back", f"{id}: {one} after attempt {highest}"))
        failures = sum(other.how == "failed" and other.last < one.first for other in formers)
        if attempt > 1 + failures:
            step.violations.append(("attempts_overcounted", f"{id}: {one} after {failures} failures"))
        return step

    def _return(self, step: _Step, id: str, formers: Sequence[Handling], one: Handling) -> None:
        """Each handling after the first needs a reason: a failure, a release, or a fault."""
        at, former = one.begun.at, formers[-1]
        if former.how in {"failed", "released"} and former.last < one.first:
            if former.how == "released" or one.begun.attempt > former.begun.attempt:
                self._punctual(step, id, formers, one)
            elif self._forgotten(former, one):
                step.undercounted += 1
            else:
                step.violations.append(("failures_uncounted", f"{id}: {one} after {former}"))
        else:
            interrupted = former.how in {"died", "cancelled"}
            # What failed may be there twice: its retry, and itself where only its settlement was lost.
            again = [
                other
                for other in formers
                if other is former or (other.how == "failed" and other.begun.attempt == one.begun.attempt)
            ]
            # Or this member had lost it to the former one, and did not know that yet. A partition that moves takes
            # what still runs, whomever the fault hit.
            struck = [fault for other in (*again, one) for fault in self.causes.of(other, at)]
            if former.how == "cancelled":
                struck += self.causes.of(former, at, hand_over=True)
            again_there = self.causes.stored_again(formers, one) or self.causes.marked_twice(formers, one)
            explained = again_there or self._spend(step, struck)
            late = at - max(self._free(former, one), self.work.before(one, former.begun.at)) > self.lateness
            if explained and (interrupted or not late):
                step.duplicates += not interrupted
            else:
                step.violations.append(("duplicates_without_cause", f"{id}: {one} after {former}"))
            if interrupted and late:
                step.violations.append(("late_retries", f"{id}: {one} came long after {former}"))

    def _spend(self, step: _Step, struck: Sequence[Struck]) -> bool:
        """Whether one of these faults explains one more handling; the one that is over first does."""
        left = [fault for fault in struck if sum(one is fault for one in step.spent) < TAKES]
        if left:
            step.spent = (*step.spent, min(left, key=attrgetter("noticed")))
        return bool(left)

    def _free(self, former: Handling, one: Handling) -> float:
        """Since when nothing held this one up: its former had ended, or runs on, and all faults were noticed."""
        since = former.end if former.last < one.first else former.begun.at
        return max(since, self.causes.over(former, one.begun.at))

    def _forgotten(self, former: Handling, one: Handling) -> bool:
        """Whether this member need not know of the failures that the former one counted."""
        moved = one.begun.member != former.begun.member
        return (moved and not self.remembers) or bool(self.causes.of(former, one.begun.at, hand_over=True))

    def _punctual(self, step: _Step, id: str, formers: Sequence[Handling], one: Handling) -> None:
        """A retry, or what was released for a time, is neither early nor late."""
        at, former = one.begun.at, formers[-1]
        # What a fault brought back fails beside the retry of its first failure.
        alike = [other for other in formers if _alike(other, former)]
        due = min(other.end + other.after for other in alike)
        apart = self.causes.clocks_apart(at)
        came = f"{id}: {one} came {at - former.end:.3f} s after {former}, {former.after:.3f} were asked"
        # What is released is kept for a time by who has it: whoever had lost it, and did not know, handles it before.
        taken = former.how == "released" and any(self.causes.of(other, at) for other in (former, one))
        if at < due - self.tolerance - apart and not taken:
            step.violations.append(("early_retries", came))
        # Whichever of them it follows: each has its own time, and its own faults that held it up.
        late = min(at - max(other.end + other.after, self.causes.over(other, at)) for other in alike)
        step.late = max(0.0, late - apart)
        if step.late > self.lateness:
            step.violations.append(("late_retries", came))


def _alike(other: Handling, former: Handling) -> bool:
    return other is former or (
        (other.how, former.how) == ("failed", "failed") and other.begun.attempt == former.begun.attempt
    )


def _redriven(message: Message | None, way: Way, one: Handling) -> int:
    """How many copies of the message had to come of its dead letters: one for each that was rejected and redriven."""
    if message is None:
        return 0
    rejected = sum(
        former.how == "rejected" and former.last < one.first for copy in way.copies for former in copy
    )
    return min(message.redriven_by(one.begun.at), rejected)
