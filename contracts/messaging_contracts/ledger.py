"""The record of every handling of a case: nothing is filtered away, so a duplicate or an overlap shows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from messaging import Delivery
    from messaging.message import Key


class Patience:
    """How long a case waits for what must come, in seconds, before it says that it does not."""

    seconds = 15.0


@dataclass(slots=True, eq=False)
class Handling:
    """One run of a handler, from begin to end, in monotonic seconds. `end` is None while it runs, or when its
    process died of it.
    """

    id: str
    payload: Any
    key: Key | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    attempt: int = 1
    deliveries: int = 1
    partition: int = 0
    fence: int = 0
    member: str = ""
    begin: float = field(default_factory=time.monotonic)
    end: float | None = None
    how: str = "running"
    """running, returned, raised or cancelled."""


class Ledger:
    """Every handling, in the order they began, whoever handled."""

    def __init__(self) -> None:
        self.handlings: list[Handling] = []
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        seen = Counter(
            f"{one.payload!r} attempt {one.attempt} {one.member} {one.how}" for one in self.handlings
        )
        shown = [f"{count} x {what}" if count > 1 else what for what, count in list(seen.items())[:20]]
        return f"{len(self.handlings)} handlings of {len(self.ids)} messages: " + "; ".join(shown)

    @contextmanager
    def handling(self, delivery: Delivery[Any], member: str = "") -> Generator[Handling]:
        """Record one handling, from entering to leaving, and how it was left."""
        record = Handling(
            id=delivery.message.id,
            payload=delivery.payload,
            key=delivery.key,
            headers=dict(delivery.headers),
            attempt=delivery.attempt,
            deliveries=delivery.deliveries,
            partition=delivery.partition,
            fence=delivery.fence,
            member=member,
        )
        self.add(record)
        try:
            yield record
        except asyncio.CancelledError:
            self.finish(record, "cancelled")
            raise
        except BaseException:  # whatever it was, it ended the handler
            self.finish(record, "raised")
            raise
        self.finish(record, "returned")

    def add(self, record: Handling) -> None:
        """Record that a handling has begun."""
        self.handlings.append(record)
        self.tell()

    def finish(self, record: Handling, how: str, at: float | None = None) -> None:
        """Record that a handling has ended, and how; now, or at a time that was told."""
        record.end = time.monotonic() if at is None else at
        record.how = how
        self.tell()

    def tell(self) -> None:
        """Let all who wait look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool], within: float | None = None) -> None:
        """Wait until the condition holds; it is asked again after each change.

        Raises AssertionError with what was recorded when it does not hold within so many seconds.
        """
        within = Patience.seconds if within is None else within
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within:g} s; there were {self!r}") from None

    async def handled(self, count: int, within: float | None = None) -> None:
        """Wait until so many handlings have ended well."""
        await self.until(lambda: len(self.done) >= count, within)

    async def begun(self, count: int, within: float | None = None) -> None:
        """Wait until so many handlings have begun."""
        await self.until(lambda: len(self.handlings) >= count, within)

    async def quiet(self, period: float = 0.3) -> None:
        """Nothing begins for so many seconds. A bound, not a proof: prefer a sentinel published later."""
        known = len(self.handlings)
        try:
            await self.begun(known + 1, period)
        except AssertionError:
            return
        raise AssertionError(f"there was more to come: {self!r}")

    async def calm(self, period: float = 0.3) -> None:
        """Wait until nothing has begun for so many seconds: what killed members had not settled comes again."""
        with suppress(AssertionError):  # nothing more has begun
            while True:
                await self.begun(len(self.handlings) + 1, period)

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the messages seen, each once, in the order they first began."""
        return list(dict.fromkeys(one.id for one in self.handlings))

    @property
    def payloads(self) -> Sequence[Any]:
        """The payload of every handling, duplicates included, in the order they began."""
        return [one.payload for one in self.handlings]

    @property
    def done(self) -> Sequence[Handling]:
        """The handlings that ended without an error."""
        return [one for one in self.handlings if one.how == "returned"]

    @property
    def running(self) -> Sequence[Handling]:
        """The handlings that have not ended."""
        return [one for one in self.handlings if one.end is None]

    def of(self, id: str) -> Sequence[Handling]:
        """All handlings of one message."""
        return [one for one in self.handlings if one.id == id]

    def by(self, member: str) -> Sequence[Handling]:
        """All handlings of one member."""
        return [one for one in self.handlings if one.member == member]

    def with_key(self, key: Key | None) -> Sequence[Handling]:
        """All handlings of one key."""
        return [one for one in self.handlings if one.key == key]

    def attempts(self, id: str) -> Sequence[int]:
        """The attempt numbers of one message, in order."""
        return [one.attempt for one in self.of(id)]

    def most_at_once(self, of: Iterable[Handling] | None = None) -> int:
        """The largest number of handlings that ran at the same moment."""
        edges: list[tuple[float, int]] = []
        for one in self.handlings if of is None else of:
            edges += [(one.begin, 1), (float("inf") if one.end is None else one.end, -1)]
        most = now = 0
        for _, change in sorted(edges):
            now += change
            most = max(most, now)
        return most

    def assert_each_once(self, ids: Iterable[str], *, duplicates: int = 0) -> None:
        """Exactly these messages were handled, each once; at most `duplicates` handlings were in excess."""
        expected = set(ids)
        seen = Counter(one.id for one in self.handlings)
        missing = expected - seen.keys()
        strangers = seen.keys() - expected
        surplus = sum(seen.values()) - len(seen)
        assert not missing, f"{len(missing)} of {len(expected)} messages never came: {self!r}"
        assert not strangers, f"{len(strangers)} messages came that nobody sent here: {self!r}"
        assert surplus <= duplicates, f"{surplus} duplicates, at most {duplicates} are allowed: {self!r}"

    def assert_order(self, keys: Iterable[Key], *, overlaps: int = 0) -> None:
        """Of each key, payloads, which are numbers, first began in rising order, and never two at once."""
        for key in keys:
            of_key = self.with_key(key)
            first = list(dict.fromkeys(one.payload for one in of_key))
            assert first == sorted(first), f"key {key!r} was reordered: {first}"
            together = self.most_at_once(of_key)
            assert together <= 1 + overlaps, f"{together} handlings of key {key!r} ran at once: {self!r}"
