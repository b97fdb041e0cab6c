"""What was interrupted, or released, comes again only for a reason, and in time; so does what comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from messaging_contracts.faults.history import End
    from tests.faults.stories import Story

LATE = 5000.0


def test_a_handling_that_was_cancelled_without_a_cause_explains_no_other(story: Story):
    story.published("m0")
    for _ in range(50):
        story.handled("m0", "cancelled")
    story.handled("m0")
    verdict = story.verdict()
    assert list(verdict.violations) == ["duplicates_without_cause"]
    assert len(verdict.duplicates_without_cause) == 50


@pytest.mark.parametrize("struck", [None, "a", "b"])
def test_a_fault_may_interrupt_a_handling_also_by_moving_its_partition(story: Story, struck: str | None):
    story.published("m0")
    name = story.begun("m0", member="a")
    story.struck(struck)
    story.ended(name, "cancelled")
    story.handled("m0", member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 0


def test_a_fault_that_was_over_before_a_handling_began_explains_no_interruption(story: Story):
    story.published("m0")
    story.struck()
    story.handled("m0", "cancelled")
    story.handled("m0")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


@pytest.mark.parametrize("how", ["cancelled", "died"])
def test_what_was_interrupted_does_not_come_again_too_late(story: Story, how: str):
    story.published("m0")
    name = story.begun("m0")
    story.struck(fatal=how == "died")
    if how == "cancelled":
        story.ended(name, "cancelled")
    story.pass_time(LATE)
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["late_retries"]


def test_a_fault_explains_no_duplicate_long_after_all_have_noticed_it(story: Story):
    story.published("m0")
    story.handled("m0")
    story.struck("a")
    story.pass_time(LATE)
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_what_comes_again_may_wait_for_what_was_sent_before_it_and_for_nothing_else(story: Story):
    story.published("m0")
    story.published("m1", sequence=1)
    story.published("m2", sequence=2)
    for number in (0, 1):
        story.handled(f"m{number}", sequence=number)
    story.struck(None)
    story.pass_time(LATE)
    story.handled("m0", sequence=0)  # itself too late
    story.handled("m1", sequence=1)
    assert [text.partition(":")[0] for text in story.verdict().duplicates_without_cause] == ["m0"]
    story.handled("m2", sequence=2)
    story.pass_time(LATE)
    story.handled("m1", sequence=1)
    assert [text.partition(":")[0] for text in story.verdict().duplicates_without_cause] == ["m0", "m1"]


def test_a_fault_explains_no_second_handler_beside_the_first_long_after_all_have_noticed_it(story: Story):
    story.published("m0")
    name = story.begun("m0")
    story.struck("a")
    story.pass_time(LATE)
    story.handled("m0", member="b")
    story.ended(name)
    assert "duplicates_without_cause" in story.verdict().violations


@pytest.mark.parametrize("struck", [None, "b"])
def test_a_duplicate_may_wait_for_its_former_or_for_another_fault(story: Story, struck: str | None):
    story.published("m0")
    name = story.begun("m0")
    story.struck("a")
    story.pass_time(LATE)
    story.ended(name)
    story.struck(struck, lasts=LATE)
    story.pass_time(LATE)
    story.handled("m0", member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


@pytest.mark.parametrize("how", ["cancelled", "succeeded"])
@pytest.mark.parametrize(("faults", "more"), [(1, 2), (2, 4)])
def test_each_fault_explains_two_more_handlings_of_a_message(story: Story, how: End, faults: int, more: int):
    story.published("m0")
    for _ in range(faults):
        story.struck(None, lasts=1000)
    for _ in range(more):
        story.handled("m0", how)
    story.handled("m0")
    assert story.verdict().violations == {}
    for _ in range(2):
        story.handled("m0", how)
    assert len(story.verdict().duplicates_without_cause) == 2


def test_each_release_that_a_handler_asked_for_explains_one_more_handling_and_no_second(story: Story):
    story.published("m0")
    for _ in range(50):
        story.handled("m0", "released")
    story.handled("m0")
    assert story.verdict().violations == {}
    story.handled("m0")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]
    assert len(story.verdict().duplicates_without_cause) == 1


@pytest.mark.parametrize("delay", [None, 5.0])
def test_a_message_that_is_first_handled_too_late_is_seen(story: Story, delay: float | None):
    story.published("m0", delay=delay)
    story.pass_time(LATE)
    story.handled("m0")
    assert list(story.verdict().violations) == ["late_firsts"]


def test_a_message_that_is_passed_over_while_others_are_handled_is_late(story: Story):
    story.published("m0", key="a")
    for number in range(100):
        story.published(f"n{number}", key="b", sequence=number)
        story.handled(f"n{number}", key="b", sequence=number)
    story.handled("m0", key="a")
    assert list(story.verdict().violations) == ["late_firsts"]


def test_a_message_may_wait_for_what_was_sent_before_it(story: Story):
    story.published("m0")
    story.published("m1", sequence=1)
    name = story.begun("m0")
    story.pass_time(LATE)
    story.ended(name)
    story.handled("m1", sequence=1)
    assert story.verdict().violations == {}


def test_a_fault_holds_a_first_handling_up_until_it_is_over(story: Story):
    story.published("m0")
    story.struck(None, lasts=LATE)
    story.pass_time(LATE)
    story.handled("m0")
    assert story.verdict().violations == {}


def test_a_dead_letter_that_tells_of_other_attempts_than_there_were_is_seen(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    story.handled("m0", "rejected", attempt=2)
    story.buried("m0", attempts=2)
    assert story.verdict().violations == {}
    for wrong in (1, 99):
        story.buried("m0", attempts=wrong, look=1 + wrong)
    assert list(story.verdict().violations) == ["miscounted_dead_letters"]
    assert len(story.verdict().miscounted_dead_letters) == 2


def test_a_dead_letter_of_lost_members_tells_of_no_more_attempts_than_failures_make(story: Story):
    story.published("m0")
    story.died_with("m0")
    story.begun("m0")
    story.struck(fatal=True)
    story.buried("m0", cause="lease_lost", attempts=1)
    assert story.verdict().violations == {}
    story.buried("m0", cause="lease_lost", attempts=2, look=2)
    assert list(story.verdict().violations) == ["miscounted_dead_letters"]


@pytest.mark.parametrize("deaths", ["", "x", "xy"])
def test_a_message_that_lost_fewer_members_than_a_suspect_is_no_dead_letter(story: Story, deaths: str):
    story.published("m0")
    story.died_with("m0", deaths)
    story.begun("m0")
    story.struck(fatal=True)
    story.buried("m0", cause="lease_lost")
    assert list(story.verdict().violations) == ["innocent_dead_letters"]


@pytest.mark.parametrize("how", ["cancelled", "succeeded"])
def test_lost_connections_make_no_dead_letter(story: Story, how: End):
    story.published("m0")
    for _ in range(5):
        name = story.begun("m0")
        story.struck("a", kind="cut")
        story.ended(name, how)
    story.buried("m0", cause="lease_lost")
    assert list(story.verdict().violations) == ["innocent_dead_letters"]


def test_members_that_ended_without_its_handler_make_no_dead_letter(story: Story):
    story.published("m0")
    for member in "uvwxyz":
        story.struck(member, fatal=True)
    story.buried("m0", cause="lease_lost")
    assert "innocent_dead_letters" in story.verdict().violations


def test_a_success_long_before_a_fault_is_no_reason_for_a_dead_letter(story: Story):
    story.published("m0")
    story.handled("m0")
    story.pass_time(60)
    story.struck("a")
    story.buried("m0", cause="lease_lost")
    assert list(story.verdict().violations) == ["innocent_dead_letters"]


@pytest.mark.parametrize("failed_at", [-1.0, 3.5, 1000.0])
def test_a_dead_letter_failed_when_a_handling_ended_that_rejected_it(story: Story, failed_at: float):
    story.published("m0")  # until 2
    story.handled("m0", "rejected")  # until 4
    story.pass_time(LATE)
    story.buried("m0", failed_at=4.0)
    assert story.verdict().violations == {}
    story.buried("m0", failed_at=failed_at, look=2)
    assert list(story.verdict().violations) == ["misdated_dead_letters"]


def test_a_dead_letter_of_lost_members_failed_while_it_was_there(story: Story):
    story.published("m0")
    story.died_with("m0")
    story.begun("m0")
    story.struck(fatal=True)
    story.buried("m0", cause="lease_lost")
    assert story.verdict().violations == {}
    for look, failed_at in ((2, -1.0), (3, story.at + 1)):
        story.buried("m0", cause="lease_lost", failed_at=failed_at, look=look)
    assert len(story.verdict().misdated_dead_letters) == 2


def test_a_clock_that_jumped_explains_the_time_of_a_dead_letter_by_as_much_as_it_jumped(story: Story):
    story.published("m0")
    story.clock_jumped(-60)
    story.handled("m0", "rejected")
    story.buried("m0", failed_at=story.at - 60)
    assert story.verdict().violations == {}
    story.buried("m0", failed_at=story.at - 62, look=2)
    assert list(story.verdict().violations) == ["misdated_dead_letters"]


def test_a_handling_that_is_told_twice_is_no_history(story: Story):
    story.published("m0")
    story.handled("m0")
    story.events += story.events[-2:]
    assert "impossible" in story.verdict().violations


def test_a_handling_that_ends_before_it_begins_is_no_history(story: Story):
    story.published("m0")
    name = story.begun("m0")
    story.at -= 10
    story.ended(name)
    assert list(story.verdict().violations) == ["impossible"]
