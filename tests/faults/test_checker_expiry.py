"""The checker sees what is handled when its time is over, and what is lost before (6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.stories import Story


def test_what_is_handled_after_its_time_is_seen(story: Story):
    story.published("m0", lasts=10)
    story.pass_time(10)
    story.handled("m0")
    assert list(story.verdict().violations) == ["handled_expired"]


def test_a_retry_after_its_time_is_seen(story: Story):
    story.published("m0", lasts=10)
    story.handled("m0", "failed")
    story.pass_time(10)
    story.handled("m0", attempt=2)
    assert list(story.verdict().violations) == ["handled_expired"]


@pytest.mark.parametrize(("passed", "found"), [(1, ["lost"]), (20, [])])
def test_what_is_never_handled_is_lost_unless_it_has_expired(story: Story, passed: float, found: list[str]):
    story.published("m0", lasts=10)
    story.pass_time(passed)
    story.published("m1", sequence=1)
    story.handled("m1", sequence=1)
    verdict = story.verdict()
    assert list(verdict.violations) == found
    assert verdict.expired == (not found)


def test_the_copy_counts_that_was_confirmed(story: Story):
    story.published("m0", fate="uncertain", lasts=1)
    story.published("m0", lasts=100)
    story.published("m1", sequence=1)
    story.handled("m1", sequence=1)
    assert list(story.verdict().violations) == ["lost"]


@pytest.mark.parametrize(
    ("lasts", "found"), [(1.0, []), (100.0, ["innocent_dead_letters", "misdated_dead_letters"])]
)
def test_a_dead_letter_for_its_time_is_right_when_it_was_over(story: Story, lasts: float, found: list[str]):
    story.published("m0", lasts=lasts)
    story.pass_time(10)
    story.buried("m0", cause="expired")
    assert list(story.verdict().violations) == found


@pytest.mark.parametrize(("cause", "found"), [("expired", []), ("lease_lost", ["bare_dead_letters"])])
def test_only_the_letter_of_what_expired_may_tell_of_no_attempt(story: Story, cause: str, found: list[str]):
    story.published("m0", lasts=1)
    story.pass_time(10)
    story.buried("m0", cause=cause, attempts=0)
    assert [one for one in story.verdict().violations if one == "bare_dead_letters"] == found


def test_what_was_dropped_while_who_had_lost_it_was_still_at_it_holds_nothing_up(story: Story):
    story.published("m0", lasts=10)
    story.published("m1", sequence=1)
    lost = story.begun("m0", member="a")
    story.struck("a", lasts=60)
    story.pass_time(10)
    story.handled("m1", sequence=1, member="b")
    story.ended(lost)
    assert story.verdict().violations == {}
