"""What tests of services need: the app in memory (`app.test()`), and the virtual clock."""

from messaging.testing.clock import VirtualClock
from messaging.testing.harness import AppTest

__all__ = ["AppTest", "VirtualClock"]
