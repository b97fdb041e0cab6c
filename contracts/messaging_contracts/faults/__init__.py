"""Proof under faults: a history of what publishers and members did, and a checker that knows the promises.

`Journal` writes a history that survives `kill -9`, `read` reads it, `check` judges it. A `Ground` is a broker that the
scenarios of `python -m messaging_contracts faults` can start and break.
"""

from messaging_contracts.faults.checker import check, recoveries
from messaging_contracts.faults.ground import Ground
from messaging_contracts.faults.history import (
    Answered,
    Asked,
    Begun,
    Buried,
    Ended,
    Event,
    History,
    Journal,
    Kept,
    Published,
    Recorder,
    Redriven,
    Seen,
    Settled,
    Struck,
    now,
    read,
)
from messaging_contracts.faults.verdict import Verdict

__all__ = [
    "Answered",
    "Asked",
    "Begun",
    "Buried",
    "Ended",
    "Event",
    "Ground",
    "History",
    "Journal",
    "Kept",
    "Published",
    "Recorder",
    "Redriven",
    "Seen",
    "Settled",
    "Struck",
    "Verdict",
    "check",
    "now",
    "read",
    "recoveries",
]
