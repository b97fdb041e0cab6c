"""The formulas: from what a message costs to what one would deploy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.path import OURS
from benchmarks.scale import assumptions as known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.scale.assumptions import Assumptions

PATHS = {
    "RabbitMQ": ("RabbitMQ publish", "RabbitMQ consume"),
    "Kafka": ("Kafka publish", "Kafka consume"),
    "Redis": ("Redis publish", "Redis consume"),
    "SQS and SNS": ("SNS publish", "SQS consume"),
}
"""Where a broker's figures are."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a message, measured with this library: messages a second, microseconds of the processor."""

    rate: float
    cost: float
    beside: float
    """The broker's."""


@dataclass(frozen=True, slots=True)
class Measured:
    publish: Cost
    consume: Cost


def measured(paths: Mapping[str, Mapping[str, Mapping[str, float]]], idle: float) -> dict[str, Measured]:
    """The brokers whose two paths were measured, processor included, out of what `make bench` has kept.

    `idle` cores were busy without any message.
    """
    found: dict[str, Measured] = {}
    for broker, names in PATHS.items():
        publish, consume = (_cost(paths.get(name, {}).get(OURS, {}), idle) for name in names)
        if publish is not None and consume is not None:
            found[broker] = Measured(publish, consume)
    return found


def _cost(figures: Mapping[str, float], idle: float) -> Cost | None:
    if not {"rate", "cost", "beside"} <= figures.keys():
        return None
    beside = figures["beside"] - idle * 1e6 / figures["rate"]
    return Cost(figures["rate"], figures["cost"], beside) if beside > 0 else None


@dataclass(frozen=True, slots=True)
class Bill:
    """Dollars a month."""

    processors: float
    traffic: float = 0.0
    disk: float = 0.0
    requests: float = 0.0

    @property
    def total(self) -> float:
        return self.processors + self.traffic + self.disk + self.requests


@dataclass(frozen=True, slots=True)
class Deployment:
    publishers: int
    members: int
    connections: int
    partitions: int
    """What the messages are spread over: see `PARTITIONS` of the report."""
    nodes: int
    requests: float
    """A second."""
    bill: Bill


def for_rate(broker: str, cost: Measured, given: Assumptions) -> Deployment:
    """What `given.rate` messages a second for `given.groups` groups take."""
    publishers = _cores(given.rate * cost.publish.cost, given)
    members = given.groups * _cores(given.rate * (cost.consume.cost + given.handler), given)
    nodes, cores = _nodes(broker, cost, given)
    requests = _requests(broker, given)
    partitions = {
        "RabbitMQ": given.groups * math.ceil(given.rate / queue_rate(cost)),
        "Kafka": 2 * math.ceil(members / max(1, given.groups)),
        "Redis": given.spread * (nodes // given.replicas),
        "SQS and SNS": given.groups * math.ceil(given.rate * given.held / known.IN_FLIGHT),
    }[broker]
    connections = {
        "RabbitMQ": known.RABBITMQ_CONNECTIONS * (publishers + members),
        "Kafka": (nodes + known.KAFKA_CONNECTIONS) * publishers
        + (known.KAFKA_CONNECTIONS + known.KAFKA_READS) * members,
        "Redis": (nodes // given.replicas) * publishers + known.REDIS_CONNECTIONS * members,
        "SQS and SNS": known.SQS_CONNECTIONS * (publishers + members) + known.SQS_READS * members,
    }[broker]
    bill = Bill(
        processors=(publishers + members + cores) * given.core * given.hours,
        traffic=_traffic(broker, given) * given.hours * 3600 / 1e9 * given.traffic,
        disk=_bytes(given) * known.KAFKA_RETENTION * given.copies / 1e9 * given.disk
        if broker == "Kafka"
        else 0,
        requests=_priced(requests, given),
    )
    return Deployment(publishers, members, connections, partitions, nodes, sum(requests), bill)


def queue_rate(cost: Measured) -> float:
    """Messages a second of one queue that is filled and emptied at once, at least: both were measured on one."""
    return 1 / (1 / cost.publish.rate + 1 / cost.consume.rate)


def _cores(microseconds: float, given: Assumptions) -> int:
    """Cores for so many microseconds of the processor in each second; a process of Python fills one."""
    return max(1, math.ceil(microseconds / 1e6 / given.busy))


def _nodes(broker: str, cost: Measured, given: Assumptions) -> tuple[int, int]:
    """A broker's nodes, and the cores of all of them."""
    publish, consume = given.rate * cost.publish.beside, given.rate * cost.consume.beside * given.groups
    if broker == "Redis":
        nodes = given.replicas * _cores(publish + consume, given)
        return nodes, 2 * nodes
    if broker == "RabbitMQ":  # each group has its own copy, and each replica of a queue all of its commands
        work = given.copies * (publish * given.groups + consume)
    elif broker == "Kafka":  # written once whatever the groups, and read from one of the copies
        work = given.copies * publish + consume
    else:
        return 0, 0
    nodes = max(given.copies, math.ceil(_cores(work, given) / given.node))
    return nodes, nodes * given.node


def _requests(broker: str, given: Assumptions) -> tuple[float, float]:
    """To SNS and to SQS, a second: full batches; a publish, then a receive and a delete for each group."""
    if broker != "SQS and SNS":
        return 0.0, 0.0
    batches = given.rate / known.BATCH * math.ceil(known.BATCH * (given.body + given.headers) / 65_536)
    return batches, batches * given.groups + given.rate / known.BATCH * given.groups


def _priced(requests: tuple[float, float], given: Assumptions) -> float:
    sns, sqs = (each * given.hours * 3600 for each in requests)
    price, below = sns / 1e6 * given.sns, 0.0
    for until, each in known.SQS_PRICES:
        price += max(0.0, min(sqs, until) - below) / 1e6 * each
        below = until
    return price


def _bytes(given: Assumptions) -> float:
    return given.rate * (given.body + given.headers)


def _traffic(broker: str, given: Assumptions) -> float:
    """Bytes a second that leave a zone: in, to the other copies, and out to each group."""
    if broker == "SQS and SNS":
        return 0.0
    copies = given.replicas if broker == "Redis" else given.copies
    stored = given.groups if broker == "RabbitMQ" else 1
    return _bytes(given) * (known.ZONES * (1 + given.groups) + (copies - 1) * stored)


@dataclass(frozen=True, slots=True)
class Idle:
    """What topics take while nothing is published."""

    processes: int
    connections: int
    nodes: int | None
    """As far as a named limit tells; None where there is none."""
    bill: Bill


def for_topics(broker: str, given: Assumptions) -> Idle:
    """What `given.topics` take, each with one unordered group of one member."""
    processes = math.ceil(given.topics / given.handlers)
    nodes: int | None
    if broker == "RabbitMQ":
        connections, nodes, cores = known.RABBITMQ_CONNECTIONS * processes, None, 0
    elif broker == "Kafka":
        connections = known.KAFKA_CONNECTIONS * processes + known.KAFKA_READS * given.topics
        nodes = math.ceil(given.topics * known.KAFKA_PARTITIONS * given.copies / known.PARTITIONS_OF_A_NODE)
        cores = nodes * given.node
    elif broker == "Redis":
        connections = given.topics + known.REDIS_POOL * processes
        nodes = given.replicas * math.ceil(connections / known.MAXCLIENTS)
        cores = 2 * nodes
    else:
        connections, nodes, cores = known.SQS_CONNECTIONS * processes + known.SQS_READS * given.topics, 0, 0
    idle = idle_requests(given) if broker == "SQS and SNS" else 0.0
    processors = (processes + cores) * given.core * given.hours
    return Idle(processes, connections, nodes, Bill(processors, requests=_priced((0.0, idle), given)))


def idle_requests(given: Assumptions) -> float:
    """To SQS, a second, while nothing is published: polls, and looks for a new generation."""
    return given.topics / known.POLL_WAIT + given.topics / known.GENERATION_INTERVAL
