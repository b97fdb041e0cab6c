"""What the tests of the checker share."""

from __future__ import annotations

import pytest

from tests.faults.stories import Story


@pytest.fixture
def story() -> Story:
    """One that is not told yet."""
    return Story()
