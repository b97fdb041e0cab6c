"""One suspect at a time in a program.

Two messages of two subscriptions may both be suspected of ending their process (semantics 3). Run at the same time, the
guilty one would take the innocent one with it, whose mark then makes a dead letter of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Isolation:
    """Shared by the subscriptions of a bus: who holds it may run a suspect."""

    def __init__(self) -> None:
        self._holder: object = None
        self._waiting: dict[object, Callable[[], None]] = {}
        self.exiting = False
        """A handler of one has raised SystemExit: their process ends, and they start nothing more."""

    def free_for(self, asking: object, freed: Callable[[], None]) -> bool:
        """Whether nobody else holds it; if somebody does, `freed` is called when that is over, once."""
        if self._holder is None or self._holder is asking:
            return True
        self._waiting[asking] = freed
        return False

    def take(self, holder: object) -> None:
        """Hold it: it was free just now."""
        self._holder = holder

    def leave(self, holder: object) -> None:
        """Let the others go on. Nothing happens where somebody else holds it."""
        self._waiting.pop(holder, None)
        if self._holder is holder:
            self._holder = None
            waiting, self._waiting = self._waiting, {}
            for freed in waiting.values():
                freed()
