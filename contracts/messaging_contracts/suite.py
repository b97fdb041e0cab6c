"""The suite for pytest: a class with one test per case, a thin layer over the plain functions.

The author of an adapter subclasses it and says where the broker is:

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def url(self) -> str:
            return "mine://localhost"

and overrides the other fixtures where there is more to tell. Needs no asyncio plugin: each case has a loop of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from messaging_contracts.case import all_cases
from messaging_contracts.runner import run
from messaging_contracts.under_test import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from messaging_contracts.case import Case
    from messaging_contracts.foreign import ForeignPublisher


class BrokerContract:
    """Every promise of the library, one test each, named after it."""

    @pytest.fixture
    def url(self) -> str:
        """Where the broker is. The one fixture that has to be given."""
        raise NotImplementedError(f"{type(self).__name__} has to say where the broker is: override `url`")

    @pytest.fixture
    def short_lease_url(self, url: str) -> str:
        """The same broker with a lease of about a second, where the adapter has an option for it."""
        return url

    @pytest.fixture
    def store(self) -> str | None:
        """Where idempotency lives. Memory is enough here: the members of these cases share a process."""
        return "memory://contract"

    @pytest.fixture
    def foreign(self) -> ForeignPublisher | None:
        """How another program publishes to this broker; the cases of that area fail without it."""
        return None

    @pytest.fixture
    def target(
        self, url: str, short_lease_url: str, store: str | None, foreign: ForeignPublisher | None
    ) -> Target:
        """All of that together."""
        return Target(url=url, short_lease_url=short_lease_url, store=store, foreign=foreign)


def _test_of(case: Case) -> Callable[[Any, Target], None]:
    def test(_: BrokerContract, target: Target) -> None:
        asyncio.run(run(case, target))

    test.__name__ = f"test_{case.name}"
    test.__qualname__ = f"{BrokerContract.__qualname__}.{test.__name__}"
    test.__doc__ = case.summary
    return test


for _case in all_cases():
    setattr(BrokerContract, f"test_{_case.name}", _test_of(_case))
