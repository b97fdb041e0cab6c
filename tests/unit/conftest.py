import pytest

from messaging_memory.broker import Broker


@pytest.fixture(autouse=True)
def no_named_broker_is_left_connected():
    """It would be there for the next test that names it, on another event loop."""
    yield
    left = sorted(Broker._named)
    Broker._named.clear()
    assert not left, f"memory brokers that somebody is still connected to: {left}"
