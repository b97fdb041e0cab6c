"""The short choice of real faults, and what is told of all of them."""

from __future__ import annotations

import pytest

from messaging.errors import ConfigurationError
from messaging_contracts.cli.soak import SOAKED
from messaging_contracts.faults.grounds import NAMES, OFFERS, MemoryGround, ServerGround, ground, ours, theirs
from messaging_contracts.faults.history import Measured
from messaging_contracts.faults.report import not_tried, page, told
from messaging_contracts.faults.run import Run, kept, try_one
from messaging_contracts.faults.scenarios import faults
from messaging_contracts.faults.soak import MIB, growth
from messaging_contracts.faults.stage import SHORT, Row

CHOICE = [(fault, broker) for fault in faults() for broker in fault.short]
RESTARTING = {"killed_broker"}
"""Faults that need a broker of their own."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("fault", "broker"), CHOICE, ids=lambda one: getattr(one, "name", one))
def test_what_breaks_costs_no_message_and_no_order(fault, broker: str, tmp_path):
    with ground(broker, own=fault.name in RESTARTING) as here:
        row = try_one(fault, here, SHORT, tmp_path)
    print(told(row))
    assert row.held, told(row)


def test_the_short_choice_is_on_every_broker():
    assert {broker for _, broker in CHOICE} == {"memory", *SOAKED}


def test_every_broker_has_faults_and_what_a_fault_needs_is_offered_somewhere():
    assert set(NAMES) == {one.name for one in ours() for fault in faults() if fault.applies_to(one)}
    assert frozenset().union(*OFFERS.values()) == frozenset().union(*(fault.needs for fault in faults()))
    assert all(fault.applies_to(ground(broker)) for fault, broker in CHOICE)


def test_a_name_that_is_neither_a_broker_nor_a_fault_is_refused(tmp_path):
    with pytest.raises(ValueError, match="killed_membre: neither a broker nor a fault"):
        Run(["redis", "killed_membre"], False, tmp_path, print, 60).all()


class AcmeGround(MemoryGround):
    """Another party's, with tasks for members."""

    name = "acme"


def test_a_broker_of_another_party_has_the_faults_whose_needs_it_offers(tmp_path):
    acme = theirs(f"{__name__}:{AcmeGround.__name__}")
    rows = Run([], False, tmp_path, print, -1, [acme]).all()
    assert {row.broker for row in rows} == {"acme"}
    assert {row.fault for row in rows} == {one.name for one in faults() if not one.needs}
    text = page(kept(tmp_path, [acme]))
    assert "## acme" in text
    assert "Redis" not in text, "what is told of our brokers is not true of another"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere", "module:attribute"),
        ("tests.nowhere:AcmeGround", "there is no module tests.nowhere"),
        (f"{__name__}:Row", "is no class below messaging_contracts.faults.Ground"),
    ],
)
def test_a_broker_that_is_none_is_refused(name: str, told: str):
    with pytest.raises(ConfigurationError, match=told):
        theirs(name)


def test_what_is_not_tried_in_time_is_told_and_does_not_hold(tmp_path):
    shown: list[str] = []
    rows = Run(["redis", "killed_member"], False, tmp_path, shown.append, -1).all()
    assert [(row.broker, row.fault, row.held) for row in rows] == [("redis", "killed_member", False)]
    assert "not tried: the run's time was over" in shown[0]
    assert kept(tmp_path, ours()) == rows, "the page of a later run has the rows of this one"


def a_row(**changed) -> Row:
    values = {
        "fault": "killed_member",
        "broker": "redis",
        "version": "7.0.15",
        "confirmed": 800,
        "lost": 0,
        "disorder": 0,
        "duplicates": 3,
        "most_duplicates": 32,
        "overlaps": 0,
        "recovery": 3.21,
        "health": "green",
        "violations": (),
    }
    return Row(**(values | changed))


def test_the_page_has_a_table_for_each_broker_and_one_of_all():
    twice = a_row(broker="rabbitmq", version="4.1", recovery=None, duplicate_dead_letters=2)
    text = page([a_row(), twice])
    assert "| Members killed with kill -9 | yes | yes |" in text
    assert "## redis 7.0.15" in text
    assert "## rabbitmq 4.1" in text
    assert (
        "| Members killed with kill -9 | yes | 800 | 0 | 0 | 3 (at most 32) | - | 0 | 3.2 s | green | 0 |"
        in text
    )
    assert (
        "| Members killed with kill -9 | yes | 800 | 0 | 0 | 3 (at most 32) | 2 | 0 | - | green | 0 |" in text
    )
    assert "## Not held" not in text


def test_what_became_of_requests_and_of_idempotent_groups_has_tables_of_its_own():
    asked = a_row(requests=9, replies=7, request_errors="2 RequestTimeout")
    text = page([asked, a_row(broker="kafka", repeated=5)])
    assert "| Members killed with kill -9 | redis | 9 | 7 | 2 RequestTimeout |" in text
    assert "| Members killed with kill -9 | kafka | 800 | 5 | 3 |" in text
    assert "7 of 9 requests answered, 2 RequestTimeout" in told(asked)
    assert "## Requests" not in page([a_row()])
    assert "## Idempotent groups" not in page([a_row()])


def test_what_was_broken_is_told_below_its_line_and_on_the_page():
    row = a_row(lost=1, violations=("ordered: 1 lost:\n  m1",))
    text = told(row)
    assert text.startswith("BROKEN killed_member on redis")
    assert text.endswith("\n  ordered: 1 lost:\n  m1")
    assert "- Members killed with kill -9, on redis: ordered: 1 lost:" in page([row])
    unknown = next(fault for fault in faults() if fault.name == "poison")
    assert "not tried: no broker" in page([not_tried(unknown, "kafka", "no broker")])


def test_a_proxy_takes_the_place_of_the_broker_in_its_url():
    def through(name: str, url: str) -> str:
        there = ServerGround(name)
        there.url = url
        assert there.upstream == ("127.0.0.1", 7)
        return there.through(9)

    assert through("rabbitmq", "amqp://user:word@127.0.0.1:7/?heartbeat=3") == (
        "amqp://user:word@127.0.0.1:9/?heartbeat=3"
    )
    assert "127.0.0.1%3A9" in through("sqs", "sqs://us-east-1?endpoint_url=http://127.0.0.1:7&lease=5")


def test_growth_is_what_stays_not_what_comes_and_goes():
    def measured(memory: list[float]) -> list[Measured]:
        return [
            Measured(at=at, member="m", memory=int(size * MIB), tasks=9, files=7)
            for at, size in enumerate(memory)
        ]

    def grew(memory: list[float]) -> list[str]:
        return [one.what for one in growth(measured(memory)) if one.grew]

    assert grew([30, 40, 40, 40, 40, 90, 40, 40, 40, 41, 40, 40]) == []
    assert grew([30, 40, 40, 42, 44, 48, 50, 52, 54, 56, 58, 60]) == ["memory, MiB"]
    assert growth(measured([40] * 7)) == []
