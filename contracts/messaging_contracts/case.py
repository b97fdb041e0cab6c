"""A case: one promise, and the check that shows whether a broker keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from messaging_contracts.under_test import BrokerUnderTest

Check: TypeAlias = "Callable[[BrokerUnderTest], Awaitable[None]]"

AREAS = (
    "delivery",
    "settlement",
    "order",
    "retry",
    "delay",
    "uncertain",
    "dead_letters",
    "lifecycle",
    "requests",
    "idempotency",
    "topology",
    "generations",
    "validation",
    "foreign",
    "fuzz",
    "crash",
)
CAPABILITIES = {
    "groups": "Every group gets every message",
    "order": "A group handles one key's messages in order, retries included",
    "delayed_retry": "A retry waits as long as it should",
    "dead_letters": "What cannot be handled is kept, with why",
    "redrive": "A dead letter can be handled again, corrected",
    "requests": "A request gets its own reply",
    "history": "A new group may start at earlier messages",
    "no_group": "A publish that no group gets can be told",
    "generations": "Partitions and order can be changed while programs run",
    "idempotent_publish": "A publish with an unknown fate is sent again and stored once, where that is asked for",
    "crash_guard": "A message that kills its process ends as a dead letter, alone",
}
"""The promises that an adapter declares, as `messaging.adapter.Capabilities` names them."""
COMMON = {
    "delivery": "What is published arrives, whole",
    "settlement": "What a handler decides is what happens",
    "attempts": "Failures are counted, and nothing else is",
    "sharing": "Members of a group share its messages",
    "delay": "A message that is published with a delay waits, for every group",
    "expiry": "What has expired is not handled",
    "flow": "No more runs or waits in a process than it asked for",
    "leases": "What a member holds stays its own, until it is gone",
    "shutdown": "A stop loses nothing and waits as long as it should",
    "idempotency": "One id has one effect",
    "topology": "The broker's record of topics and groups is the truth",
    "validation": "What cannot be is refused before anything is sent",
    "foreign": "Messages of other programs are handled and trusted in nothing",
    "crash": "A killed process loses no message",
}
"""The promises that no adapter may be without."""
PROMISES = CAPABILITIES | COMMON


@dataclass(frozen=True, slots=True)
class Case:
    """One promise to prove."""

    name: str
    area: str
    promise: str
    """The capability or the common promise that this case is evidence for."""
    summary: str
    check: Check
    processes: bool
    """Whether members run in processes of their own."""
    limit: float
    """Seconds after which the case has failed, whatever it waits for."""


_cases: dict[str, Case] = {}


def proves(promise: str, *, processes: bool = False, limit: float = 30.0) -> Callable[[Check], Check]:
    """Register a check as evidence for `promise`; the function itself stays as it is.

    The module gives the area, the function's name the case's, and the first line of its docstring what the
    promise is.
    """
    if promise not in PROMISES:
        raise ValueError(f"{promise!r} is no promise; there are {', '.join(PROMISES)}")

    def register(check: Check) -> Check:
        name = check.__name__
        if name in _cases:
            raise ValueError(f"two cases are called {name}")
        _cases[name] = Case(
            name=name,
            area=check.__module__.rpartition(".")[2],
            promise=promise,
            summary=" ".join((check.__doc__ or "").split()),
            check=check,
            processes=processes,
            limit=limit,
        )
        return check

    return register


def all_cases() -> Sequence[Case]:
    """All cases of the suite, area by area, in the order they are written."""
    for area in AREAS:
        import_module(f"messaging_contracts.cases.{area}")
    return sorted(_cases.values(), key=lambda case: AREAS.index(case.area))
