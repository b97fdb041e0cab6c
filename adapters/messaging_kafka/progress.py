"""How far a group is in one partition: a contiguous watermark, and what is unfinished or done above it.

Handlers finish out of order. The offset that is committed is that of the first unfinished record; the metadata beside
it, at most 4096 characters, names the high mark, the unfinished records below it, and what is known of each: recorded
failures, returns without one, the mark of the crash guard. So a new owner repeats only what was under way.

What a dead member had in its hands is known only as far as it was committed. After a crash the possible range counts as
returned once, and from then on what is handed out is committed first, until the watermark has left that range (3).
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from messaging_kafka.broker_time import Moment
from messaging_kafka.brokers import Committed

if TYPE_CHECKING:
    from messaging.adapter import RawDelivery

METADATA_LIMIT = 4096
"""Characters: `offset.metadata.max.bytes` of the broker."""
SUSPECT_RANGE = 2000
"""Records beyond the known ones that a member that died may have had: its window and its prefetch."""
DUE_UNITS = 100
"""Of a second, in which delays are kept."""
COARSER = (1, 10, 100, 800, 6400)
"""Of these units: where there is no room for exact delays, they are rounded up before anything is forgotten."""
VERSION = "3"
UNDATED = "2"
"""The version before: it does not say when it was committed."""
START = Moment(0.0, 0.0)
_HEAD_BYTES = 64
_PLAIN, _ALIKE, _OTHER = range(3)


@dataclass(slots=True)
class Entry:
    """A record that is not finished."""

    attempt: int = 1
    returns: int = 0
    alone: bool = False
    """The mark of the crash guard is set."""
    due: float = 0.0
    """When it may run again, in monotonic seconds: a retry that is held."""
    delivery: RawDelivery | None = None
    """What was handed over, or waits to be."""


@dataclass(slots=True)
class Progress:
    """One partition while it is owned. Its state is this member's alone."""

    high: int
    """One beyond the last record that was read."""
    unfinished: dict[int, Entry] = field(default_factory=dict[int, Entry])
    """By offset, rising."""
    expected: deque[int] = field(default_factory=deque[int])
    """Of the unfinished, those that a former owner left and that were not read yet."""
    done_below: int = 0
    """Records below this that are not among the unfinished are done: a former owner finished them."""
    returns: int = 0
    """How often the records from `suspect_from` to `suspect_until` may have been handed to a member that died."""
    suspect_from: int = 0
    suspect_until: int = 0
    coarse: int = 0
    """Which of the units there was room for at the last commit."""
    crowded: bool = False
    """Not all that is unfinished had room at the last commit."""
    shrunk: bool = False
    """Something that was unfinished is there no more, since that was last asked for."""

    @property
    def watermark(self) -> int:
        """Everything below is done."""
        return next(iter(self.unfinished), max(self.high, self.done_below))

    @property
    def full(self) -> bool:
        """Nothing new must be read: the next owner would not know of it. What a former one left is read."""
        return self.crowded and not self.expected

    @property
    def careful(self) -> bool:
        """What is handed out must be committed first."""
        return self.returns > 0 and self.watermark < self.suspect_until

    def take(self, offset: int) -> Entry | None:
        """A record was read: its entry, or None where it is done already."""
        expected = self.expected
        while expected and expected[0] <= offset:
            # What was skipped was deleted from the partition: nobody can handle it any more.
            if (skipped := expected.popleft()) != offset:
                del self.unfinished[skipped]
                self.shrunk = True
        entry = self.unfinished.get(offset)
        if entry is not None:
            self.high = max(self.high, offset + 1)
            return entry if entry.delivery is None else None
        if offset < self.high or offset < self.done_below:
            self.high = max(self.high, offset + 1)
            return None
        self.high = offset + 1
        entry = Entry()
        if self.suspect_from <= offset < self.suspect_until:
            entry.returns = self.returns
        self.unfinished[offset] = entry
        return entry

    def passed(self, position: int) -> bool:
        """All before `position` was read or is there no more, marks of transactions too, which are no records; whether
        that is news, which nobody's settlement tells.
        """
        while self.expected and self.expected[0] < position:
            del self.unfinished[self.expected.popleft()]
            self.shrunk = True
        news, self.shrunk = self.shrunk, False
        if position <= max(self.high, self.done_below):
            return news
        self.high = position
        return True

    def undone(self, start: int, end: int) -> int:
        """How many of the records from `start` to before `end`, none of which was read yet, are not done."""
        left = sum(start <= offset < end for offset in self.expected)
        return left + max(0, end - max(start, self.high, self.done_below))

    def finish(self, offset: int) -> None:
        """The record is done."""
        entry = self.unfinished.pop(offset, None)
        if entry is not None:
            # It holds the entry too: only the garbage collector would free both.
            entry.delivery = None

    def committed(
        self, *, leaving: bool = False, limit: int = METADATA_LIMIT, moment: Moment = START
    ) -> Committed:
        """What to commit at a moment, with so many characters of metadata at most.

        `leaving`: handed over in peace, so that what is unfinished has not returned.
        """
        watermark = self.watermark
        if not limit:
            self.crowded = bool(self.unfinished)
            return Committed(watermark)
        return Committed(watermark, _encode(self, watermark, limit, moment, leaving=leaving))


def resume(position: Committed, moment: Moment = START) -> Progress:
    """The progress of a new owner, from what was committed last; what is unreadable counts as nothing known.

    A commit that seems to come from after this moment was made by a clock that is ahead: what was left of delays then
    is left now.
    """
    offset = position.offset
    try:
        return _decode(offset, position.metadata, moment)
    except (ValueError, IndexError):
        return Progress(high=offset, done_below=offset)


def left(position: Committed, end: int) -> int:
    """How many records before `end` are not done, by what was committed last; gaps count as records."""
    progress = resume(position)
    return len(progress.unfinished) + max(0, end - progress.done_below)


def _encode(progress: Progress, watermark: int, limit: int, moment: Moment, *, leaving: bool) -> str:
    """Fields as variable-length integers."""
    most = max(0, (limit - 8) // 4 * 3 - _HEAD_BYTES)
    while True:
        unit = COARSER[progress.coarse]
        entries, start, forgotten = _entries(progress, watermark, unit, most, moment.ahead, leaving=leaving)
        if forgotten is None or unit == COARSER[-1]:
            break
        progress.coarse += 1
    if progress.coarse and len(entries) < most // 2:
        progress.coarse -= 1
    progress.crowded = forgotten is not None
    known = max(progress.high, progress.done_below) if forgotten is None else forgotten
    returns = progress.returns if progress.suspect_until > watermark else 0
    body = bytearray()
    _put(body, COARSER.index(unit) << 1 | leaving)
    _put(body, start)
    _put(body, int(moment.now * DUE_UNITS) if start else 0)
    _put(body, max(0, known - watermark))
    _put(body, returns)
    if returns:
        _put(body, max(0, progress.suspect_from - watermark))
        _put(body, max(0, progress.suspect_until - watermark))
    return VERSION + urlsafe_b64encode(bytes(body + entries)).decode().rstrip("=")


def _entries(
    progress: Progress, watermark: int, unit: int, most: int, epoch: float, *, leaving: bool
) -> tuple[bytearray, int, int | None]:
    """The unfinished records in `most` bytes; the first delay; the first record that has no room, or None.

    A record is its distance from the former, what is special about it where that is not as with the former special one,
    and its delay as a difference. What has no room is forgotten, and handled again by the next owner.
    """
    entries = bytearray()
    previous, marks, start, due = watermark, 0, 0, 0
    for offset, entry in progress.unfinished.items():
        part = bytearray()
        alone = entry.alone and not leaving
        now = (entry.attempt - 1) << 2 | (entry.returns > 0) << 1 | alone
        if not now:
            _put(part, (offset - previous) << 2 | _PLAIN)
        elif now == marks and not entry.returns:
            _put(part, (offset - previous) << 2 | _ALIKE)
        else:
            _put(part, (offset - previous) << 2 | _OTHER)
            _put(part, now)
            if entry.returns:
                _put(part, entry.returns)
        units = 0
        if now and entry.due:
            units = max(1, ceil(((entry.due + epoch) * DUE_UNITS - 0.001) / unit))  # 0: no delay
            difference = units - (due or units)
            _put(part, (difference << 1 if difference >= 0 else -difference << 1 | 1) + 1)
        elif now:
            _put(part, 0)
        if len(entries) + len(part) > most:
            return entries, start, offset
        entries += part
        previous, marks = offset, now or marks
        if units:
            start, due = start or units, units
    return entries, start, None


def _decode(watermark: int, text: str, moment: Moment) -> Progress:
    if not text:
        return Progress(high=watermark, done_below=watermark)
    if text[0] not in (VERSION, UNDATED):
        raise ValueError(text[:1])
    raw = urlsafe_b64decode(text[1:] + "=" * (-len(text[1:]) % 4))
    at = 0
    head, at = _get(raw, at)
    left, unit = head & 1, COARSER[head >> 1]
    due, at = _get(raw, at)
    written = 0
    if text[0] != UNDATED:
        written, at = _get(raw, at)
    epoch = moment.ahead + max(0.0, written / DUE_UNITS - moment.now)
    ahead, at = _get(raw, at)
    returns, at = _get(raw, at)
    suspect_from = suspect_until = watermark
    if returns:
        start, at = _get(raw, at)
        end, at = _get(raw, at)
        suspect_from, suspect_until = watermark + start, watermark + end
    crashed = not left
    careful = returns > 0
    progress = Progress(high=watermark, done_below=watermark + ahead)
    offset, marks = watermark, 0
    while at < len(raw):
        head, at = _get(raw, at)
        offset += head >> 2
        kind = head & 3
        entry = Entry()
        if kind == _OTHER:
            marks, at = _get(raw, at)
            if marks & 2:
                entry.returns, at = _get(raw, at)
        if kind != _PLAIN:
            entry.attempt, entry.alone = (marks >> 2) + 1, bool(marks & 1)
            difference, at = _get(raw, at)
            if difference:
                difference -= 1
                due += -(difference >> 1) if difference & 1 else difference >> 1
                entry.due = due * unit / DUE_UNITS - epoch
        entry.returns += crashed
        progress.unfinished[offset] = entry
        progress.expected.append(offset)
    progress.returns, progress.suspect_from, progress.suspect_until = returns, suspect_from, suspect_until
    if crashed and not careful:
        progress.returns = 1
        progress.suspect_from = progress.done_below
        progress.suspect_until = progress.done_below + SUSPECT_RANGE
    return progress


def _put(into: bytearray, value: int) -> None:
    while value > 0x7F:
        into.append(value & 0x7F | 0x80)
        value >>= 7
    into.append(value)


def _get(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
