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

from messaging_kafka.brokers import Committed

if TYPE_CHECKING:
    from messaging.adapter import RawDelivery

METADATA_LIMIT = 4096
"""Characters: `offset.metadata.max.bytes` of the broker."""
SUSPECT_RANGE = 2000
"""Records beyond the known ones that a member that died may have had: its window and its prefetch."""
DUE_UNITS = 100
"""Of a second."""
VERSION = "1"
_MOST_BYTES = (METADATA_LIMIT - 8) // 4 * 3


@dataclass(slots=True)
class Entry:
    """A record that is not finished."""

    attempt: int = 1
    returns: int = 0
    alone: bool = False
    """The mark of the crash guard is set."""
    due: float = 0.0
    """When it may run again, seconds since the epoch: a retry that is held."""
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

    @property
    def watermark(self) -> int:
        """Everything below is done."""
        return next(iter(self.unfinished), max(self.high, self.done_below))

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

    def finish(self, offset: int) -> None:
        """The record is done."""
        self.unfinished.pop(offset, None)

    def committed(self, *, leaving: bool = False) -> Committed:
        """What to commit now. `leaving`: handed over in peace, so that what is unfinished has not returned."""
        watermark = self.watermark
        return Committed(watermark, _encode(self, watermark, leaving=leaving))


def resume(position: Committed) -> Progress:
    """The progress of a new owner, from what was committed last; what is unreadable counts as nothing known."""
    offset = position.offset
    try:
        return _decode(offset, position.metadata)
    except (ValueError, IndexError):
        return Progress(high=offset, done_below=offset)


def left(position: Committed, end: int) -> int:
    """How many records before `end` are not done, by what was committed last; gaps count as records."""
    progress = resume(position)
    return len(progress.unfinished) + max(0, end - progress.done_below)


def _encode(progress: Progress, watermark: int, *, leaving: bool) -> str:
    """Fields as variable-length integers; a record with nothing special takes the bytes of its distance."""
    returns = progress.returns if progress.suspect_until > watermark else 0
    body = bytearray()
    known = max(progress.high, progress.done_below)
    tail = bytearray()
    previous = watermark
    first_due = min(
        (ceil(entry.due * DUE_UNITS) for entry in progress.unfinished.values() if entry.due), default=0
    )
    for offset, entry in progress.unfinished.items():
        part = bytearray()
        alone = entry.alone and not leaving
        plain = entry.attempt == 1 and not entry.returns and not alone
        _put(part, (offset - previous) << 1 | (not plain))
        if not plain:
            _put(part, entry.attempt)
            _put(part, entry.returns << 1 | alone)
            _put(part, ceil(entry.due * DUE_UNITS) - first_due + 1 if entry.due else 0)
        if len(tail) + len(part) + 64 > _MOST_BYTES:
            known = offset  # what lies beyond is forgotten, and handled again by the next owner
            break
        tail += part
        previous = offset
    _put(body, int(leaving))
    _put(body, first_due)
    _put(body, max(0, known - watermark))
    _put(body, returns)
    if returns:
        _put(body, max(0, progress.suspect_from - watermark))
        _put(body, max(0, progress.suspect_until - watermark))
    return VERSION + urlsafe_b64encode(bytes(body + tail)).decode().rstrip("=")


def _decode(watermark: int, text: str) -> Progress:
    if not text:
        return Progress(high=watermark, done_below=watermark)
    if text[0] != VERSION:
        raise ValueError(text[:1])
    raw = urlsafe_b64decode(text[1:] + "=" * (-len(text[1:]) % 4))
    at = 0
    left, at = _get(raw, at)
    first_due, at = _get(raw, at)
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
    offset = watermark
    while at < len(raw):
        head, at = _get(raw, at)
        offset += head >> 1
        entry = Entry()
        if head & 1:
            entry.attempt, at = _get(raw, at)
            marked, at = _get(raw, at)
            entry.returns, entry.alone = marked >> 1, bool(marked & 1)
            due, at = _get(raw, at)
            entry.due = (first_due + due - 1) / DUE_UNITS if due else 0.0
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
