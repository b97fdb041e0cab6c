"""What holds for all tests: no judgement by time, and how they are shared out between processes."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of a test: hypothesis judges neither the time of an example nor that of drawing it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """With `-n`, a file's tests share a process and its fixtures; a broker's cases of the suite are as a file."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        if file.endswith("test_contract.py"):
            file += item.name.rpartition("[")[2]
        item.add_marker(pytest.mark.xdist_group(file))
