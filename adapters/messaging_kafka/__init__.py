"""The Kafka adapter of `messaging`."""

from messaging_kafka.adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
