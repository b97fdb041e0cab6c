"""One suspect at a time in a program, and nothing beside it that may end it, too.

Messages of two subscriptions may be suspected of ending their process (semantics 3). Run at the same time, the guilty
one would take the innocent one with it, whose mark then makes a dead letter of it. Guilty may be whatever came back
once: not yet a suspect, it is what ends the next process.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Isolation:
    """Shared by the subscriptions of a bus: who holds it may run a suspect."""

    def __init__(self) -> None:
        self._holder: object = None
        self._waiting: dict[object, Callable[[], None]] = {}
        self._returned: Counter[object] = Counter()
        """By subscription, how many handlers run of messages that came back."""
        self.exiting = False
        """A handler of one has raised SystemExit: their process ends, and they start nothing more."""

    def free_for(self, asking: object, freed: Callable[[], None]) -> bool:
        """Whether nobody else holds it, or runs what came back; if somebody does, `freed` is called when that is over,
        once.
        """
        if self._left_to(asking) and self._returned.total() == self._returned[asking]:
            return True
        self._waiting[asking] = freed
        return False

    def before(self, asking: object) -> list[object]:
        """Whose end it waits for."""
        others = [self._holder, *self._returned]
        return [one for one in dict.fromkeys(others) if one is not None and one is not asking]

    def take(self, holder: object) -> None:
        """Hold it: it was free just now."""
        self._holder = holder

    def leave(self, holder: object) -> None:
        """Let the others go on. Nothing happens where somebody else holds it."""
        self._waiting.pop(holder, None)
        if self._holder is holder:
            self._holder = None
            self._wake()

    def begin_returned(self, asking: object, freed: Callable[[], None]) -> bool:
        """Whether what came back may begin: no other subscription runs a suspect. `freed` as for `free_for`."""
        if self._left_to(asking):
            self._returned[asking] += 1
            return True
        self._waiting[asking] = freed
        return False

    def end_returned(self, holder: object) -> None:
        """What `begin_returned` let begin is over: perhaps of a handler that was left behind."""
        if self._returned[holder] > 1:
            self._returned[holder] -= 1
        elif self._returned[holder]:
            del self._returned[holder]
            self._wake()

    def gone(self, holder: object) -> None:
        """A subscription has ended: what it has left behind keeps nobody waiting."""
        self.leave(holder)
        del self._returned[holder]
        self._wake()

    def _left_to(self, asking: object) -> bool:
        return self._holder is None or self._holder is asking

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for freed in waiting.values():
            freed()
