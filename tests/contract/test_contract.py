"""Our adapters keep every promise: the suite on each of them, or on what --messaging-broker names."""

import pytest

from messaging_contracts import BrokerContract, Target
from messaging_contracts.targets import target_of


@pytest.mark.messaging_brokers("memory", "redis", "rabbitmq", "kafka", "sqs")
class TestContract(BrokerContract):
    @pytest.fixture
    def target(self, messaging_broker: str) -> Target:
        return target_of(messaging_broker)
