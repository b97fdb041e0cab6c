"""What the model takes for granted. Change it here and run `make scale` again: the page shows the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def assumed(value: float, what: str) -> Any:
    return field(default=value, metadata={"what": what})


@dataclass(frozen=True, slots=True)
class Assumptions:
    rate: float = assumed(1_000_000, "messages published a second")
    groups: int = assumed(1, "groups that get every message")
    topics: int = assumed(100_000, "topics, in the second question")
    body: float = assumed(200, "bytes of a body")
    headers: float = assumed(300, "bytes of headers and framing beside it")
    handler: float = assumed(0, "µs of the processor that a handler takes itself")
    held: float = assumed(1, "seconds from receiving a message to its acknowledgement, prefetch included")
    busy: float = assumed(0.6, "of a core is used; the rest is for peaks and failures")
    node: int = assumed(16, "cores of a node of RabbitMQ or Kafka")
    copies: int = assumed(3, "copies of a message on RabbitMQ and Kafka, each in a zone of its own")
    replicas: int = assumed(2, "nodes of a Redis shard, of two cores: one serves, one saves")
    spread: int = assumed(10, "topics a Redis shard, or the hash of their names fills shards unevenly")
    handlers: int = assumed(
        100, "topics that one process handles: as far as the curves of RabbitMQ and Kafka go"
    )
    hours: float = assumed(730, "hours a month")
    core: float = assumed(0.05, "$ for a core and hour, with 4 GB of memory")
    traffic: float = assumed(0.02, "$ for a GB that goes from one zone to another")
    disk: float = assumed(0.08, "$ for a GB of disk and month")
    sns: float = assumed(0.5, "$ for a million requests to SNS, each up to 64 KB; deliveries to SQS are free")


SQS_PRICES = ((100e9, 0.4), (200e9, 0.3), (float("inf"), 0.24))
"""Requests a month, each up to 64 KB, and $ for a million of those up to there, on standard queues."""
ZONES = 2 / 3
"""Of what goes between a client and a node leaves its zone, where there are three."""

# Named limits, and where their owners tell of them.
CHANNELS = 2047  # of a connection: RabbitMQ, "Channels", channel_max
PARTITIONS_OF_A_NODE, PARTITIONS_OF_A_CLUSTER = 4000, 200_000  # Kafka, KIP-578: the general recommendation
MAXCLIENTS = 10_000  # Redis, "ERR max number of clients reached", the default
CLUSTER_NODES = 1000  # Redis, "Redis cluster specification"
BATCH = 10  # SQS, "Amazon SQS message quotas"; SNS alike
IN_FLIGHT = 120_000  # of a standard queue: SQS, "Amazon SQS standard queue quotas"
SNS_RATE = 30_000  # messages a second, in the largest region, at first: "Amazon SNS endpoints and quotas"
SNS_TOPICS, SNS_FIFO_TOPICS = 100_000, 1000  # of an account: "Amazon SNS features"

SOURCES = (
    ("RabbitMQ, Queues", "https://www.rabbitmq.com/docs/queues#runtime-characteristics"),
    ("RabbitMQ, Channels", "https://www.rabbitmq.com/docs/channels"),
    ("RabbitMQ, Quorum queues", "https://www.rabbitmq.com/docs/quorum-queues#resource-use"),
    (
        "Kafka, KIP-578",
        "https://cwiki.apache.org/confluence/spaces/KAFKA/pages/148641509/KIP-578+Add+configuration+to+limit+number+of+partitions",
    ),
    (
        "Redis, ERR max number of clients",
        "https://redis.io/docs/latest/develop/reference/errors/common/err-max-clients/",
    ),
    (
        "Redis cluster specification",
        "https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/",
    ),
    ("SNS endpoints and quotas", "https://docs.aws.amazon.com/general/latest/gr/sns.html"),
    ("SNS features", "https://aws.amazon.com/sns/features/"),
    (
        "SQS message quotas",
        "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html",
    ),
    (
        "SQS standard queue quotas",
        "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html",
    ),
)

# What a topic with one unordered group and 8 partitions takes, counted on running brokers.
RABBITMQ_QUEUES, RABBITMQ_QUORUM, RABBITMQ_CHANNELS, RABBITMQ_CONNECTIONS = 5, 4, 3, 2
"""Of a topic; of these quorum queues; a member's channels for a topic; connections of a process."""
KAFKA_PARTITIONS, KAFKA_CONNECTIONS, KAFKA_READS = 8 + 16 + 8 + 2, 3, 2
"""Of the topic, its retries and its dead letters; connections of a process, and more of them for each topic read."""
REDIS_KEYS, REDIS_BYTES, REDIS_CONNECTIONS, REDIS_POOL = 13, 39_000, 3, 32
"""Keys of a topic; bytes of these, nearly empty; connections of a process with one topic, of which one waits; the most
of a process for commands, which is a default of this library.
"""
SQS_QUEUES, SQS_CONNECTIONS, SQS_READS = 2, 6, 2
"""Of a topic; connections of a process, and more of them for each topic read."""
POLL_WAIT, GENERATION_INTERVAL, KAFKA_RETENTION, REDIS_HISTORY = 5, 5, 604_800, 60
"""Seconds: defaults of this library."""
