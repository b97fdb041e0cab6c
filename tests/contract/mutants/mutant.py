"""A mutant: one promise broken on purpose, and the cases that must see it."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    name: str
    cases: tuple[str, ...]
    """Each of these must fail on it."""
    applied: Callable[[], AbstractContextManager[None]]
    broker: str | None = None
    """Where the cases run on it; None is memory."""

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def killed_by(
    *cases: str, broker: str | None = None
) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    """Register a generator function that applies a mutation, yields, and needs no undoing of its own patches."""

    def register(mutation: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        MUTANTS.append(Mutant(mutation.__name__, cases, contextmanager(mutation), broker))
        return mutation

    return register


@contextmanager
def patched(owner: Any, **replacements: Any) -> Generator[None]:
    """Replace attributes that exist, for a while."""
    originals = {name: vars(owner)[name] for name in replacements}
    for name, replacement in replacements.items():
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)
