"""The checker sees attempts that are counted wrongly, and retries that are early or late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from messaging_contracts.faults import check
from tests.faults.stories import GROUP

if TYPE_CHECKING:
    from messaging_contracts.faults.history import End
    from tests.faults.stories import Story


def test_the_settlement_of_a_failure_that_was_lost_brings_the_failed_message_itself_again(story: Story):
    story.published("m0")
    story.handled("m0", "failed", member="a")
    story.struck("a", lasts=10)
    story.handled("m0", member="b", attempt=2)
    story.handled("m0", "failed", member="b", attempt=1)
    story.handled("m0", member="b", attempt=2)
    story.handled("m0", member="b", attempt=2)
    assert list(story.verdict().violations) == ["duplicates_without_cause"]
    assert len(story.verdict().duplicates_without_cause) == 1
    assert story.verdict().duplicates == 1


def test_an_attempt_that_goes_back_is_seen(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    story.handled("m0", "released", attempt=2)
    story.handled("m0", attempt=1)
    assert list(story.verdict().violations) == ["attempts_went_back"]


@pytest.mark.parametrize(("lasts", "found"), [(10.0, []), (0.0, ["early_retries"])])
def test_who_has_lost_a_message_and_does_not_know_handles_it_before_another_releases_it(
    story: Story, lasts: float, found: list[str]
):
    story.published("m0")
    story.handled("m0", "failed", member="b")
    story.struck("b", lasts=lasts)
    story.handled("m0", "released", after=30.0, member="a", attempt=2)
    story.handled("m0", member="b", attempt=2)
    assert list(story.verdict().violations) == found


def test_a_failure_that_is_not_counted_is_seen(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    story.handled("m0", attempt=1)
    assert list(story.verdict().violations) == ["failures_uncounted"]


@pytest.mark.parametrize("struck", ["a", "b"])
def test_a_fault_may_keep_a_failure_from_being_counted(story: Story, struck: str):
    story.published("m0")
    story.handled("m0", "failed")
    story.struck(struck)  # partitions move whomever it hits
    story.handled("m0", attempt=1, member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.undercounted == 1


def test_an_attempt_is_never_counted_without_a_failure(story: Story):
    story.published("m0")
    story.handled("m0", "released")
    story.handled("m0", attempt=2)
    assert list(story.verdict().violations) == ["attempts_overcounted"]


@pytest.mark.parametrize("how", ["failed", "released"])
def test_a_retry_or_release_that_comes_early_is_seen(story: Story, how: End):
    story.published("m0")
    story.handled("m0", how, after=5)
    story.handled("m0", attempt=2 if how == "failed" else 1)
    assert list(story.verdict().violations) == ["early_retries"]


def test_a_clock_that_jumped_explains_an_early_retry_by_as_much_as_it_jumped(story: Story):
    story.published("m0")
    story.published("m1", sequence=1)
    story.clock_jumped(2, "a")
    story.clock_jumped(-3, "b")
    story.handled("m0", "failed", after=6)  # the next one is 5 s early
    story.handled("m0", attempt=2)
    story.handled("m1", "failed", after=60, sequence=1)
    story.handled("m1", attempt=2, sequence=1)
    verdict = story.verdict()
    assert list(verdict.violations) == ["early_retries"]
    assert [line[:2] for line in verdict.early_retries] == ["m1"]


@pytest.mark.parametrize("how", ["failed", "released"])
def test_a_retry_or_release_that_comes_late_is_seen(story: Story, how: End):
    story.published("m0")
    story.handled("m0", how, after=5)
    story.pass_time(3600)
    story.handled("m0", attempt=2 if how == "failed" else 1)
    assert list(story.verdict().violations) == ["late_retries"]
    assert story.verdict().latest_retry == 3596


def test_a_fault_holds_a_retry_up_until_it_is_over_and_no_longer(story: Story):
    story.published("m0")
    story.handled("m0", "failed", after=5)
    story.struck("b", lasts=3600)
    story.pass_time(3601)
    story.handled("m0", "failed", attempt=2)
    assert story.verdict().late_retries == []
    story.pass_time(61)
    story.handled("m0", attempt=3)
    assert len(story.verdict().late_retries) == 1


def test_a_retry_goes_by_the_first_of_the_failures_that_a_fault_repeated(story: Story):
    story.published("m0")
    story.struck(None, lasts=5)
    story.handled("m0", "failed", after=5)
    story.pass_time(4)
    story.handled("m0", "failed", after=5)
    story.handled("m0", attempt=2)
    assert story.verdict().violations == {}


def test_a_retry_on_time_is_none(story: Story):
    story.published("m0")
    story.handled("m0", "failed", after=5)
    story.pass_time(4)
    story.handled("m0", attempt=2)
    assert story.verdict().violations == {}


def test_a_message_that_is_handled_before_its_delay_is_over_is_seen(story: Story):
    story.published("m0", delay=5)
    story.handled("m0")
    assert list(story.verdict().violations) == ["before_due"]


@pytest.mark.parametrize("remembers", [True, False])
def test_another_member_need_not_know_of_failures_that_the_broker_does_not_keep(
    story: Story, remembers: bool
):
    story.published("m0")
    story.handled("m0", "failed", after=1)
    story.pass_time(1)
    story.handled("m0", member="b")
    verdict = check(story.events, ordered=True, groups=[GROUP], remembers=remembers)
    assert list(verdict.violations) == (["failures_uncounted"] if remembers else [])
    assert verdict.undercounted == (0 if remembers else 1)


def test_its_own_failures_a_member_knows_always(story: Story):
    story.published("m0")
    story.handled("m0", "failed", after=1)
    story.pass_time(1)
    story.handled("m0")
    verdict = check(story.events, ordered=True, groups=[GROUP], remembers=False)
    assert list(verdict.violations) == ["failures_uncounted"]


def test_a_retry_is_not_late_for_a_failure_that_was_forgotten_and_came_again_in_between(story: Story):
    story.published("m0")
    story.struck("a", lasts=200)
    story.handled("m0", "failed", member="a")
    story.pass_time(250)
    story.handled("m0", "failed", member="a")
    story.handled("m0", member="a", attempt=2)
    assert story.verdict().late_retries == []
    assert story.verdict().latest_retry < 60


def test_what_held_everything_up_excuses_a_late_retry_and_no_duplicate(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    story.struck(None, lasts=3600, ids=())
    story.pass_time(3610)
    story.handled("m0", attempt=2)
    assert story.verdict().violations == {}
    story.handled("m0", attempt=2)
    assert list(story.verdict().violations) == ["duplicates_without_cause"]
