import pytest

from messaging_contracts import brokers
from messaging_contracts.brokers.docker import image_variable


@pytest.fixture(autouse=True)
def nothing_is_found_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests start brokers of their own, natively, whatever the environment offers."""
    for name in brokers.NAMES:
        monkeypatch.delenv(brokers.environment_variable(name), raising=False)
        monkeypatch.delenv(image_variable(name), raising=False)
    monkeypatch.setattr("messaging_contracts.brokers.docker._engine_in_sight", lambda: False)
