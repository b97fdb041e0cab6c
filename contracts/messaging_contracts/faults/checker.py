"""The checker: what a history says of the promises. Pure: events in, a verdict out.

A fault (`Struck`) is a cause for what it may bring about by design: a message handled again, a failure that was not
counted, an overlap after a lost lease. These are counted apart. The same without a cause is a violation; a lost
message, a wrong order, an early retry always are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import TYPE_CHECKING

from messaging_contracts.faults.history import CLOCK_JUMPED, REMOVED, Begun, Buried, Ended, Published, Struck
from messaging_contracts.faults.once import repetition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from messaging_contracts.faults.history import Event

SHOWN = 10
"""Violations of one kind that an error's text shows."""


@dataclass(slots=True)
class Verdict:
    """Violations, one line each, by kind; then what was allowed, counted."""

    lost: list[str] = field(default_factory=list[str])
    """Confirmed, and neither handled with success nor a dead letter."""
    phantoms: list[str] = field(default_factory=list[str])
    """Handled, although nobody sent it or its publisher was told that the broker does not have it."""
    altered: list[str] = field(default_factory=list[str])
    """Handled with another key or sequence than it was published with."""
    duplicates_without_cause: list[str] = field(default_factory=list[str])
    disorder: list[str] = field(default_factory=list[str])
    """Begun before a predecessor of its key was done with."""
    successes_out_of_order: list[str] = field(default_factory=list[str])
    overlaps: list[str] = field(default_factory=list[str])
    """Two handlers for one key, or one message, at once, and no lease had been lost."""
    attempts_went_back: list[str] = field(default_factory=list[str])
    attempts_overcounted: list[str] = field(default_factory=list[str])
    failures_uncounted: list[str] = field(default_factory=list[str])
    """A failure that the next attempt does not count, without a cause."""
    early_retries: list[str] = field(default_factory=list[str])
    before_due: list[str] = field(default_factory=list[str])
    """Handled before the delay was over with which it was published."""
    bare_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters without reason, cause, attempts or time."""
    innocent_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters that no handler rejected and with which no member was lost."""
    handled_twice: list[str] = field(default_factory=list[str])
    """Of an idempotent group; for these three see `faults.once`."""
    stale_owners: list[str] = field(default_factory=list[str])
    keys_given_up: list[str] = field(default_factory=list[str])

    messages: int = 0
    handlings: int = 0
    duplicates: int = 0
    """Handled again because of a fault, or because they were published again after an unknown fate."""
    overlaps_after_lost_leases: int = 0
    undercounted: int = 0
    """Attempts that a fault kept from being counted."""
    dead_letters: int = 0
    removed: int = 0
    """Never handled, because an operator deleted them, or what they were published to."""

    @property
    def violations(self) -> dict[str, list[str]]:
        """What was found, by kind; empty when all promises were kept."""
        found: dict[str, list[str]] = {}
        for one in fields(self):
            lines = getattr(self, one.name)
            if isinstance(lines, list) and lines:
                found[one.name] = lines  # pyright: ignore[reportUnknownVariableType]  all lists here hold lines
        return found

    def assert_kept(self, *, duplicates: float = inf) -> None:
        """Raises AssertionError that names every kind of violation, and more than so many duplicates."""
        told = [
            f"{len(lines)} {name.replace('_', ' ')}:\n  " + "\n  ".join(lines[:SHOWN])
            for name, lines in self.violations.items()
        ]
        if self.duplicates > duplicates:
            told.append(f"{self.duplicates} duplicates, {duplicates:g} are allowed")
        if told:
            raise AssertionError("\n".join(told))


@dataclass(slots=True)
class _Handling:
    begun: Begun
    first: int
    """Where in the history it began: more exact than its time."""
    last: float = inf
    """Where it ended."""
    end: float = inf
    how: str = "running"
    after: float = 0.0

    @property
    def concluded(self) -> bool:
        return self.how in {"succeeded", "rejected"}

    def __str__(self) -> str:
        one = self.begun
        return f"{one.member} attempt {one.attempt} [{one.at:.3f}, {self.end:.3f}] {self.how}"


@dataclass(slots=True)
class _Message:
    """What publishers know of one message."""

    sent: Published
    copies: int = 0
    """How many the broker may have: sent, and not told to have failed."""
    confirmed: bool = False
    confirmed_at: float = inf
    uncertain: bool = False
    failed: bool = False
    due: list[float] = field(default_factory=list[float])
    """When the copies that the broker may have are due; the earliest counts."""


def check(
    events: Iterable[Event], *, ordered: bool, groups: Collection[str] = (), tolerance: float = 0.0
) -> Verdict:
    """Judge one topic's history; `ordered` says what was promised.

    `groups` names those that had to get every message, beside the ones that the history shows. `tolerance`, in
    seconds, is how early a retry may be: two clocks differ.
    """
    return _Check(events, ordered=ordered, groups=groups, tolerance=tolerance).verdict


def recoveries(events: Iterable[Event]) -> Sequence[tuple[Struck, float | None]]:
    """The longest that a message had to wait because of each fault, in seconds; None where none had to.

    From the fault, or from the end of a fault that hit the broker; of messages confirmed by then, or before the fault
    was over; until they were first done with.
    """
    listed = list(events)
    ids = {event.handling: event.id for event in listed if isinstance(event, Begun)}
    confirmed = {
        event.id: event.at for event in listed if isinstance(event, Published) and event.fate == "confirmed"
    }
    done: dict[str, float] = {}
    for event in listed:
        if isinstance(event, Ended) and event.how in {"succeeded", "rejected"}:
            done.setdefault(ids[event.handling], event.at)
    results: list[tuple[Struck, float | None]] = []
    for fault in listed:
        if isinstance(fault, Struck):
            over = fault.at if fault.until is None else fault.until
            since = fault.at if fault.member else over
            waits = [
                done[id] - max(since, at)
                for id, at in confirmed.items()
                if at <= over and done.get(id, -inf) > since
            ]
            results.append((fault, max(waits, default=None)))
    return results


class _Check:
    def __init__(
        self, events: Iterable[Event], *, ordered: bool, groups: Collection[str], tolerance: float
    ) -> None:
        self.verdict = Verdict()
        self._ordered = ordered
        self._tolerance = tolerance
        self._messages: dict[str, _Message] = {}
        self._handlings: dict[str, _Handling] = {}
        self._buried: dict[tuple[str, str], Buried] = {}
        self._faults: list[Struck] = []
        self._clock_jumps: list[float] = []
        self._removed = -inf
        """Until when what was confirmed may have been deleted."""
        self._alive: dict[str, tuple[int, float]] = {}
        """The last sign of life of each member."""
        listed = list(events)
        self._read(listed)
        self._judge_idempotency(listed)
        seen = {one.begun.group for one in self._handlings.values()} | {group for group, _ in self._buried}
        for group in sorted(seen | set(groups)):
            self._judge(group)
        self.verdict.messages = len(self._messages)
        self.verdict.handlings = len(self._handlings)
        self.verdict.dead_letters = len(self._buried)

    def _judge_idempotency(self, events: Sequence[Event]) -> None:
        found = repetition(events)
        self.verdict.handled_twice = found.handled_twice
        self.verdict.stale_owners = found.stale_owners
        self.verdict.keys_given_up = found.keys_given_up

    def _read(self, events: Iterable[Event]) -> None:
        for place, event in enumerate(events):
            if isinstance(event, Published):
                self._publishing(event)
            elif isinstance(event, Begun):
                self._handlings[event.handling] = _Handling(event, place)
                self._alive[event.member] = (place, event.at)
            elif isinstance(event, Ended):
                one = self._handlings[event.handling]
                one.last, one.end, one.how, one.after = place, event.at, event.how, event.after
                self._alive[one.begun.member] = (place, event.at)
            elif isinstance(event, Struck) and event.kind == CLOCK_JUMPED:
                self._clock_jumps.append(event.at)
            elif isinstance(event, Struck):
                if event.kind == REMOVED:
                    self._removed = max(self._removed, event.at if event.until is None else event.until)
                self._faults.append(self._died(event) if event.fatal else event)
            elif isinstance(event, Buried):
                self._buried[event.group, event.id] = event

    def _died(self, fault: Struck) -> Struck:
        """Whoever saw the process dead saw it later: what it was handling ended with its last sign of life."""
        place, at = self._alive.get(fault.member or "", (-1, fault.at))
        for one in self._handlings.values():
            if one.begun.member == fault.member and one.how == "running":
                one.last, one.end, one.how = place, at, "died"
        return replace(fault, at=min(at, fault.at), until=fault.at)

    def _publishing(self, event: Published) -> None:
        message = self._messages.setdefault(event.id, _Message(event))
        if event.fate == "sent":
            message.copies += 1
            message.due.append(-inf if event.due is None else event.due)
        elif event.fate == "confirmed":
            message.confirmed = True
            message.confirmed_at = min(message.confirmed_at, event.at)
        elif event.fate == "uncertain":
            message.uncertain = True
        else:
            message.failed = True
            message.copies -= 1
            message.due.pop()

    def _judge(self, group: str) -> None:
        by_id: dict[str, list[_Handling]] = defaultdict(list)
        for one in self._handlings.values():
            if one.begun.group == group:
                by_id[one.begun.id].append(one)
        for handlings in by_id.values():
            handlings.sort(key=_begin)
        self._judge_publishing(group, by_id)
        for id, handlings in by_id.items():
            self._judge_message(id, handlings)
        if self._ordered:
            self._judge_order(group, by_id)
        self._judge_overlaps(by_id)
        for (where, id), letter in self._buried.items():
            if where == group:
                self._judge_letter(letter, by_id.get(id, []))

    def _judge_publishing(self, group: str, by_id: dict[str, list[_Handling]]) -> None:
        for id, message in self._messages.items():
            done = (group, id) in self._buried or any(one.concluded for one in by_id.get(id, ()))
            if message.confirmed and not done and message.confirmed_at <= self._removed:
                self.verdict.removed += 1
            elif message.confirmed and not done:
                seen = "; ".join(map(str, by_id.get(id, ()))) or "never handled"
                self.verdict.lost.append(f"{_name(message.sent)} in group {group!r}: {seen}")
        for id, handlings in by_id.items():
            known = self._messages.get(id)
            if known is None:
                self.verdict.phantoms.append(f"{id} was never sent: {handlings[0]}")
                continue
            if known.failed and not (known.confirmed or known.uncertain):
                self.verdict.phantoms.append(f"{_name(known.sent)} was told to have failed: {handlings[0]}")
            published = known.sent.key, known.sent.sequence
            due = min(known.due, default=-inf)
            if handlings[0].begun.at < due - self._tolerance:
                self.verdict.before_due.append(f"{_name(known.sent)}, due at {due:.3f}: {handlings[0]}")
            for one in handlings:
                if (one.begun.key, one.begun.sequence) != published:
                    self.verdict.altered.append(
                        f"{_name(known.sent)}: as {one.begun.key}/{one.begun.sequence}"
                    )

    def _judge_message(self, id: str, handlings: Sequence[_Handling]) -> None:
        """Each handling after the first needs a reason: a failure, a release, or a fault."""
        message = self._messages.get(id)
        several = message is not None and message.copies > 1
        failures, highest = 0, 1
        for number, one in enumerate(handlings):
            attempt = one.begun.attempt
            former = handlings[number - 1] if number else None
            if former is not None:
                self._judge_return(id, handlings[:number], one, several=several)
            if several:
                continue  # copies count for themselves
            if attempt < highest:
                if former is not None and self._cause(former, one.begun.at, hand_over=True):
                    self.verdict.undercounted += 1
                else:
                    self.verdict.attempts_went_back.append(f"{id}: {one} after attempt {highest}")
            failures = sum(other.how == "failed" and other.last < one.first for other in handlings)
            if attempt > 1 + failures:
                self.verdict.attempts_overcounted.append(f"{id}: {one} after {failures} failures")
            highest = max(highest, attempt)

    def _judge_return(self, id: str, formers: Sequence[_Handling], one: _Handling, *, several: bool) -> None:
        at, former = one.begun.at, formers[-1]
        if former.how in {"failed", "released"} and former.last < one.first and not several:
            counted = one.begun.attempt > former.begun.attempt
            if former.how == "released" or counted:
                caused = former.how == "released" and self._cause(former, at)
                caused = caused or any(jump <= at for jump in self._clock_jumps)
                # What a fault brought back fails beside the retry of its first failure.
                due = min(other.end + other.after for other in formers if _alike(other, former))
                if at < due - self._tolerance and not caused:
                    self.verdict.early_retries.append(
                        f"{id}: {one} came {at - former.end:.3f} s after {former}, {former.after:.3f} were asked"
                    )
            elif self._cause(former, at, hand_over=True):
                self.verdict.undercounted += 1
            else:
                self.verdict.failures_uncounted.append(f"{id}: {one} after {former}")
        elif former.concluded or former.last > one.first or former.how == "died":
            # What failed may be there twice: its retry, and itself where only its settlement was lost.
            again = [
                other
                for other in formers
                if other is former or (other.how == "failed" and other.begun.attempt == one.begun.attempt)
            ]
            # Or this member had lost it to the former one, and did not know that yet.
            if several or any(self._cause(other, at) for other in (*again, one)):
                self.verdict.duplicates += former.how != "died"
            else:
                self.verdict.duplicates_without_cause.append(f"{id}: {one} after {former}")

    def _judge_order(self, group: str, by_id: dict[str, list[_Handling]]) -> None:
        """Of what was confirmed: nothing begins before its predecessors are done with (7)."""
        lanes: dict[tuple[str, str], list[Published]] = defaultdict(list)
        for message in self._messages.values():
            sent = message.sent
            if sent.key is not None and message.confirmed:
                lanes[sent.publisher, sent.key].append(sent)
        for lane in lanes.values():
            lane.sort(key=lambda sent: sent.sequence)
            done, latest = -inf, ""
            succeeded, last = -inf, ""
            for sent in lane:
                handlings = by_id.get(sent.id, ())
                if handlings and handlings[0].first < done:
                    self.verdict.disorder.append(f"{_name(sent)}, {handlings[0]}, before {latest}")
                place, how = self._done(group, sent.id, handlings)
                if place > done:
                    done, latest = place, f"{_name(sent)}, {how}"
                success = min((one for one in handlings if one.concluded), key=_end, default=None)
                if success is not None and success.how == "succeeded":
                    if success.last < succeeded:
                        self.verdict.successes_out_of_order.append(f"{_name(sent)}, {success}, before {last}")
                    else:
                        succeeded, last = success.last, f"{_name(sent)}, {success}"

    def _done(self, group: str, id: str, handlings: Sequence[_Handling]) -> tuple[float, _Handling | str]:
        """Where the message was first done with; of one that the guard gave up, where it was last begun."""
        concluded = [one for one in handlings if one.concluded]
        if concluded:
            first = min(concluded, key=_end)
            return first.last, first
        message = self._messages.get(id)
        if (group, id) in self._buried and handlings and (message is None or message.copies <= 1):
            return handlings[-1].first, handlings[-1]
        return -inf, "never begun"  # if it is lost, that is told as such

    def _judge_overlaps(self, by_id: dict[str, list[_Handling]]) -> None:
        lanes: dict[tuple[str, str], list[_Handling]] = defaultdict(list)
        for id, handlings in by_id.items():
            message = self._messages.get(id)
            for one in handlings:
                key = one.begun.key
                if self._ordered and key is not None:
                    lanes["key", key].append(one)
                elif message is None or message.copies <= 1:
                    lanes["id", id].append(one)
        for (kind, name), lane in lanes.items():
            lane.sort(key=_begin)
            running: list[_Handling] = []
            excused: set[str] = set()
            for one in lane:
                running = [other for other in running if other.last > one.first]
                for other in running:
                    # Or it is this member that had lost it, and did not know that yet.
                    if self._cause(other, one.begun.at) or self._cause(one, one.begun.at):
                        excused.add(other.begun.handling)
                    else:
                        self.verdict.overlaps.append(f"{kind} {name}: {other} and {one}")
                running.append(one)
            self.verdict.overlaps_after_lost_leases += len(excused)

    def _judge_letter(self, letter: Buried, handlings: Sequence[_Handling]) -> None:
        missing = [
            name
            for name, value in (
                ("reason", letter.reason),
                ("cause", letter.cause),
                ("attempts", letter.attempts),
                ("failed_at", letter.failed_at),
            )
            if not value
        ]
        if missing:
            self.verdict.bare_dead_letters.append(f"{letter.id} has no {', '.join(missing)}")
        rejected = any(one.how == "rejected" for one in handlings)
        # A crash after the handler's success, before its settlement, looks like one of the handler's doing.
        gone = letter.cause == "lease_lost" and (
            any(self._cause(one, letter.at) for one in handlings)
            or any(fault.ids is not None and letter.id in fault.ids for fault in self._faults)
        )
        if not (rejected or gone):
            seen = "; ".join(map(str, handlings)) or "never handled"
            self.verdict.innocent_dead_letters.append(f"{letter.id} ({letter.cause}): {seen}")

    def _cause(self, former: _Handling, at: float, *, hand_over: bool = False) -> bool:
        """Whether a fault hit the member of this handling, or the broker, between its begin and `at`.

        `hand_over`: or any member. Partitions move then, and some brokers do not know what their owner counted (2).
        """
        return any(
            (hand_over or fault.member in {None, former.begun.member})
            and (fault.ids is None or former.begun.id in fault.ids)
            and fault.at <= at
            and (fault.at if fault.until is None else fault.until) + fault.aftermath >= former.begun.at
            for fault in self._faults
        )


def _begin(one: _Handling) -> float:
    return one.first


def _end(one: _Handling) -> float:
    return one.last


def _alike(other: _Handling, former: _Handling) -> bool:
    return other is former or (
        (other.how, former.how) == ("failed", "failed") and other.begun.attempt == former.begun.attempt
    )


def _name(sent: Published) -> str:
    return f"{sent.publisher}/{sent.key}/{sent.sequence} ({sent.id})"
