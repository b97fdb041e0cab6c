"""What `make faults` asks of health: each process that a fault hits tells of it while it is there."""

from __future__ import annotations

import pytest

from messaging_contracts.faults.health import untold
from messaging_contracts.faults.history import Seen, Struck, event_of, line


def seen(member: str, *told: tuple[float, str]) -> list[Seen]:
    return [Seen(at=at, member=member, status=status) for at, status in told]


def away(at: float, until: float, *told_by: str) -> Struck:
    return Struck(at=at, kind="broker killed", until=until, aftermath=30, told_by=told_by)


def test_each_process_that_was_hit_has_to_tell_and_one_beside_it_does_not_do_for_it():
    told = seen("a", (1, "green"), (6, "red"), (10, "green"))
    assert not untold([*told, away(5, 9, "a")])
    found = untold([*told, *seen("b", (1, "green")), away(5, 9, "a", "b")])
    assert found == ["the health of b told nothing of a fault: broker killed, for 4.0 s"]


def test_each_fault_has_to_be_told():
    told = seen("a", (1, "green"), (6, "red"), (10, "green"))
    assert untold([*told, away(5, 9, "a"), away(20, 25, "a")])
    assert not untold([*told, away(5, 9, "a"), away(20, 25, "a"), *seen("a", (21, "yellow"))])


def test_a_fault_that_begins_when_a_process_is_not_well_again_is_told():
    assert not untold([*seen("a", (1, "green"), (4, "yellow"), (20, "green")), away(5, 9, "a")])


@pytest.mark.parametrize("at", [3.0, 11.5])
def test_what_is_told_before_the_fault_or_when_it_has_long_been_over_does_not_tell_of_it(at: float):
    told = seen("a", (1, "green"), (at, "yellow"), (at + 0.5, "green"))
    assert untold([*told, away(5, 9, "a")])


def test_one_process_is_enough_where_the_fault_is_over_before_all_must_see_it():
    well, ill = seen("b", (1, "green")), seen("a", (1, "green"), (5.2, "yellow"))
    assert not untold([*ill, *well, away(5, 5.4, "a", "b")])
    assert untold([*well, away(5, 5.4, "a", "b")])


def test_who_was_never_well_is_not_asked_but_somebody_has_to_be():
    starting = seen("new", (1, "yellow"))
    assert not untold([*starting, *seen("a", (1, "green"), (6, "red")), away(5, 9, "new", "a")])
    assert untold([*starting, away(5, 9, "new")]) == [
        "nobody whose health had to tell of a fault was well before it"
    ]


def test_a_fault_that_need_not_be_seen_is_not_asked_for():
    assert not untold([*seen("a", (1, "green")), away(5, 9)])


def test_a_journal_keeps_who_has_to_tell():
    fault = away(5, 9, "a", "b")
    assert event_of(line(fault)) == fault
