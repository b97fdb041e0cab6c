"""A time of day that is wrong, for tests of what waits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def clock_wrong_by(seconds: float) -> Iterator[None]:
    """The time of day is wrong by so much in this process; monotonic clocks go on as ever."""
    right = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: right() + seconds)
        yield
