"""One partition that is read: what a broker sent of it lies here unparsed; batches are parsed when needed."""

from __future__ import annotations

from collections import deque
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any

from messaging_kafka import library
from messaging_kafka.library import Errors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from messaging_kafka.library import Place

ANSWERS = 2
"""Answers of a partition that may lie here: one that is being read, one that comes meanwhile."""


class Source:
    """One partition that is read, from `position` on; its reader says how many of a range are `undone`."""

    def __init__(self, place: Place, position: int, undone: Callable[[int, int], int] | None = None) -> None:
        self.place = place
        self.undone = undone or _all
        self.position = position
        """Of the next record that is read here."""
        self.asked = position
        """Of the next record that is fetched."""
        self.end = -1
        """One beyond the last record that the broker had when it last answered; -1 before."""
        self.heard = 0
        """How many answers came."""
        self.topic_id: bytes | None = None
        """Of the topic that the position is of; None before it is asked for."""
        self.broken: int | None = None
        """Where another log begins than the one that the position is of. Nothing more is asked for until somebody
        rewinds.
        """
        self.caught_up = -inf
        """What was not fetched yet came after this time, in monotonic seconds: nothing was left then."""
        self.kept = (-inf, inf)
        """When what was read last was kept, in monotonic seconds: not before the one, not after the other."""
        self._answers: deque[Generator[Any]] = deque()
        self._head: Any = None

    @property
    def hungry(self) -> bool:
        return self.broken is None and len(self._answers) < ANSWERS

    @property
    def waiting(self) -> bool:
        """Whether there may be something to read here."""
        return self._head is not None or bool(self._answers)

    def read(self, limit: int) -> list[Any]:
        """Up to `limit` records, in order."""
        found: list[Any] = []
        if self._head is not None and limit > 0:
            found.append(self._head)
            self._head = None
        while self._answers and len(found) < limit:
            wanted = limit - len(found)
            some = list(islice(self._answers[0], wanted))
            found += some
            if len(some) < wanted:
                self._answers.popleft()
        return found

    def head(self) -> Any:
        """The next record, which stays; None where there is none."""
        if self._head is None:
            found = self.read(1)
            self._head = found[0] if found else None
        return self._head

    def rewind(self, position: int) -> None:
        """Go on elsewhere; what lies here is forgotten."""
        self._answers.clear()
        self._head = None
        if self.broken is not None:
            self.topic_id = self.broken = None
        self.caught_up = -inf
        self.position = self.asked = position

    def skip(self, first: int) -> None:
        """What is not fetched yet before `first` is there no more."""
        self._answers.append(self._skipped(first))
        self.asked = first

    def _skipped(self, first: int) -> Generator[Any]:
        self.position = max(self.position, first)
        yield from ()

    def answered(self, raw: bytes, aborted: Any, kept: tuple[float, float] = (-inf, inf)) -> Any:
        """Keep what the broker sent from `asked` on; the last batch of it, None where there is none."""
        batches: list[Any] = []
        records = library.Batches(raw)
        while records.has_next():
            batches.append(records.next_batch())
        if not batches:
            return None
        last = batches[-1]
        self._answers.append(self._parse(raw, batches, sorted(aborted or (), key=lambda one: one[1]), kept))
        self.asked = max(self.asked, last.next_offset)
        return last

    def _parse(
        self, raw: bytes, batches: list[Any], aborted: list[tuple[int, int]], kept: tuple[float, float]
    ) -> Generator[Any]:
        """The records of committed transactions, and of none."""
        self.kept = kept
        broken: set[int] = set()
        for number, batch in enumerate(batches):
            if not batch.validate_crc():
                raise Errors.CorruptRecordException(f"invalid checksum at {batch.base_offset}")
            while aborted and aborted[0][1] <= batch.base_offset:
                broken.add(aborted.pop(0)[0])
            if batch.is_control_batch:
                broken.discard(batch.producer_id)
            elif not (batch.is_transactional and batch.producer_id in broken):
                start, record = self.position, None
                try:
                    for record in batch:
                        if record.offset >= start:
                            yield record
                except UnicodeDecodeError:  # the name of a header; of what is before it, some was yielded
                    start = start if record is None else max(start, record.offset + 1)
                    for record in library.lenient(raw, number):
                        if record.offset >= start:
                            yield record
            self.position = max(self.position, batch.next_offset)


def _all(start: int, end: int) -> int:
    return end - start
