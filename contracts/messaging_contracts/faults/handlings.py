"""What the checker knows of each message and of each time that it was handled, and which faults explain what."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from messaging.adapter import SUSPECT_AFTER
from messaging_contracts.faults.history import CONCLUDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from messaging_contracts.faults.history import Begun, Ended, Published, Struck

STORED = 10.0
"""Seconds after its end in which a handling is settled, and its retry or dead letter stored, unless a fault is there by
then.
"""


@dataclass(slots=True, eq=False)
class Handling:
    """One call of a handler."""

    begun: Begun
    first: int
    """Where in the history it began: more exact than its time."""
    last: float = inf
    """Where it ended."""
    end: float = inf
    how: str = "running"
    after: float = 0.0
    settled: float = inf
    """Where its program was told that the broker has taken its outcome."""

    @property
    def concluded(self) -> bool:
        """Whether its handler was done with the message."""
        return self.how in CONCLUDED

    def ended(self, event: Ended, place: int) -> None:
        """Its handler has ended, at this place of the history."""
        self.last, self.end, self.how, self.after = place, event.at, event.how, event.after

    def __str__(self) -> str:
        one = self.begun
        token = f" with token {one.token}" if one.token else ""
        return f"{one.member} attempt {one.attempt}{token} [{one.at:.3f}, {self.end:.3f}] {self.how}"


@dataclass(slots=True)
class Message:
    """What publishers know of one message."""

    sent: Published
    confirmed: bool = False
    confirmed_at: float = inf
    uncertain: bool = False
    failed: bool = False
    sent_at: list[float] = field(default_factory=list[float])
    """When each copy was sent that the broker may have: that was not told to have failed."""
    due: list[float] = field(default_factory=list[float])
    """When these copies are due; the earliest counts."""
    expires: list[float] = field(default_factory=list[float])
    """When they expire."""
    lasts: float = -inf
    """When the last of them expires that was confirmed."""
    redriven_at: list[float] = field(default_factory=list[float])
    """When its dead letters were redriven, each as another copy."""
    under_way: int = 0
    """How often it was sent without being told what became of it."""

    @property
    def copies(self) -> int:
        """How many the broker may have."""
        return len(self.sent_at)

    def copies_by(self, at: float) -> int:
        """How many it may have had by then; one at least, for what nobody sent is told as such."""
        return max(1, sum(one <= at for one in self.sent_at))

    def redriven_by(self, at: float) -> int:
        """How many of these copies come of its dead letters."""
        return sum(one <= at for one in self.redriven_at)

    def expired(self, at: float) -> bool:
        """Whether all of them had expired by then."""
        return max(self.expires, default=inf) <= at

    def due_by(self, at: float) -> float:
        """When the last copy was sent, and due, that it may have had by then; -inf: none."""
        return max(
            (max(sent, due) for sent, due in zip(self.sent_at, self.due, strict=True) if sent <= at),
            default=-inf,
        )


class Causes:
    """The faults of a history, and the jumps of clocks, as causes of what is handled again, late or early.

    `lateness`: how late, in seconds, what follows from them may come once all have noticed them.
    """

    def __init__(self, messages: Mapping[str, Message], *, ordered: bool, lateness: float) -> None:
        self.faults: list[Struck] = []
        self._jumps: list[Struck] = []
        self._messages = messages
        self._ordered = ordered
        self._lateness = lateness

    def jumped(self, jump: Struck) -> None:
        """A clock jumped."""
        self._jumps.append(jump)

    def clocks_apart(self, at: float) -> float:
        """By how many seconds two clocks may have differed up to then; what waits by one may be judged by another."""
        ahead: dict[str | None, float] = {}
        highest = lowest = 0.0
        for jump in self._jumps:
            if jump.at <= at:
                ahead[jump.member] = ahead.get(jump.member, 0.0) + jump.seconds
                highest, lowest = max(highest, ahead[jump.member]), min(lowest, ahead[jump.member])
        return highest - lowest

    def jumped_by(self, at: float) -> bool:
        """Whether any clock had jumped by then."""
        return any(jump.at <= at for jump in self._jumps)

    def of(self, former: Handling, at: float, *, hand_over: bool = False) -> Sequence[Struck]:
        """The faults that hit the member of this handling, or the broker, between its begin and `at`.

        `hand_over`: or any member. Partitions move then, and some brokers do not know what their owner counted (2).
        """
        return [
            fault
            for fault in self.faults
            if (hand_over or fault.member in {None, former.begun.member})
            and (fault.ids is None or former.begun.id in fault.ids)
            and fault.at <= at
            and fault.noticed >= former.begun.at
        ]

    def at_once(self, lane: Iterable[Handling], other: Handling, one: Handling) -> bool:
        """Whether `one` of this lane may begin while `other` runs: one of their members has lost it and may not know
        that yet, or the message is there twice.
        """
        at = one.begun.at
        if self.of(other, at) or self.of(one, at):
            return True
        if other.begun.id != one.begun.id:
            return False
        formers = [former for former in lane if former.begun.id == one.begun.id and former.first < one.first]
        return self.stored_again(formers, one) or (
            not self._ordered
            and (self.beside_its_retry(formers, other, one) or self.marked_twice(formers, one))
        )

    def stored_again(self, formers: Sequence[Handling], one: Handling) -> bool:
        """Whether a failure's retry may be there once more, since a fault hit its member while it was stored: sent
        again for its fate was unknown, or late, after another member's.
        """
        attempt = one.begun.attempt
        failures = [
            other
            for other in formers
            if other.how == "failed"
            and other.begun.attempt == attempt - 1
            and self.of(other, min(one.begun.at, other.end + STORED))
        ]
        return sum(other.begun.attempt == attempt for other in formers) < 2 * len(failures)

    def beside_its_retry(self, formers: Iterable[Handling], other: Handling, one: Handling) -> bool:
        """Whether these may be a failed handling that comes again, for a fault hit its member while it was settled, and
        the retry of it that was stored already.
        """
        lower, higher = sorted((other.begun.attempt, one.begun.attempt))
        return higher == lower + 1 and any(
            former.how == "failed"
            and former.begun.attempt == lower
            and self.of(former, min(one.begun.at, former.end + STORED))
            for former in formers
        )

    def marked_twice(self, formers: Sequence[Handling], one: Handling) -> bool:
        """Whether it may be the other copy of a suspect: without order the mark is a copy on some brokers, and a member
        may die of something else after it stored that and before it settled the original (3).

        Then members died as often as makes a suspect of it, who may have had it without beginning it, and the one that
        marked it; and the first copy came soon after.
        """
        first = formers[-1].begun.at
        deaths = self.deaths(one.begun.id, first)
        done = sum(
            other.begun.attempt == one.begun.attempt and (other.concluded or other.last > one.first)
            for other in formers
        )
        return (
            not self._ordered
            and len(deaths) > SUSPECT_AFTER
            and first <= max(fault.noticed for fault in deaths) + self._lateness
            and done == 1
        )

    def deaths(self, id: str, at: float) -> Sequence[Struck]:
        """The members that ended since this message was sent, up to then."""
        return [fault for fault in self.losses(id, at) if fault.fatal]

    def losses(self, id: str, at: float) -> Sequence[Struck]:
        """These, and what else is known to have taken this message from a member."""
        message = self._messages.get(id)
        since = inf if message is None else message.sent.at
        return [
            fault
            for fault in self.faults
            if (fault.fatal or (fault.ids is not None and id in fault.ids))
            and fault.at <= at
            and fault.over >= since
        ]

    def over(self, former: Handling, at: float) -> float:
        """Until when faults may have held up what was to follow this handling."""
        held_up = (fault for fault in self.faults if fault.ids == () and former.begun.at <= fault.noticed)
        return max(
            (fault.noticed for fault in (*self.of(former, at, hand_over=True), *held_up) if fault.at <= at),
            default=-inf,
        )

    def over_for_all(self, since: float, at: float) -> float:
        """Until when faults may have held up anything that was there since then."""
        return max(
            (one.noticed for one in self.faults if one.at <= at and one.noticed >= since), default=-inf
        )

    def named(self, id: str) -> bool:
        """Whether a fault is known to have hit this message."""
        return any(fault.ids is not None and id in fault.ids for fault in self.faults)


def ids_of(handlings: Iterable[Handling]) -> dict[str, list[Handling]]:
    """The handlings of each message, in the order in which they began."""
    by_id: dict[str, list[Handling]] = {}
    for one in sorted(handlings, key=begin):
        by_id.setdefault(one.begun.id, []).append(one)
    return by_id


def begin(one: Handling) -> float:
    return one.first


def end(one: Handling) -> float:
    return one.last
