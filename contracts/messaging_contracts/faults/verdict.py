"""The verdict on a history: the violations, and what was allowed, counted."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import inf

SHOWN = 10
"""Violations of one kind that an error's text shows."""


@dataclass(slots=True)
class Verdict:
    """Violations, one line each, by kind; then what was allowed, counted."""

    impossible: list[str] = field(default_factory=list[str])
    """No history: a handling that begins or ends twice, that ends or is settled before it begins; a publish that is
    told what became of it before it is sent, or twice. Whoever wrote it down is wrong.
    """
    lost: list[str] = field(default_factory=list[str])
    """Confirmed, and neither handled with success nor a dead letter."""
    phantoms: list[str] = field(default_factory=list[str])
    """Handled, although nobody had sent it by then or its publisher was told that the broker does not have it."""
    overtook_failed: list[str] = field(default_factory=list[str])
    """Stored, although a message that was called before with its key failed while this one was under way (7)."""
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
    late_retries: list[str] = field(default_factory=list[str])
    late_firsts: list[str] = field(default_factory=list[str])
    """First handled long after it was due, while no fault and nothing that was sent before it held it up."""
    fences_went_back: list[str] = field(default_factory=list[str])
    """Of one key: begun with a fence that is not larger than the one of an owner before it (9)."""
    before_due: list[str] = field(default_factory=list[str])
    """Handled before the delay was over with which it was published."""
    handled_expired: list[str] = field(default_factory=list[str])
    """Begun when its time was over (6)."""
    bare_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters without reason, cause, attempts or time."""
    innocent_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters that no handler rejected and with which no member was lost."""
    miscounted_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters that tell of other attempts than there were."""
    misdated_dead_letters: list[str] = field(default_factory=list[str])
    """Dead letters that failed at a time when they cannot have."""
    repeated_dead_letters: list[str] = field(default_factory=list[str])
    """More dead letters of one message than copies of it, handlings that rejected it and faults explain."""
    settled_again: list[str] = field(default_factory=list[str])
    """Handled again after the program that settles by hand was told that the broker has taken it."""
    handled_twice: list[str] = field(default_factory=list[str])
    """Of an idempotent group; for these three see `faults.once`."""
    stale_owners: list[str] = field(default_factory=list[str])
    keys_given_up: list[str] = field(default_factory=list[str])
    unanswered: list[str] = field(default_factory=list[str])
    """Requests that did not end, or not in time; for these four see `faults.replies`."""
    foreign_replies: list[str] = field(default_factory=list[str])
    undocumented_errors: list[str] = field(default_factory=list[str])
    errors_without_cause: list[str] = field(default_factory=list[str])

    messages: int = 0
    requests: int = 0
    handlings: int = 0
    duplicates: int = 0
    """Handled again because of a fault, or because they were published again after an unknown fate; not where the
    first handler was interrupted.
    """
    overlaps_after_lost_leases: int = 0
    undercounted: int = 0
    """Attempts that a fault kept from being counted."""
    stale_fences: int = 0
    """Begun with a former owner's fence by a member that had lost the key to a fault, or after a clock jumped."""
    latest_retry: float = 0.0
    """By how many seconds the latest retry was late, after the faults that may have held it up."""
    dead_letters: int = 0
    """Messages that became one."""
    duplicate_dead_letters: int = 0
    """Dead letters beside the first of the same message."""
    expired: int = 0
    """Never done with before they expired."""
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
        """Raises AssertionError that names every kind of violation, and more than so many duplicates,
        of handlings or of dead letters.
        """
        told = [
            f"{len(lines)} {name.replace('_', ' ')}:\n  " + "\n  ".join(lines[:SHOWN])
            for name, lines in self.violations.items()
        ]
        if self.duplicates > duplicates:
            told.append(f"{self.duplicates} duplicates, {duplicates:g} are allowed")
        if self.duplicate_dead_letters > duplicates:
            told.append(
                f"{self.duplicate_dead_letters} duplicates of dead letters, {duplicates:g} are allowed"
            )
        if told:
            raise AssertionError("\n".join(told))
