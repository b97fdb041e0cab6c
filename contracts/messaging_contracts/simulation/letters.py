"""Dead letters behind calls that fail as the SPI allows it to: before or after the deed, or in part."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from messaging.adapter import DeadLetterStore
from messaging.errors import ConnectionFailed, PublishError
from messaging_contracts.faults import Redriven

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.adapter import Gone, GroupSpec, StoredLetter
    from messaging.message import Message
    from messaging_contracts.faults.history import Fate
    from messaging_contracts.simulation.adapter import FaultyAdapter


class FaultyDeadLetters(DeadLetterStore):
    """See `FaultyAdapter`. What is redriven is recorded as it really was, whatever its caller is told."""

    def __init__(self, adapter: FaultyAdapter, inner: DeadLetterStore, group: GroupSpec) -> None:
        self._adapter = adapter
        self._faults = adapter.faults
        self._inner = inner
        self._group = group.name

    async def count(self) -> int:
        await self._adapter.there()
        self._fail("scan_fails")
        return await self._inner.count()

    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        return self._scan()

    @asynccontextmanager
    async def _scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        await self._adapter.there()
        self._fail("scan_fails")
        async with self._inner.scan() as letters:
            yield self._letters(letters)

    async def _letters(self, letters: AsyncIterator[StoredLetter]) -> AsyncIterator[StoredLetter]:
        async for letter in letters:
            self._fail("scan_fails")
            yield letter

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        await self._adapter.there()
        self._fail("redrive_fails")
        partly = self._faults.strikes("redrive_partly")
        refused = self._faults.some(len(letters)) if partly else [False] * len(letters)
        taken = [one for one, hit in zip(letters, refused, strict=True) if not hit]
        for _, message, _ in taken:
            self._tell("sent", message)
        try:
            results = await self._inner.redrive(taken)
        except ConnectionFailed:
            for _, message, _ in taken:
                self._tell("failed", message)
            raise
        for (_, message, _), result in zip(taken, results, strict=True):
            self._tell("confirmed" if result is None else "failed", message)
        self._adapter.redriven += sum(result is None for result in results)
        await self._adapter.back()
        self._fail("redrive_unknown")
        answers = iter(results)
        return [PublishError("simulated: refused") if hit else next(answers) for hit in refused]

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        await self._adapter.there()
        self._fail("purge_fails")
        purged = await self._inner.purge(letters)
        self._adapter.purged += [letter.message.id for letter in letters]
        await self._adapter.back()
        self._fail("purge_unknown")
        return purged

    def _fail(self, kind: str) -> None:
        if self._faults.strikes(kind):
            raise ConnectionFailed(f"simulated: {kind}")

    def _tell(self, fate: Fate, message: Message) -> None:
        at = self._adapter.clock.monotonic()
        self._faults.recorder.record(Redriven(at=at, fate=fate, id=message.id, group=self._group))
