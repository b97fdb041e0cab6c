"""The page of the model: what was measured, what is assumed, what follows."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from benchmarks.scale import assumptions as known
from benchmarks.scale.model import PATHS, for_rate, for_topics, measured
from benchmarks.scale.notes import about, on_rate, on_topics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.scale.assumptions import Assumptions
    from benchmarks.scale.model import Deployment, Measured

QUIET = 0.3
"""Cores that may be busy without a message: idle brokers take some."""
SPREAD = {"RabbitMQ": "queues", "Kafka": "partitions", "Redis": "topics", "SQS and SNS": "queues"}


def write(figures: Mapping[str, Any], given: Assumptions) -> str:
    """The page, as Markdown, out of what `make bench` has kept."""
    idle = figures["idle"] or 0.0
    costs = measured(figures["paths"], idle)
    sources = ", ".join(f"[{name}]({address})" for name, address in known.SOURCES)
    parts = [
        _head(figures),
        _measured(costs, idle, figures["size"]),
        _formulas(),
        _rate(costs, given),
        _topics(given),
        _assumed(given),
        f"## Sources\n\n{sources}.\n",
    ]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def _head(figures: Mapping[str, Any]) -> str:
    return f"""# What one would deploy

Written by `make scale` from `docs/benchmarks.json`, the figures of `make bench` of {figures["written"]} on
{figures["processor"]}. **A model, not a measurement:** no cluster of this size was run. It multiplies what a message
costs one process and one broker on one machine; that more of them add up is assumed. Prices and what else is assumed
stand in the last table, and in `benchmarks/scale/assumptions.py` to be changed.
"""


def _measured(costs: Mapping[str, Measured], idle: float, size: int) -> str:
    rows: list[list[str]] = []
    for broker, cost in costs.items():
        both = (cost.publish, cost.consume)
        rows.append(
            [
                broker,
                *(f"{each.rate:,.0f}" for each in both),
                *(f"{each.cost:.0f}" for each in both),
                *(f"{each.beside:.0f}" for each in both),
            ]
        )
    head = (
        "broker",
        "published/s",
        "handled/s",
        "publisher, µs",
        "member, µs",
        "broker: publish, µs",
        "consume, µs",
    )
    told = ""
    if missing := [broker for broker in PATHS if broker not in costs]:
        told += f"\nNot measured in that run, or not on a quiet machine, so left out: {', '.join(missing)}.\n"
    if idle > QUIET:
        told += (
            f"\n**The machine was not quiet** ({idle:.2f} cores of other work): brokers' times mean little.\n"
        )
    return f"""## Measured

A message's time of the processor. The broker's is what the rest of the machine took meanwhile, less the {idle:.2f}
cores that it took without messages, and on one node without copies. Messages were of {size:,} bytes: smaller ones cost
less. On SQS the broker is LocalStack, which says nothing of AWS.

{_table(head, rows)}{told}"""


def _formulas() -> str:
    return """## Formulas

- *Publishers, members*: messages a second, times their time of the processor, by the part of a core that is used. A
  process fills one core. Members: once for each group.
- *Nodes*: the same with the broker's time. Kafka: a publish once a copy, a consume once a group. RabbitMQ: both once a
  copy and group, as each group has a queue of its own and each replica applies its commands. Redis: both on the one
  core of a shard, and a replica beside it.
- *Spread*: RabbitMQ: queues, by the rate of one that is filled and emptied at once. Kafka: partitions, two for each
  member of a group. Redis: topics, so many a shard that they fill them evenly. SQS: queues, by what one lends at once.
- *Connections*: as counted on running brokers; a publisher has one to each node of Kafka and each shard of Redis.
- *Requests*: tenths of the messages, in full batches: a publish, and for each group a receive and a delete.
- *Traffic*: two thirds of what goes in and out, and every further copy. *Disk*: Kafka's retention of a week, each copy.
"""


def _rate(costs: Mapping[str, Measured], given: Assumptions) -> str:
    rows: list[list[str]] = []
    for broker, cost in costs.items():
        more = for_rate(broker, cost, replace(given, groups=given.groups + 1))
        rows.append(_deployed(broker, for_rate(broker, cost, given), more))
    head = (
        *("broker", "publishers", "members", "connections", "spread over", "nodes", "requests/s"),
        *("processors, $", "traffic, $", "disk or requests, $", "a month, $", "a further group, $"),
    )
    notes = [on_rate(broker, cost, given) for broker, cost in costs.items()]
    return "\n".join([f"## {given.rate:,.0f} messages a second\n", _table(head, rows), *notes, ""])


def _deployed(broker: str, found: Deployment, more: Deployment) -> list[str]:
    bill = found.bill
    return [
        broker,
        *(about(each) for each in (found.publishers, found.members, found.connections)),
        f"{about(found.partitions)} {SPREAD[broker]}",
        about(found.nodes) if found.nodes else "AWS'",
        about(found.requests) if found.requests else "",
        *(about(each) if each else "" for each in (bill.processors, bill.traffic, bill.disk + bill.requests)),
        about(bill.total),
        f"+{about(more.bill.total - bill.total)}",
    ]


def _topics(given: Assumptions) -> str:
    rows: list[list[str]] = []
    for broker in PATHS:
        found = for_topics(broker, given)
        unknown = found.nodes is None
        rows.append(
            [
                broker,
                _kept(broker, given),
                *(about(each) for each in (found.processes, found.connections)),
                "not measured" if unknown else about(found.nodes or 0) if found.nodes else "AWS'",
                f"{'≥ ' if unknown else ''}{about(found.bill.total)}",
            ]
        )
    notes = "\n".join(on_topics(broker, given) for broker in PATHS)
    return f"""## {given.topics:,} topics

Each with 8 partitions and one unordered group of one member, {given.handlers} topics a process, while nothing is
published. What a topic takes was counted on running brokers, with one and a few topics. **So many were not tried
anywhere**: the curves of `make bench-full` go to 1000 on Redis, 100 on the others.

{_table(("broker", "kept", "processes", "connections", "nodes", "a month, $"), rows)}
{notes}

Topics that are one stream for each customer, device or document belong into one topic with a key: a key is nothing
that a broker keeps.
"""


def _kept(broker: str, given: Assumptions) -> str:
    many = given.topics
    return {
        "RabbitMQ": f"{many * known.RABBITMQ_QUEUES:,} queues, {many * known.RABBITMQ_QUORUM:,} of them quorum queues",
        "Kafka": f"{many * known.KAFKA_PARTITIONS:,} partitions, each {given.copies} times",
        "Redis": f"{many * known.REDIS_KEYS:,} keys, {many * known.REDIS_BYTES / 1e9:.1f} GB",
        "SQS and SNS": f"{many:,} SNS topics, {many * known.SQS_QUEUES:,} queues",
    }[broker]


def _assumed(given: Assumptions) -> str:
    rows = [[each.metadata["what"], f"{getattr(given, each.name):,}"] for each in fields(given)]
    tiers = ", ".join(f"{price:.2f}" for _, price in known.SQS_PRICES)
    rows.append(
        [
            "$ for a million requests to SQS, of a month's first 100, next 100 and further thousand millions",
            tiers,
        ]
    )
    return f"""## Assumed

Prices are about those of AWS in its largest region, as others tell of them in 2026: look them up before you rely on
them.

{_table(("what", "value"), rows)}"""
