"""RabbitMQ 3.10 and newer for `messaging`: `amqp://user:password@host:port/virtual-host`."""

from messaging_rabbitmq.adapter import RabbitMQAdapter
from messaging_rabbitmq.settings import RabbitMQSettings

__all__ = ["RabbitMQAdapter", "RabbitMQSettings"]
