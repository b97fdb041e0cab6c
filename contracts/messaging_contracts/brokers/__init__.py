"""Real brokers for tests and development: found, or started and ended.

Looked for in this order: a URL in the environment (`MESSAGING_TEST_REDIS_URL`, and so on for each of `NAMES`);
Docker through testcontainers, when an engine answers and the image can be had; native processes. A broker that
can be had in no way raises `BrokerUnavailable`, whose text is one line that says what to install. Nothing is
ever skipped.
"""

from messaging_contracts.brokers.broker import Broker, BrokerUnavailable
from messaging_contracts.brokers.cluster import RedisCluster, redis_cluster
from messaging_contracts.brokers.find import NAMES, environment_variable, start, with_an_adapter
from messaging_contracts.brokers.kafka_cluster import KafkaCluster, kafka_cluster
from messaging_contracts.brokers.rabbitmq_cluster import rabbitmq_cluster

__all__ = [
    "NAMES",
    "Broker",
    "BrokerUnavailable",
    "KafkaCluster",
    "RedisCluster",
    "environment_variable",
    "kafka_cluster",
    "rabbitmq_cluster",
    "redis_cluster",
    "start",
    "with_an_adapter",
]
