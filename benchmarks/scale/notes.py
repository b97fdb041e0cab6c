"""What stands in a broker's way first, with its named limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scale import assumptions as known
from benchmarks.scale.model import for_rate, idle_requests, queue_rate

if TYPE_CHECKING:
    from benchmarks.scale.assumptions import Assumptions
    from benchmarks.scale.model import Measured


def about(number: float) -> str:
    """Two digits that count: more would claim what a model does not know."""
    return f"{float(f'{number:.2g}'):,.0f}"


def on_rate(broker: str, cost: Measured, given: Assumptions) -> str:
    """What to know of `given.rate`."""
    found = for_rate(broker, cost, given)
    if broker == "RabbitMQ":
        return f"""- **RabbitMQ**: a queue has one core of its broker (*Queues*): {about(queue_rate(cost))} messages/s.
  An unordered group of a topic is one queue, so a stream of this rate has to be an ordered topic of so many
  partitions, or so many topics. Nobody ran a cluster of so many nodes here: several clusters are likelier."""
    if broker == "Kafka":
        replicas, most = found.partitions * given.copies / found.nodes, known.PARTITIONS_OF_A_NODE
        return f"""- **Kafka**: members beyond the partitions of a topic would be idle. {about(replicas)} partitions
  a node, copies included, are few (of {most:,}: *KIP-578*). Disk is the retention: a day costs a seventh."""
    if broker == "Redis":
        shards = found.nodes // given.replicas
        clients = found.publishers + known.REDIS_CONNECTIONS * found.members / shards
        kept = given.rate * (given.body + given.headers) * known.REDIS_HISTORY / 1e9 / shards
        return f"""- **Redis**: all of a topic lives on one shard, for {about(given.rate / shards)} messages/s: the
  stream has to be many topics. A cluster has {known.CLUSTER_NODES:,} nodes at most (*Redis cluster specification*).
  A shard has {about(clients)} connections at least, where every publisher writes to all (of {known.MAXCLIENTS:,}:
  *ERR max number of clients*), and {kept:.1f} GB for the minute that handled messages stay. A failover can lose what
  was confirmed."""
    lent, published = known.IN_FLIGHT, known.SNS_RATE
    return f"""- **SQS and SNS**: a queue lends {lent:,} messages at once (*SQS standard queue quotas*), each here for
  {given.held:g} s: {about(found.partitions)} queues. SNS takes {published:,} messages/s of an account in its largest
  region (*SNS endpoints and quotas*): {about(given.rate / published)} times that has to be granted, or `fanout=client`
  used, which sends to SQS once for each group instead. The members' time is mostly boto3's."""


def on_topics(broker: str, given: Assumptions) -> str:
    """What breaks first with `given.topics`."""
    if broker == "RabbitMQ":
        most = known.CHANNELS // known.RABBITMQ_CHANNELS
        return f"""- **RabbitMQ**: a process has one connection to consume, with {known.CHANNELS:,} channels by default
  (*Channels*), {known.RABBITMQ_CHANNELS} for a topic: {most} topics a process. Each quorum queue is a Raft group with
  processes on each of its nodes, and a name in a table of 5 million (*Quorum queues*). How many a node bears was not
  measured."""
    if broker == "Kafka":
        most = known.PARTITIONS_OF_A_CLUSTER
        times = given.topics * known.KAFKA_PARTITIONS / most
        return f"""- **Kafka**: the partitions, {about(times)} times the {most:,} that a cluster is recommended at
  most (*KIP-578*; clusters without ZooKeeper bear more, not measured here). Of the {known.KAFKA_PARTITIONS} of a
  topic, 24 are its group's retries. Not to be done."""
    if broker == "Redis":
        return f"""- **Redis**: the connections. Each topic that a process handles has a read that waits; a server takes
  {known.MAXCLIENTS:,} (*ERR max number of clients*), which can be raised (`maxclients`). Memory is no problem."""
    return f"""- **SQS and SNS**: the bill: {about(idle_requests(given))} requests/s while nothing is published
  (`poll_wait`, `generation_interval`). SNS gives an account {known.SNS_TOPICS:,} topics,
  {known.SNS_FIFO_TOPICS:,} FIFO ones (*SNS features*). Each topic waits in a thread of its process."""
