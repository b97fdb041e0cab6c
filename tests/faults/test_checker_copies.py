"""What was published again after an unknown fate may come once for each publish, and no more often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from messaging_contracts.faults.history import End, Fate
    from tests.faults.stories import Story


def test_a_message_published_again_after_an_unknown_fate_may_come_twice(story: Story):
    story.published("m0", fate="uncertain")
    story.published("m0")
    story.handled("m0")
    story.handled("m0")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


def twice_published(story: Story) -> None:
    """So that the broker may have two copies."""
    story.published("m0", fate="uncertain")
    story.published("m0")


@pytest.mark.parametrize("ordered", [True, False])
def test_of_what_was_published_twice_each_success_beyond_two_needs_a_cause(story: Story, ordered: bool):
    twice_published(story)
    for _ in range(5):
        story.handled("m0")
    verdict = story.verdict(ordered=ordered)
    assert list(verdict.violations) == ["duplicates_without_cause"]
    assert len(verdict.duplicates_without_cause) == 3
    assert verdict.duplicates == 1


def test_a_copy_that_is_not_sent_yet_explains_nothing(story: Story):
    story.published("m0", fate="uncertain")
    story.handled("m0")
    story.handled("m0")
    story.published("m0")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


@pytest.mark.parametrize("failed", [False, True])
def test_what_is_handled_before_it_is_sent_is_a_phantom(story: Story, failed: bool):
    if failed:
        story.published("m0", fate="failed")
    story.handled("m0")
    story.published("m0")
    assert list(story.verdict().violations) == ["phantoms"]


@pytest.mark.parametrize(("first", "found"), [("m0", []), ("m1", ["disorder"])])
def test_what_was_published_twice_and_became_a_dead_letter_is_begun_before_its_successors(
    story: Story, first: str, found: list[str]
):
    twice_published(story)
    story.published("m1", sequence=1)
    for id in ("m0", "m1") if first == "m0" else ("m1", "m0"):
        story.handled(id, "rejected" if id == "m0" else "succeeded", sequence=int(id[1]))
    story.buried(
        "m0", failed_at=next(one.at for one in story.events if getattr(one, "how", "") == "rejected")
    )
    assert list(story.verdict().violations) == found


def test_a_copy_that_was_told_to_have_failed_explains_nothing(story: Story):
    story.published("m0", fate="failed")
    story.published("m0")
    story.handled("m0")
    story.handled("m0")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_without_order_two_copies_may_run_at_once_and_no_third(story: Story):
    twice_published(story)
    running = [story.begun("m0", member=member) for member in "abc"]
    for one in running:
        story.ended(one)
    assert set(story.verdict(ordered=False).violations) == {"overlaps", "duplicates_without_cause"}
    assert len(story.verdict(ordered=False).overlaps) == 1


def test_an_attempt_of_what_was_published_twice_needs_as_many_failures_of_one_copy(story: Story):
    twice_published(story)
    story.handled("m0", "failed")
    story.handled("m0", attempt=7)
    assert list(story.verdict().violations) == ["attempts_overcounted"]


def test_a_retry_of_what_was_published_twice_is_not_early_either(story: Story):
    twice_published(story)
    story.handled("m0", "failed", after=60)
    story.handled("m0", attempt=2)
    assert list(story.verdict().violations) == ["early_retries"]


def test_the_copies_of_what_was_published_twice_have_attempts_of_their_own(story: Story):
    twice_published(story)
    story.handled("m0", "failed")
    story.handled("m0", "failed", attempt=2)
    story.handled("m0", "failed")
    story.handled("m0", attempt=3)
    story.handled("m0", attempt=2)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


@pytest.mark.parametrize("fate", ["confirmed", "uncertain"])
def test_of_several_copies_the_delay_that_is_over_first_counts(story: Story, fate: Fate):
    story.published("m0", fate=fate, delay=5)
    story.published("m0", delay=50)
    story.pass_time(3)
    story.handled("m0")
    assert story.verdict().violations == {}


def test_the_delay_of_a_copy_that_was_told_to_have_failed_does_not_count(story: Story):
    story.published("m0", fate="failed")
    story.published("m0", delay=50)
    story.handled("m0")
    assert list(story.verdict().violations) == ["before_due"]


def test_a_retry_may_be_stored_twice_where_a_fault_hit_who_stored_it(story: Story):
    story.published("m0")
    story.handled("m0", "failed", after=1)
    story.struck("a")
    story.handled("m0", attempt=2, member="b")
    story.handled("m0", attempt=2, member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


def test_both_copies_of_a_retry_may_run_at_once(story: Story):
    story.published("m0", key=None)
    story.handled("m0", "failed", key=None, after=1)
    story.struck("a")
    story.pass_time(1)
    running = [story.begun("m0", key=None, attempt=2, member="b") for _ in range(2)]
    for one in running:
        story.ended(one)
    assert story.verdict(ordered=False).violations == {}


def test_a_retry_is_not_stored_a_third_time(story: Story):
    story.published("m0")
    story.handled("m0", "failed", after=1)
    story.struck("a")
    for _ in range(3):
        story.handled("m0", attempt=2, member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


@pytest.mark.parametrize("later", [0, 60])
def test_a_retry_is_not_stored_twice_without_a_fault_meanwhile(story: Story, later: float):
    story.published("m0")
    story.handled("m0", "failed", after=1)
    story.handled("m0", attempt=2, member="b")
    story.pass_time(later)
    if later:
        story.struck("a")
    story.handled("m0", attempt=2, member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_both_copies_may_run_at_once_beside_those_that_have_lost_them(story: Story):
    for fate in ("uncertain", "confirmed"):
        story.published("m0", key=None, fate=fate)
    lost = [story.begun("m0", key=None, member="a") for _ in range(2)]
    story.struck("a", lasts=100)
    first, second = (story.begun("m0", key=None, member="b") for _ in range(2))
    story.ended(second)
    for one in (first, *lost):
        story.ended(one, "cancelled")
    assert story.verdict(ordered=False).violations == {}


@pytest.mark.parametrize(("deaths", "handled", "found"), [(4, 2, []), (3, 2, [1]), (4, 3, [1])])
def test_a_suspect_is_there_twice_where_a_member_died_that_marked_it(
    story: Story, deaths: int, handled: int, found: list[int]
):
    suspected(story, deaths)
    for _ in range(handled):
        story.handled("m0", member="z")
    assert [len(texts) for texts in story.verdict(ordered=False).violations.values()] == found


def test_a_suspect_that_is_there_twice_runs_beside_itself_whatever_runs_of_another_copy(story: Story):
    for fate in ("uncertain", "confirmed"):
        story.published("m0", key=None, fate=fate)
    for member in "wxyz":
        story.struck(member, fatal=True)
    lost = story.begun("m0", key=None, member="b")
    story.struck("b")
    suspect = story.begun("m0", key=None, member="a")
    again = story.begun("m0", key=None, member="b")
    marked = story.begun("m0", key=None, member="b")
    for one in (lost, suspect):
        story.ended(one, "failed")
    for one in (again, marked):
        story.ended(one)
    assert story.verdict(ordered=False).violations == {}


def test_with_order_the_copies_are_divided_so_that_no_retry_runs_beside_what_it_is_of(story: Story):
    for _ in range(2):
        story.published("m0", key=None)
    failed = story.begun("m0", key=None, member="b")
    story.struck("b")
    story.ended(failed, "failed")
    another = story.begun("m0", key=None, member="c")
    retry = story.begun("m0", key=None, member="b", attempt=2)
    story.struck("c")
    again = story.begun("m0", key=None, member="c")
    story.ended(another)
    for one in (retry, again):
        story.ended(one, "cancelled")
    assert story.verdict().violations == {}


def suspected(story: Story, deaths: int = 4) -> None:
    """As many members as this die after it was sent."""
    story.published("m0")
    for member in "abcd"[:deaths]:
        story.struck(member, fatal=True)


def test_members_that_died_before_a_message_was_sent_make_no_suspect_of_it(story: Story):
    for member in "abcd":
        story.struck(member, fatal=True)
    story.published("m0")
    for _ in range(2):
        story.handled("m0", member="z")
    assert list(story.verdict(ordered=False).violations) == ["duplicates_without_cause"]


def test_a_suspect_is_not_there_twice_long_after_all_have_noticed_that_its_members_died(story: Story):
    suspected(story)
    story.pass_time(5000)
    for _ in range(2):
        story.handled("m0", member="z")
    assert "duplicates_without_cause" in story.verdict(ordered=False).violations


def test_with_order_a_suspect_is_never_there_twice(story: Story):
    suspected(story)
    for _ in range(2):
        story.handled("m0", member="z")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_many_handlings_of_two_copies_are_divided_as_they_may_have_been(story: Story):
    def handled(member: str, attempt: int, how: End = "succeeded", after: float = 0.0) -> None:
        story.handled("m0", how, key=None, member=member, attempt=attempt, after=after)

    story.published("m0", key=None, fate="uncertain")
    story.told("m0", "sent", key=None)
    handled("a", 1, "released")
    handled("a", 1, "failed")
    story.pass_time(10)
    story.told("m0", "uncertain", key=None)
    story.struck("a")
    handled("b", 1, "failed", after=0.5)
    handled("c", 2)
    story.struck("c")
    handled("d", 2, "released", after=3)
    story.pass_time(2)
    lost = story.begun("m0", key=None, member="d", attempt=2)
    handled("e", 2, "released", after=0.1)
    story.struck("d")
    story.pass_time(-1)
    story.ended(lost, "cancelled")
    story.pass_time(-1)
    for attempt in (2, 1, 2):
        handled("f", attempt)
    assert story.verdict(ordered=False).violations == {}
