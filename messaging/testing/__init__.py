"""What tests of services need: the virtual clock."""

from messaging.testing.clock import VirtualClock

__all__ = ["VirtualClock"]
