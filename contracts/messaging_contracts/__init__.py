"""The suite that every adapter must pass, ours or a third party's, and the brokers to run it on.

`BrokerContract` is the suite as a pytest class; `all_cases()` and `run()` are the same without pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from messaging_contracts.case import Case, all_cases, proves
    from messaging_contracts.foreign import ForeignPublisher
    from messaging_contracts.ledger import Handling, Ledger
    from messaging_contracts.runner import run
    from messaging_contracts.suite import BrokerContract
    from messaging_contracts.under_test import BrokerUnderTest, Target

__all__ = [
    "BrokerContract",
    "BrokerUnderTest",
    "Case",
    "ForeignPublisher",
    "Handling",
    "Ledger",
    "Target",
    "all_cases",
    "proves",
    "run",
]

_MODULES = {
    "BrokerContract": "suite",
    "BrokerUnderTest": "under_test",
    "Case": "case",
    "ForeignPublisher": "foreign",
    "Handling": "ledger",
    "Ledger": "ledger",
    "Target": "under_test",
    "all_cases": "case",
    "proves": "case",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    """Load on first use: the pytest plugin and the commands need none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
