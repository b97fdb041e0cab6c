"""The dead letters of a group in all generations of its topic that are kept."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from messaging.adapter import DeadLetterStore, Gone, StoredLetter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.errors import PublishError
    from messaging.message import Message


class KeptLetters(DeadLetterStore):
    """One store over those of the generations, the oldest first; each letter goes back to the store it is from."""

    def __init__(self, stores: Callable[[], Awaitable[Sequence[DeadLetterStore]]]) -> None:
        self._stores = stores

    async def count(self) -> int:
        return sum([await store.count() for store in await self._stores()])

    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        return self._scan()

    @asynccontextmanager
    async def _scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        async with AsyncExitStack() as stack:
            scans = [(store, await stack.enter_async_context(store.scan())) for store in await self._stores()]
            yield _letters(scans)

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        results: dict[int, PublishError | Gone | None] = {}
        for store, indices in _by_store([letter for letter, _, _ in letters]).items():
            items = [(letters[index][0].reference[1], *letters[index][1:]) for index in indices]
            results.update(zip(indices, await store.redrive(items), strict=True))
        return [results[index] for index in range(len(letters))]

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        return sum(
            [
                await store.purge([letters[index].reference[1] for index in indices])
                for store, indices in _by_store(letters).items()
            ]
        )


async def _letters(
    scans: Sequence[tuple[DeadLetterStore, AsyncIterator[StoredLetter]]],
) -> AsyncIterator[StoredLetter]:
    for store, letters in scans:
        async for letter in letters:
            yield StoredLetter(letter.message, letter.failure, (store, letter))


def _by_store(letters: Sequence[StoredLetter]) -> dict[DeadLetterStore, list[int]]:
    found: dict[DeadLetterStore, list[int]] = {}
    for index, letter in enumerate(letters):
        found.setdefault(letter.reference[0], []).append(index)
    return found
