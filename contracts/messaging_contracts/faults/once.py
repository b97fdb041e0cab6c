"""What a history says of idempotency (23): each message is handled to its end once by an owner whose token is valid.

Pure. A store that was not reached in time is a cause: a member that cannot extend its lease loses it, and a success
that cannot be stored is not known.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from messaging_contracts.faults.handlings import Handling
from messaging_contracts.faults.history import Begun, Ended, Kept, Struck

if TYPE_CHECKING:
    from collections.abc import Iterable

    from messaging_contracts.faults.history import Event


@dataclass(slots=True)
class Repetition:
    """Violations, one line each."""

    handled_twice: list[str] = field(default_factory=list[str])
    """Begun after it was done with, and nothing had kept that from being stored."""
    stale_owners: list[str] = field(default_factory=list[str])
    """Begun, or stored as done, by one whose token had been overtaken; or begun twice with one token."""
    keys_given_up: list[str] = field(default_factory=list[str])
    """Taken over while its owner ran its handler and could reach the store."""


@dataclass(slots=True)
class _Story:
    """What happened to one message in one group, by its place in the history."""

    runs: list[Handling] = field(default_factory=list[Handling])
    kept: list[tuple[int, Kept]] = field(default_factory=list[tuple[int, Kept]])

    def missed(self, run: Handling, before: float) -> bool:
        """Whether its owner could not reach the store about it since it took the key."""
        since = min((at for at, one in self.kept if one.token == run.begun.token), default=run.first)
        return any(
            since < at < before
            for at, one in self.kept
            if one.how == "missed" and one.member == run.begun.member
        )

    def overtaken(self, token: int, before: float) -> bool:
        return any(one.how == "taken" and one.token > token and at < before for at, one in self.kept)


def repetition(events: Iterable[Event]) -> Repetition:
    """Judge the groups that are idempotent: those of which the history tells what a store kept."""
    stories: dict[tuple[str, str], _Story] = defaultdict(_Story)
    running: dict[str, Handling] = {}
    deaths: dict[str, float] = {}
    for place, event in enumerate(events):
        if isinstance(event, Begun) and event.token:
            run = running[event.handling] = Handling(event, place)
            stories[event.group, event.id].runs.append(run)
        elif isinstance(event, Ended) and event.handling in running:
            running[event.handling].ended(event, place)
        elif isinstance(event, Kept):
            stories[event.group, event.id].kept.append((place, event))
        elif isinstance(event, Struck) and event.fatal:
            deaths[event.member or ""] = place
    found = Repetition()
    for (_, id), story in stories.items():
        _judge(id, story, deaths, found)
    return found


def _judge(id: str, story: _Story, deaths: dict[str, float], found: Repetition) -> None:
    done = min((at for at, one in story.kept if one.how == "done"), default=inf)
    for at, one in story.kept:
        if one.how == "done" and story.overtaken(one.token, at):
            found.stale_owners.append(
                f"{id}: done by {one.member} with token {one.token}, which was overtaken"
            )
    for number, run in enumerate(story.runs):
        if story.overtaken(run.begun.token, run.first):
            found.stale_owners.append(f"{id}: begun by {run}, which was overtaken")
        if run.first > done:
            found.handled_twice.append(f"{id}: begun by {run}, after the store had it as done")
        for former in story.runs[:number]:
            death = deaths.get(former.begun.member, inf)
            if former.begun.token == run.begun.token:
                found.stale_owners.append(f"{id}: begun by {former} and {run}")
            elif former.last < run.first < done and former.how == "succeeded":
                valid = not story.overtaken(former.begun.token, former.last)
                if valid and death > run.first and not story.missed(former, run.first):
                    found.handled_twice.append(f"{id}: begun by {run} after {former}")
            elif former.last > run.first and death > run.first and not story.missed(former, run.first):
                found.keys_given_up.append(f"{id}: begun by {run} while {former} ran")
