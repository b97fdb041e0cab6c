"""The checker sees each fault in a made-up history, and finds none where there is none."""

from __future__ import annotations

from itertools import count

import pytest

from messaging_contracts.faults import Begun, Buried, Ended, Event, Published, Struck, check, recoveries
from messaging_contracts.faults.history import REMOVED, End, Fate

GROUP = "billing"


class Story:
    """A history that is told step by step: one second passes with each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.at = 0.0
        self._names = count()

    def pass_time(self, seconds: float) -> None:
        self.at += seconds

    def published(
        self,
        id: str,
        *,
        fate: Fate = "confirmed",
        key: str | None = "k",
        sequence: int = 0,
        delay: float | None = None,
    ) -> None:
        due = None if delay is None else self.at + delay
        steps: tuple[Fate, Fate] = ("sent", fate)
        for step in steps:
            self.pass_time(1)
            self.events.append(
                Published(at=self.at, fate=step, id=id, key=key, sequence=sequence, publisher="p", due=due)
            )

    def begun(
        self, id: str, *, member: str = "a", attempt: int = 1, sequence: int = 0, key: str | None = "k"
    ) -> str:
        self.pass_time(1)
        name = str(next(self._names))
        self.events.append(
            Begun(
                at=self.at,
                handling=name,
                id=id,
                group=GROUP,
                member=member,
                key=key,
                sequence=sequence,
                attempt=attempt,
            )
        )
        return name

    def ended(self, name: str, how: End = "succeeded", after: float = 0.0) -> None:
        self.pass_time(1)
        self.events.append(Ended(at=self.at, handling=name, how=how, after=after))

    def handled(self, id: str, how: End = "succeeded", *, after: float = 0.0, **begun) -> None:
        self.ended(self.begun(id, **begun), how, after)

    def struck(
        self, member: str | None = "a", *, fatal: bool = False, lasts: float = 0.0, kind: str = "fault"
    ) -> None:
        self.pass_time(1)
        until = self.at + lasts if lasts else None
        self.events.append(Struck(at=self.at, kind=kind, member=member, fatal=fatal, until=until))

    def buried(self, id: str, *, reason="broken", cause: str | None = "rejected", attempts=1) -> None:
        self.events.append(
            Buried(
                at=self.at,
                id=id,
                group=GROUP,
                reason=reason,
                cause=cause,
                attempts=attempts,
                failed_at=self.at,
            )
        )

    def verdict(self, *, ordered: bool = True):
        return check(self.events, ordered=ordered, groups=[GROUP])


@pytest.fixture
def story() -> Story:
    return Story()


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


def test_each_duplicate_needs_a_fault_since_the_one_before(story: Story):
    story.published("m0")
    story.handled("m0")
    story.struck("a")
    story.handled("m0", member="b")
    story.handled("m0", member="c")
    assert len(story.verdict().duplicates_without_cause) == 1


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


def test_a_message_published_again_after_an_unknown_fate_may_come_twice(story: Story):
    story.published("m0", fate="uncertain")
    story.published("m0")
    story.handled("m0")
    story.handled("m0")
    verdict = story.verdict()
    assert verdict.violations == {}
    assert verdict.duplicates == 1


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
    story.begun("m0", sequence=0)
    story.struck("a", fatal=True)
    story.buried("m0", cause="lease_lost")
    story.handled("m1", sequence=1, member="b")
    assert story.verdict().violations == {}


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


def test_an_attempt_that_goes_back_is_seen(story: Story):
    story.published("m0")
    story.handled("m0", "failed")
    story.handled("m0", "released", attempt=2)
    story.handled("m0", attempt=1)
    assert list(story.verdict().violations) == ["attempts_went_back"]


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


@pytest.mark.parametrize("missing", [{"reason": ""}, {"cause": None}, {"attempts": 0}])
def test_a_dead_letter_without_its_record_is_seen(story: Story, missing: dict):
    story.published("m0")
    story.handled("m0", "rejected")
    story.buried("m0", **missing)
    assert list(story.verdict().violations) == ["bare_dead_letters"]


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
