"""The checker: what a history says of the promises. Pure: events in, a verdict out.

A fault (`Struck`) is a cause for what it may bring about by design: a message handled again, a failure that was not
counted, an overlap after a lost lease. These are counted apart. The same without a cause is a violation; a lost
message, a wrong order always are. A fault explains a late retry until it is over, and a clock that jumped an early
one by as much as it jumped.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from messaging_contracts.faults.copies import Copies
from messaging_contracts.faults.fences import Fences
from messaging_contracts.faults.firsts import Firsts
from messaging_contracts.faults.handlings import Causes, Handling, begin, end, ids_of
from messaging_contracts.faults.history import (
    CLOCK_JUMPED,
    CONCLUDED,
    REMOVED,
    Begun,
    Buried,
    Ended,
    Published,
    Redriven,
    Settled,
    Struck,
)
from messaging_contracts.faults.letters import ROUNDING, Letters
from messaging_contracts.faults.once import repetition
from messaging_contracts.faults.publishes import Publishes
from messaging_contracts.faults.replies import asking
from messaging_contracts.faults.verdict import Verdict
from messaging_contracts.faults.work import Work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from messaging_contracts.faults.history import Event

LATENESS = 60.0
"""Seconds by which a message or its retry may be late where nothing else is said."""


def check(
    events: Iterable[Event],
    *,
    ordered: bool,
    groups: Collection[str] = (),
    tolerance: float = 0.0,
    lateness: float = LATENESS,
    remembers: bool = True,
    answered: bool = False,
    over: float = -inf,
) -> Verdict:
    """Judge one topic's history; `ordered` says what was promised.

    `groups` names those that had to get every message, beside the ones that the history shows. `tolerance`, in
    seconds, is how early a retry may be: two clocks differ. `lateness`, in seconds, is how late it, what was published
    with a delay, or any first handling may be after all faults that may have held it up are over, and their aftermath:
    on a broker that has other work to do. A first handling may wait for all that was sent before it as well.
    `remembers`: the broker keeps how often a message failed; else its member does, and the next one begins anew (2).
    `answered`: requests have the time for their replies, so that only a fault lets one end with an error. `over`: until
    when members were at work, where that is later than the last event: nobody tells of what is dropped as expired.
    """
    return _Check(
        events,
        ordered=ordered,
        groups=groups,
        tolerance=tolerance,
        lateness=lateness,
        remembers=remembers,
        answered=answered,
        over=over,
    ).verdict


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
        if isinstance(event, Ended) and event.how in CONCLUDED:
            done.setdefault(ids[event.handling], event.at)
    results: list[tuple[Struck, float | None]] = []
    for fault in listed:
        if isinstance(fault, Struck):
            since = fault.at if fault.member else fault.over
            waits = [
                done[id] - max(since, at)
                for id, at in confirmed.items()
                if at <= fault.over and done.get(id, -inf) > since
            ]
            results.append((fault, max(waits, default=None)))
    return results


class _Check:
    def __init__(
        self,
        events: Iterable[Event],
        *,
        ordered: bool,
        groups: Collection[str],
        tolerance: float,
        lateness: float,
        remembers: bool,
        answered: bool,
        over: float,
    ) -> None:
        self.verdict = Verdict()
        self._ordered = ordered
        self._tolerance = tolerance
        self._publishes = Publishes(self.verdict, ordered=ordered)
        self._messages = self._publishes.messages
        self._handlings: dict[str, Handling] = {}
        self._causes = Causes(self._messages, ordered=ordered, lateness=lateness)
        self._lateness = lateness
        self._remembers = remembers
        self._letters = Letters(self._causes, tolerance)
        self._removed = -inf
        """Until when what was confirmed may have been deleted."""
        self._alive: dict[str, tuple[int, float]] = {}
        """The last sign of life of each member."""
        listed = list(events)
        self._over = max([over, *(event.at for event in listed)])
        self._read(listed)
        self._judge_idempotency(listed)
        self._judge_requests(listed, answered)
        stored = {one.begun.id for one in self._handlings.values()} | self._letters.ids
        self._publishes.judge(stored)
        seen = {one.begun.group for one in self._handlings.values()} | self._letters.groups
        for group in sorted(seen | set(groups)):
            self._judge(group)
        self.verdict.messages = len(self._messages)
        self.verdict.handlings = len(self._handlings)

    def _judge_idempotency(self, events: Sequence[Event]) -> None:
        found = repetition(events)
        self.verdict.handled_twice = found.handled_twice
        self.verdict.stale_owners = found.stale_owners
        self.verdict.keys_given_up = found.keys_given_up

    def _judge_requests(self, events: Sequence[Event], answered: bool) -> None:
        found = asking(events, self._tolerance, answered=answered)
        self.verdict.unanswered = found.unanswered
        self.verdict.foreign_replies = found.foreign_replies
        self.verdict.undocumented_errors = found.undocumented_errors
        self.verdict.errors_without_cause = found.errors_without_cause
        self.verdict.impossible += found.impossible
        self.verdict.requests = found.requests

    def _read(self, events: Iterable[Event]) -> None:
        for place, event in enumerate(events):
            if isinstance(event, Published):
                self._publishes.told(event)
            elif isinstance(event, Begun):
                if event.handling in self._handlings:
                    self.verdict.impossible.append(
                        f"{event.handling} begins twice, the second time at {event.at}"
                    )
                self._handlings[event.handling] = Handling(event, place)
                self._alive[event.member] = (place, event.at)
            elif isinstance(event, Ended):
                self._ending(event, place)
            elif isinstance(event, Settled):
                self._settling(event, place)
            elif isinstance(event, Struck) and event.kind == CLOCK_JUMPED:
                self._causes.jumped(event)
            elif isinstance(event, Struck):
                if event.kind == REMOVED:
                    self._removed = max(self._removed, event.over)
                self._causes.faults.append(self._died(event) if event.fatal else event)
            elif isinstance(event, Redriven):
                self._publishes.redriven(event)
            elif isinstance(event, Buried):
                self._letters.found(event)

    def _ending(self, event: Ended, place: int) -> None:
        one = self._handlings.get(event.handling)
        if one is None or event.at < one.begun.at:
            self.verdict.impossible.append(f"{event.handling} ends before it begins, at {event.at}")
        if one is None:
            return
        if one.how != "running":
            self.verdict.impossible.append(f"{event.handling} ends twice: {one}, and at {event.at}")
        one.ended(event, place)
        self._alive[one.begun.member] = (place, event.at)

    def _settling(self, event: Settled, place: int) -> None:
        one = self._handlings.get(event.handling)
        if one is None:
            self.verdict.impossible.append(f"{event.handling} is settled before it begins, at {event.at}")
        else:
            one.settled = place

    def _died(self, fault: Struck) -> Struck:
        """Whoever saw the process dead saw it later: what it was handling ended with its last sign of life."""
        place, at = self._alive.get(fault.member or "", (-1, fault.at))
        for one in self._handlings.values():
            if one.begun.member == fault.member and one.how == "running":
                one.last, one.end, one.how = place, at, "died"
        return replace(fault, at=min(at, fault.at), until=fault.at)

    def _judge(self, group: str) -> None:
        by_id = ids_of(one for one in self._handlings.values() if one.begun.group == group)
        self._judge_publishing(group, by_id)
        self._judge_settled(by_id)
        work = Work(by_id, self._messages)
        Firsts(self._causes, work, self._lateness).judge(by_id, self._messages, self.verdict)
        copies = Copies(self._causes, work, self._tolerance, self._lateness, self._remembers)
        lanes: dict[str, list[Handling]] = {}
        for id, handlings in by_id.items():
            way = copies.judge(id, self._messages.get(id), handlings, self.verdict)
            for number, copy in enumerate(way.copies, 1):
                lanes[f"id {id}" + (f" copy {number}" if number > 1 else "")] = list(copy)
        if self._ordered:
            self._judge_order(group, by_id)
            keyed = self._by_key(by_id)
            lanes = {name: lane for name, lane in lanes.items() if lane[0].begun.key is None}
            lanes.update({f"key {key}": lane for key, lane in keyed.items()})
            for key, lane in keyed.items():
                Fences(self._causes, self.verdict).judge(key, lane)
        self._judge_overlaps(lanes)
        self._letters.judge(group, by_id, self._messages, self.verdict)

    @staticmethod
    def _by_key(by_id: Mapping[str, Sequence[Handling]]) -> Mapping[str, list[Handling]]:
        lanes: dict[str, list[Handling]] = defaultdict(list)
        for handlings in by_id.values():
            for one in handlings:
                if one.begun.key is not None:
                    lanes[one.begun.key].append(one)
        for lane in lanes.values():
            lane.sort(key=begin)
        return lanes

    def _judge_publishing(self, group: str, by_id: Mapping[str, Sequence[Handling]]) -> None:
        for id, message in self._messages.items():
            succeeded = any(one.how == "succeeded" for one in by_id.get(id, ()))
            done = succeeded or self._letters.has(group, id)
            if message.confirmed and not done and message.confirmed_at <= self._removed:
                self.verdict.removed += 1
            elif message.confirmed and not done and message.lasts <= self._over:
                self.verdict.expired += 1
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
            elif handlings[0].begun.at < min(known.sent_at, default=-inf):
                self.verdict.phantoms.append(f"{_name(known.sent)} was not sent by then: {handlings[0]}")
            published = known.sent.key, known.sent.sequence
            due = min(known.due, default=-inf)
            if handlings[0].begun.at < due - self._tolerance:
                self.verdict.before_due.append(f"{_name(known.sent)}, due at {due:.3f}: {handlings[0]}")
            for one in handlings:
                if known.expired(
                    one.begun.at - self._tolerance - ROUNDING - self._causes.clocks_apart(one.begun.at)
                ):
                    self.verdict.handled_expired.append(f"{_name(known.sent)}: {one}")
                if (one.begun.key, one.begun.sequence) != published:
                    self.verdict.altered.append(
                        f"{_name(known.sent)}: as {one.begun.key}/{one.begun.sequence}"
                    )

    def _judge_settled(self, by_id: Mapping[str, Sequence[Handling]]) -> None:
        """What the broker has taken does not come again, whatever happens, but to one that had lost it before."""
        for id, handlings in by_id.items():
            message = self._messages.get(id)
            taken = [one for one in handlings if one.concluded and one.settled < inf]
            if not taken or message is None or message.copies > 1:
                continue
            first = min(one.settled for one in taken)
            for one in handlings:
                if one.first > first and not self._causes.of(one, one.begun.at):
                    self.verdict.settled_again.append(f"{id}: {one}")

    def _judge_order(self, group: str, by_id: Mapping[str, Sequence[Handling]]) -> None:
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
                success = min((one for one in handlings if one.concluded), key=end, default=None)
                if self._ambiguous(group, sent.id) or self._letters.given_up(group, sent.id):
                    continue
                if success is not None and success.how == "succeeded" and not self._dropped(success):
                    if success.last < succeeded:
                        self.verdict.successes_out_of_order.append(f"{_name(sent)}, {success}, before {last}")
                    else:
                        succeeded, last = success.last, f"{_name(sent)}, {success}"

    def _done(self, group: str, id: str, handlings: Sequence[Handling]) -> tuple[float, Handling | str]:
        """Where the message was first done with; of one that the guard gave up, where it was last begun."""
        concluded = [one for one in handlings if one.concluded]
        if self._ambiguous(group, id):
            # Not before any of its copies was begun, unless one that was marked to run alone was given up.
            begun = bool(handlings) and not self._causes.named(id)
            return handlings[0].first if begun else -inf, "one of its copies was given up"
        if concluded:
            first = min(concluded, key=end)
            if self._dropped(first):
                return first.first, first
            if self._letters.given_up(group, id) and handlings[-1].first < first.last:
                return handlings[-1].first, handlings[-1]  # who has lost it may still be at it
            return first.last, first
        message = self._messages.get(id)
        if self._letters.has(group, id) and handlings and (message is None or message.copies <= 1):
            return handlings[-1].first, handlings[-1]
        return -inf, "never begun"  # if it is lost, that is told as such

    def _dropped(self, one: Handling) -> bool:
        """Whether it may have been dropped as expired elsewhere, while its member had lost it and was still at it."""
        message = self._messages.get(one.begun.id)
        return message is not None and message.expired(one.end) and bool(self._causes.of(one, one.end))

    def _ambiguous(self, group: str, id: str) -> bool:
        """Published twice, and one of them became a dead letter: which of them a handling was of is not known."""
        message = self._messages.get(id)
        return message is not None and message.copies > 1 and self._letters.has(group, id)

    def _judge_overlaps(self, lanes: Mapping[str, Sequence[Handling]]) -> None:
        for name, lane in lanes.items():
            running: list[Handling] = []
            excused: set[str] = set()
            for one in lane:
                running = [other for other in running if other.last > one.first]
                for other in running:
                    if self._causes.at_once(lane, other, one):
                        excused.add(other.begun.handling)
                    else:
                        self.verdict.overlaps.append(f"{name}: {other} and {one}")
                running.append(one)
            self.verdict.overlaps_after_lost_leases += len(excused)


def _name(sent: Published) -> str:
    return f"{sent.publisher}/{sent.key}/{sent.sequence} ({sent.id})"
