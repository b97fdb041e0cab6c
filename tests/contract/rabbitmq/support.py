"""Adapters on a real RabbitMQ."""

from typing import ClassVar

from messaging.adapter import Consumer
from messaging_rabbitmq import RabbitMQAdapter
from tests.contract.bench import AdapterBench


class Bench(AdapterBench[RabbitMQAdapter, Consumer]):
    kind: ClassVar = RabbitMQAdapter
