"""The curves: what changes along each, and how far."""

from __future__ import annotations

from dataclasses import dataclass, field

REAL = ("redis", "rabbitmq", "kafka", "sqs")
MESSAGES = {"memory": 50_000, "redis": 40_000, "rabbitmq": 20_000, "kafka": 40_000, "sqs": 4_000}
"""At each point, where the curve does not say."""


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    title: str
    axis: str
    values: tuple[int, ...]
    brokers: tuple[str, ...]
    limit: str
    """What bends it."""
    most: dict[str, int] = field(default_factory=dict[str, int], hash=False)
    """Where a broker's curve ends earlier."""

    def points(self, broker: str) -> list[int]:
        return [value for value in self.values if value <= self.most.get(broker, self.values[-1])]


CURVES = (
    Curve(
        "members",
        "Members of one group, each a process, while another publishes",
        "members",
        (1, 2, 4),
        REAL,
        "publisher, broker and members share two cores: more members do not make it faster here, they divide the same "
        "messages into smaller batches",
    ),
    Curve(
        "topics",
        "Topics of one partition, each with a handler of 8 workers, in one process",
        "topics",
        (1, 10, 100, 1000),
        ("memory", *REAL),
        "a topic is read and settled in exchanges of its own: the more topics, the fewer messages share one (of a "
        "thousand, forty come together); and what each topic takes while nothing comes: a read of two seconds on "
        "Redis, of a quarter of a second on Kafka. In memory the process publishes too: the cost is of both",
        dict.fromkeys(("rabbitmq", "kafka", "sqs"), 100),
    ),
    Curve(
        "keys",
        "Keys of an ordered group of 8 partitions, 64 workers",
        "keys",
        (1, 100, 10_000, 100_000),
        ("memory", "redis", "rabbitmq", "kafka"),
        "nothing that grows with the keys",
    ),
    Curve(
        "backlog",
        "Messages that wait when the group begins, 64 workers",
        "messages",
        (10_000, 100_000, 1_000_000),
        ("redis", "kafka"),
        "nothing that grows with what waits: no more than `prefetch` is in memory",
    ),
)
