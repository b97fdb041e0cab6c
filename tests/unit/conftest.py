import pytest

from messaging import connect
from messaging.testing import VirtualClock
from messaging_memory.broker import Broker


@pytest.fixture(autouse=True)
def no_named_broker_is_left_connected():
    """It would be there for the next test that names it, on another event loop."""
    yield
    left = sorted(Broker._named)
    Broker._named.clear()
    assert not left, f"memory brokers that somebody is still connected to: {left}"


@pytest.fixture
async def clock():
    return VirtualClock()


@pytest.fixture
async def bus(clock):
    async with connect("memory://", clock=clock) as bus:
        yield bus
