"""The history of a run: what publishers and members did, written down as it happened.

Each process appends to a file of its own, one JSON object a line, with one write each: what a process recorded before
`kill -9` is there afterwards. Times are monotonic seconds, which the processes of one machine share.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

Fate: TypeAlias = Literal["sent", "confirmed", "uncertain", "failed"]
End: TypeAlias = Literal["succeeded", "failed", "rejected", "released", "cancelled"]
Keeping: TypeAlias = Literal["taken", "done", "repeated", "missed"]
"""`repeated`: the store had it as done already, so that it was not handled. `missed`: the member could not reach the
store about the message, or not in time.
"""

CONCLUDED: frozenset[End] = frozenset(("succeeded", "rejected"))
"""The ends with which a handler was done with the message; a rejected one is still to become a dead letter."""

CLOCK_JUMPED = "clock jumped"
"""The kind of a fault that only excuses a retry that is early or late, by as much as it jumped."""

REMOVED = "deleted on the broker"
"""The kind of a fault that takes messages with it: what was confirmed before it was over may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A step of publishing one message. `failed`: the publisher was told that the broker does not have it."""

    at: float
    fate: Fate
    id: str
    key: str | None = None
    sequence: int = 0
    """Grows with every message of this publisher and key."""
    publisher: str = ""
    due: float | None = None
    """Before when nobody must handle it; None: at once."""
    expires: float | None = None
    """From when on nobody must handle it; None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A handler was called."""

    at: float
    handling: str
    """Names this handling; unique in the history."""
    id: str
    group: str
    member: str
    key: str | None = None
    sequence: int = 0
    attempt: int = 1
    deliveries: int = 1
    partition: int = 0
    fence: int = 0
    token: int = 0
    """The fence of its idempotency key; 0 where the group is not idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A handler has ended. One that died with its process has no end."""

    at: float
    handling: str
    how: End
    """`failed`: to be retried; `rejected`: the last failure, or one that is not to be retried.

    `released`: its handler asked for it again, uncounted, which is what explains that it comes once more. `cancelled`:
    it was interrupted, as by a member that stops or has lost it, which a fault must explain.
    """
    after: float = 0.0
    """Seconds before which a failed or released message must not come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A program that settles by hand was told that the broker has taken the outcome of this handling."""

    at: float
    handling: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A fault, from `at` until `until`: the cause of what follows from it."""

    at: float
    kind: str
    member: str | None = None
    """Whom it hit; None is the broker, and with it everybody."""
    until: float | None = None
    """None: it was over at once."""
    aftermath: float = 0.0
    """Seconds after it was over until which those it hit must have noticed."""
    fatal: bool = False
    """The member's process ended: what it was handling ended with it."""
    ids: tuple[str, ...] | None = None
    """The messages that it hit, where that is known; None: all that the member had. Empty: it took nothing, and only
    held everything up.
    """
    seconds: float = 0.0
    """By how much the clock jumped, where that is the fault; negative: back."""
    told_by: tuple[str, ...] = ()
    """The processes whose health has to tell of it. Empty: nobody's, for it need not be seen."""

    @property
    def over(self) -> float:
        """When it was over."""
        return self.at if self.until is None else self.until

    @property
    def noticed(self) -> float:
        """By when those that it hit must have noticed."""
        return self.over + self.aftermath


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A member's health, as it told it, changed to this."""

    at: float
    member: str
    status: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ousted:
    """A member's subscription ended for good, with this error."""

    at: float
    member: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a process took at this moment."""

    at: float
    member: str
    memory: int
    """Bytes that are resident."""
    tasks: int
    """Tasks of its event loop that are not done."""
    files: int
    """Open file descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """A dead letter that was found at the end."""

    at: float
    id: str
    group: str
    reason: str = ""
    cause: str | None = None
    attempts: int = 0
    failed_at: float | None = None
    """When it failed last, by the clock of a member, on the scale of the history's times."""
    look: int = 0
    """The number of the look at the dead letters that found it: each finds all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """A step of putting one dead letter back to its group: it may be handled once more."""

    at: float
    fate: Fate
    id: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the idempotency store did for a message, or did not."""

    at: float
    how: Keeping
    id: str
    group: str
    member: str
    token: int = 0
    """The fence that its owner has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request was made."""

    at: float
    id: str
    """Names the request; unique in the history."""
    within: float
    """Seconds in which it has to end."""
    member: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A request has ended, with a reply or with an error."""

    at: float
    id: str
    error: str = ""
    """The name of the error; empty: it got a reply."""
    replied_to: str = ""
    """The request that the reply, or the responder's error, tells that it is of; empty where none came."""
    handling: str = ""
    """The handling that made it, as it tells."""


Event: TypeAlias = (
    Published
    | Begun
    | Ended
    | Struck
    | Seen
    | Ousted
    | Measured
    | Buried
    | Redriven
    | Kept
    | Settled
    | Asked
    | Answered
)

_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind
    for kind in (
        Published,
        Begun,
        Ended,
        Struck,
        Seen,
        Ousted,
        Measured,
        Buried,
        Redriven,
        Kept,
        Settled,
        Asked,
        Answered,
    )
}


class Recorder(Protocol):
    """Where events go."""

    def record(self, event: Event) -> None:
        """Keep this event."""
        ...


class History:
    """A history in memory."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = list(events)

    def record(self, event: Event) -> None:
        """Keep this event."""
        self.events.append(event)


class Journal:
    """The history of one process, in a file. An event is on its way to the file's system when `record` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def record(self, event: Event) -> None:
        """Write one line at once, so that a kill loses nothing that was recorded."""
        os.write(self._file, line(event))


def line(event: Event) -> bytes:
    """The event as one line of a journal."""
    return json.dumps({"event": type(event).__name__.lower(), **asdict(event)}).encode() + b"\n"


def read(folder: Path) -> Sequence[Event]:
    """The events of all journals (`*.jsonl`) in the folder, in the order of their times.

    A last line that its process did not live to finish is left out. Raises ValueError for any other line that is
    no event.
    """
    events: list[Event] = []
    for path in sorted(folder.glob("*.jsonl")):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                events.append(event_of(text))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} of {path.name} is no event: {text[:200]!r}") from error
    return sorted(events, key=_at)


def now() -> float:
    """The time as journals of this machine keep it."""
    return time.monotonic()


def event_of(text: bytes) -> Event:
    """The event of one line. Raises ValueError, KeyError or TypeError for what is none."""
    fields: dict[str, Any] = json.loads(text)
    kind = _KINDS[fields.pop("event")]
    if fields.get("ids") is not None:
        fields["ids"] = tuple(fields["ids"])
    if "told_by" in fields:
        fields["told_by"] = tuple(fields["told_by"])
    return kind(**fields)


def _at(event: Event) -> float:
    return event.at
