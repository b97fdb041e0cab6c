"""Histories that are made up, for tests of the checker."""

from __future__ import annotations

from itertools import count

from messaging_contracts.faults import Begun, Buried, Ended, Event, Published, Struck, check
from messaging_contracts.faults.history import CLOCK_JUMPED, End, Fate

GROUP = "billing"


class Story:
    """A history that is told step by step: one second passes with each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.at = 0.0
        self._names = count()

    def pass_time(self, seconds: float) -> None:
        self.at += seconds

    def published(
        self,
        id: str,
        *,
        fate: Fate = "confirmed",
        key: str | None = "k",
        sequence: int = 0,
        delay: float | None = None,
        lasts: float | None = None,
    ) -> None:
        due = None if delay is None else self.at + delay
        expires = None if lasts is None else self.at + lasts
        for step in ("sent", fate):
            self.told(id, step, key=key, sequence=sequence, due=due, expires=expires)

    def told(
        self,
        id: str,
        fate: Fate,
        *,
        key: str | None = "k",
        sequence: int = 0,
        due: float | None = None,
        expires: float | None = None,
    ) -> None:
        self.pass_time(1)
        self.events.append(
            Published(
                at=self.at,
                fate=fate,
                id=id,
                key=key,
                sequence=sequence,
                publisher="p",
                due=due,
                expires=expires,
            )
        )

    def begun(
        self,
        id: str,
        *,
        member: str = "a",
        attempt: int = 1,
        sequence: int = 0,
        key: str | None = "k",
        fence: int = 0,
    ) -> str:
        self.pass_time(1)
        name = str(next(self._names))
        self.events.append(
            Begun(
                at=self.at,
                handling=name,
                id=id,
                group=GROUP,
                member=member,
                key=key,
                sequence=sequence,
                attempt=attempt,
                fence=fence,
            )
        )
        return name

    def ended(self, name: str, how: End = "succeeded", after: float = 0.0) -> None:
        self.pass_time(1)
        self.events.append(Ended(at=self.at, handling=name, how=how, after=after))

    def handled(self, id: str, how: End = "succeeded", *, after: float = 0.0, **begun) -> None:
        self.ended(self.begun(id, **begun), how, after)

    def struck(
        self,
        member: str | None = "a",
        *,
        fatal: bool = False,
        lasts: float = 0.0,
        kind: str = "fault",
        ids: tuple[str, ...] | None = None,
    ) -> None:
        self.pass_time(1)
        until = self.at + lasts if lasts else None
        self.events.append(Struck(at=self.at, kind=kind, member=member, fatal=fatal, until=until, ids=ids))

    def died_with(self, id: str, members: str = "xyz") -> None:
        """Members that may have had this message end, without beginning it."""
        for member in members:
            self.struck(member, fatal=True, ids=(id,))

    def clock_jumped(self, seconds: float, member: str = "a") -> None:
        self.pass_time(1)
        self.events.append(Struck(at=self.at, kind=CLOCK_JUMPED, member=member, seconds=seconds))

    def buried(
        self,
        id: str,
        *,
        reason="broken",
        cause: str | None = "rejected",
        attempts=1,
        look: int = 1,
        failed_at: float | None = None,
    ) -> None:
        last = max((event.at for event in self.events if isinstance(event, Ended)), default=self.at)
        self.events.append(
            Buried(
                at=self.at,
                id=id,
                group=GROUP,
                reason=reason,
                cause=cause,
                attempts=attempts,
                failed_at=last if failed_at is None else failed_at,
                look=look,
            )
        )

    def verdict(self, *, ordered: bool = True):
        return check(self.events, ordered=ordered, groups=[GROUP])
