"""The model of `make scale`: its figures follow from what was measured and from what is assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.measure import Moment
from benchmarks.scale.assumptions import Assumptions
from benchmarks.scale.model import Cost, Measured, for_rate, measured
from benchmarks.scale.report import write

GIVEN = replace(Assumptions(), rate=1_000_000, groups=1, busy=0.5, body=200, headers=300)
COST = Measured(publish=Cost(20_000, 20, 10), consume=Cost(20_000, 40, 5))


def figures(**others: float) -> dict[str, dict[str, dict[str, float]]]:
    own = {"rate": 10_000.0, "cost": 30.0, "beside": 50.0, **others}
    return {name: {"messaging": own} for name in ("Kafka publish", "Kafka consume")}


def test_processes_follow_from_the_processors_time_and_each_group_needs_its_own_members() -> None:
    one, two = for_rate("Kafka", COST, GIVEN), for_rate("Kafka", COST, replace(GIVEN, groups=2))

    assert (one.publishers, one.members) == (40, 80)
    assert (two.publishers, two.members) == (40, 160)
    assert two.partitions == one.partitions == 160


def test_copies_are_written_by_each_node_and_a_group_of_kafka_reads_one() -> None:
    given = replace(GIVEN, copies=3, node=1)

    assert for_rate("Kafka", COST, given).nodes == (3 * 10 + 5) * 2
    assert for_rate("RabbitMQ", COST, given).nodes == 3 * (10 + 5) * 2


def test_requests_to_sqs_are_priced_in_their_tiers() -> None:
    given = replace(GIVEN, hours=1000, sns=0.5)  # 100 000 batches to SNS a second, twice as many to SQS

    found = for_rate("SQS and SNS", COST, given)

    assert found.requests == 300_000
    sns, sqs = 360e9 / 1e6 * 0.5, (100e9 * 0.4 + 100e9 * 0.3 + 520e9 * 0.24) / 1e6
    assert found.bill.requests == pytest.approx(sns + sqs)


def test_what_a_machine_does_without_messages_is_not_the_brokers() -> None:
    assert measured(figures(), idle=0.2)["Kafka"].publish.beside == pytest.approx(30)


@pytest.mark.parametrize("paths", [{}, figures(beside=10.0)])
def test_a_broker_that_was_not_well_measured_is_left_out(
    paths: dict[str, dict[str, dict[str, float]]],
) -> None:
    page = write(
        {"paths": paths, "idle": 0.2, "size": 1024, "written": "today", "processor": "a machine"}, GIVEN
    )

    assert "left out: RabbitMQ, Kafka, Redis, SQS and SNS" in page
    assert "machine was not quiet" not in page


def test_a_round_tells_its_own_time_of_the_processor_from_the_others() -> None:
    found = Moment(0, 0, 0).until(Moment(2, 1, 1.5), 10, handled=20)

    assert (found.rate, found.cost, found.beside, found.messages) == (5, 0.1, 0.05, 20)
