"""The checker sees each fault in a made-up history, and finds none where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from messaging_contracts.faults import Settled, Struck, check, recoveries
from messaging_contracts.faults.history import REMOVED
from tests.faults.stories import GROUP, Story

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate


def test_a_history_without_faults_has_no_violations(story: Story):
    for number in range(3):
        story.published(f"m{number}", sequence=number)
    story.handled("m0", sequence=0)
    story.handled("m1", "failed", sequence=1)
    story.handled("m1", sequence=1, attempt=2)
    story.handled("m2", "rejected", sequence=2)
    story.buried("m2")
    verdict = story.verdict()
    verdict.assert_kept(duplicates=0)
    assert (verdict.messages, verdict.handlings, verdict.dead_letters) == (3, 4, 1)


def test_a_confirmed_message_that_never_came_is_lost(story: Story):
    story.published("m0")
    assert list(story.verdict().violations) == ["lost"]


def test_what_was_confirmed_until_it_was_deleted_on_the_broker_may_be_lost_and_nothing_after(story: Story):
    story.published("m0", sequence=0)
    story.struck(None, kind=REMOVED)
    story.published("m1", sequence=1)
    verdict = story.verdict()
    assert verdict.removed == 1
    assert [line.split()[0] for line in verdict.lost] == ["p/k/1"]


def test_a_confirmed_message_that_only_failed_is_lost(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    assert list(story.verdict().violations) == ["lost"]


def test_a_rejected_message_without_a_dead_letter_is_lost(story: Story):
    story.published("m0")
    story.handled("m0", "rejected")
    assert list(story.verdict().violations) == ["lost"]


def test_a_message_is_lost_for_the_one_group_that_did_not_get_it(story: Story):
    story.published("m0")
    story.handled("m0")
    verdict = check(story.events, ordered=True, groups=[GROUP, "search"])
    assert len(verdict.lost) == 1
    assert "search" in verdict.lost[0]


@pytest.mark.parametrize("fate", ["uncertain", "failed"])
def test_what_was_not_confirmed_may_be_missing(story: Story, fate: Fate):
    story.published("m0", fate=fate)
    assert story.verdict().violations == {}


def test_what_was_told_to_have_failed_must_not_come(story: Story):
    story.published("m0", fate="failed")
    story.handled("m0")
    assert list(story.verdict().violations) == ["phantoms"]


def test_what_nobody_sent_is_a_phantom(story: Story):
    story.handled("m0")
    assert list(story.verdict().violations) == ["phantoms"]


def test_what_comes_with_another_key_was_altered(story: Story):
    story.published("m0")
    story.handled("m0", key="other")
    assert list(story.verdict().violations) == ["altered"]


def test_a_second_handling_without_a_fault_has_no_cause(story: Story):
    story.published("m0")
    story.handled("m0")
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


@pytest.mark.parametrize("member", ["a", None])
def test_a_fault_of_its_member_or_the_broker_is_a_cause_and_is_counted(story: Story, member: str | None):
    story.published("m0")
    story.handled("m0")
    story.struck(member)
    story.handled("m0", member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1
    with pytest.raises(AssertionError, match="1 duplicates, 0 are allowed"):
        verdict.assert_kept(duplicates=0)


def test_a_fault_that_was_over_before_is_no_cause(story: Story):
    story.published("m0")
    story.struck("a")
    story.handled("m0")
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_the_fault_of_another_member_is_no_cause(story: Story):
    story.published("m0")
    story.handled("m0")
    story.struck("c")
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["duplicates_without_cause"]


def test_a_member_that_does_not_know_yet_that_it_lost_the_lease_may_come_second(story: Story):
    story.published("m0")
    story.struck("b", lasts=10)
    story.handled("m0")
    story.handled("m0", member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


def test_what_was_settled_by_hand_does_not_come_again_whatever_happens(story: Story):
    story.published("m0")
    name = story.begun("m0")
    story.ended(name)
    story.events.append(Settled(at=story.at, handling=name))
    story.struck("a")
    story.handled("m0", member="b")
    assert list(story.verdict().violations) == ["settled_again"]


def test_each_duplicate_needs_a_fault_since_the_one_before(story: Story):
    story.published("m0")
    story.handled("m0")
    story.struck("a")
    story.handled("m0", member="b")
    story.handled("m0", member="c")
    assert len(story.verdict().duplicates_without_cause) == 1


def test_what_died_with_its_process_is_handled_again_and_is_no_duplicate(story: Story):
    story.published("m0")
    story.begun("m0")
    story.struck("a", fatal=True)
    story.handled("m0", member="b")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 0


def test_a_message_that_begins_before_its_predecessor_succeeded_is_out_of_order(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.handled("m0", "failed", sequence=0)
    story.handled("m1", sequence=1)
    story.handled("m0", sequence=0, attempt=2)
    assert set(story.verdict().violations) == {"disorder", "successes_out_of_order"}


def test_a_message_that_begins_while_its_predecessor_runs_is_out_of_order_and_overlaps(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    first = story.begun("m0", sequence=0)
    second = story.begun("m1", sequence=1)
    story.ended(first)
    story.ended(second)
    assert set(story.verdict().violations) == {"disorder", "overlaps"}


def test_without_a_promise_of_order_none_is_asked_for(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    first = story.begun("m1", sequence=1)
    story.handled("m0", sequence=0)
    story.ended(first)
    assert story.verdict(ordered=False).violations == {}


def test_other_keys_are_not_waited_for(story: Story):
    story.published("m0", key="k")
    story.published("m1", key="l")
    story.handled("m1", key="l")
    story.handled("m0", key="k")
    assert story.verdict().violations == {}


def test_what_is_handled_again_after_a_fault_does_not_break_the_order_of_first_successes(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.handled("m0", sequence=0)
    story.handled("m1", sequence=1)
    story.struck("a")
    story.handled("m0", sequence=0, member="b")
    story.handled("m1", sequence=1, member="b")
    assert story.verdict().violations == {}


def test_a_dead_letter_lets_its_successors_go_on(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.died_with("m0")
    story.begun("m0", sequence=0)
    story.struck("a", fatal=True)
    story.buried("m0", cause="lease_lost")
    story.handled("m1", sequence=1, member="b")
    assert story.verdict().violations == {}


def test_successors_of_a_message_that_was_given_up_need_not_wait_for_who_has_lost_it(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.died_with("m0")
    stale = story.begun("m0", sequence=0)
    story.struck("a", kind="lost lease", ids=("m0",))
    story.buried("m0", cause="lease_lost")
    story.handled("m1", sequence=1, member="b")
    story.ended(stale)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.overlaps_after_lost_leases == 1


def test_two_handlers_of_one_message_at_once_overlap_without_order_too(story: Story):
    story.published("m0", key=None)
    first = story.begun("m0", key=None)
    story.ended(story.begun("m0", key=None, member="b"))
    story.ended(first)
    assert set(story.verdict(ordered=False).violations) == {"overlaps", "duplicates_without_cause"}


def test_an_overlap_after_a_lost_lease_is_counted_apart(story: Story):
    story.published("m0")
    first = story.begun("m0")
    story.struck("a", lasts=5)
    story.ended(story.begun("m0", member="b"))
    story.pass_time(5)
    story.ended(first)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.overlaps_after_lost_leases == 1


def test_without_order_what_failed_and_its_retry_run_at_once_where_its_member_was_hit_and_nowhere_else(
    story: Story,
):
    def retried_twice() -> None:
        retry = story.begun("m0", key=None, member="b", attempt=2)
        again = story.begun("m0", key=None, member="c", attempt=1)
        story.ended(retry)
        story.ended(again, "failed")
        story.handled("m0", key=None, member="c", attempt=2)

    story.published("m0", key=None)
    story.handled("m0", "failed", key=None)
    story.struck("a", lasts=10)
    retried_twice()
    verdict = story.verdict(ordered=False)
    assert verdict.violations == {}
    assert verdict.overlaps_after_lost_leases == 1

    unhurt = Story()
    unhurt.events = [event for event in story.events if not isinstance(event, Struck)]
    assert "overlaps" in unhurt.verdict(ordered=False).violations


@pytest.mark.parametrize("member", ["a", "b"])
def test_a_fence_that_goes_back_is_seen(story: Story, member: str):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.handled("m0", sequence=0, fence=9)
    story.handled("m1", sequence=1, fence=1, member=member)
    assert list(story.verdict().violations) == ["fences_went_back"]
    assert story.verdict(ordered=False).violations == {}, "nobody owns a key without order"


def test_a_new_owner_with_the_fence_of_the_old_one_is_seen(story: Story):
    story.published("m0", sequence=0)
    story.published("m1", sequence=1)
    story.handled("m0", sequence=0, fence=9)
    story.handled("m1", sequence=1, fence=9, member="b")
    assert list(story.verdict().violations) == ["fences_went_back"]


def test_a_fence_that_grows_with_the_owner_is_none_nor_is_that_of_a_member_that_lost_its_lease(story: Story):
    for number in range(4):
        story.published(f"m{number}", sequence=number)
    story.handled("m0", sequence=0, fence=1)
    story.handled("m1", sequence=1, fence=1)
    story.struck("a", lasts=9)
    story.handled("m2", sequence=2, fence=2, member="b")
    story.handled("m3", sequence=3, fence=1)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.stale_fences == 1


@pytest.mark.parametrize("missing", [{"reason": ""}, {"cause": None}, {"attempts": 0}])
def test_a_dead_letter_without_its_record_is_seen(story: Story, missing: dict):
    story.published("m0")
    story.handled("m0", "rejected")
    story.buried("m0", **missing)
    assert list(story.verdict().violations) == ["bare_dead_letters"]


def test_a_second_dead_letter_of_a_message_that_nothing_explains_is_seen(story: Story):
    story.published("m0")
    story.handled("m0", "rejected")
    story.buried("m0")
    story.buried("m0")
    verdict = story.verdict()
    assert list(verdict.violations) == ["repeated_dead_letters"]
    assert (verdict.dead_letters, verdict.duplicate_dead_letters) == (1, 1)


def test_a_second_dead_letter_that_a_fault_explains_is_counted(story: Story):
    story.published("m0")
    story.handled("m0", "rejected")
    story.struck("a")
    story.buried("m0")
    story.buried("m0")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert (verdict.dead_letters, verdict.duplicate_dead_letters) == (1, 1)
    with pytest.raises(AssertionError, match="1 duplicates of dead letters, 0 are allowed"):
        verdict.assert_kept(duplicates=0)


def test_a_fault_long_after_a_rejection_explains_no_second_dead_letter(story: Story):
    story.published("m0")
    story.handled("m0", "rejected")
    story.pass_time(60)
    story.struck("a")
    story.buried("m0")
    story.buried("m0")
    assert list(story.verdict().violations) == ["repeated_dead_letters"]


def test_a_dead_letter_that_is_found_at_two_looks_is_one(story: Story):
    story.published("m0")
    story.handled("m0", "rejected")
    story.buried("m0", look=1)
    story.buried("m0", look=2)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicate_dead_letters == 0


def test_a_dead_letter_that_nothing_explains_is_seen(story: Story):
    story.published("m0")
    story.handled("m0")
    story.buried("m0", cause="lease_lost")
    assert list(story.verdict().violations) == ["innocent_dead_letters"]


def test_an_error_names_every_kind_of_violation(story: Story):
    story.published("m0")
    story.published("m1", sequence=1)
    story.handled("m1", sequence=1)
    story.handled("m1", sequence=1)
    with pytest.raises(AssertionError, match=r"(?s)1 lost.*1 duplicates without cause"):
        story.verdict().assert_kept()


def test_recovery_is_the_longest_that_a_message_waited_because_of_a_fault(story: Story):
    story.published("m0")
    story.published("m1", sequence=1)
    story.struck("a")  # at 5
    story.struck(None, lasts=2)  # from 6 until 8
    story.pass_time(3)
    story.handled("m0")  # done at 11
    story.handled("m1", sequence=1)  # done at 13
    story.struck(None)
    assert [seconds for _, seconds in recoveries(story.events)] == [8.0, 5.0, None]


def test_a_death_is_dated_by_the_last_sign_of_life(story: Story):
    story.published("m0")
    story.begun("m0")
    story.handled("m0", member="b")
    story.struck("a", fatal=True)
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.overlaps_after_lost_leases == 0
