"""A dead letter that is redriven is handled once more, or still a letter; nothing else comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging_contracts.faults import Redriven
from tests.faults.stories import GROUP

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate
    from tests.faults.stories import Story

DUPLICATES = "duplicates_without_cause"


def rejected(story: Story) -> None:
    story.published("m0")
    story.handled("m0", "rejected")


def redriven(story: Story, fate: Fate = "confirmed") -> None:
    for step in ("sent", fate):
        story.pass_time(1)
        story.events.append(Redriven(at=story.at, fate=step, id="m0", group=GROUP))


def found(story: Story) -> tuple[list[str], int]:
    verdict = story.verdict()
    return list(verdict.violations), verdict.duplicates


def test_what_is_redriven_is_handled_once_more_and_is_no_duplicate(story: Story):
    rejected(story)
    redriven(story)
    story.handled("m0", member="b")
    assert found(story) == ([], 0)


def test_what_is_redriven_and_neither_handled_nor_a_letter_is_lost(story: Story):
    rejected(story)
    redriven(story)
    assert found(story) == (["lost"], 0)


def test_a_letter_whose_redrive_failed_is_still_one(story: Story):
    rejected(story)
    redriven(story, "failed")
    story.buried("m0")
    assert found(story) == ([], 0)


def test_what_was_rejected_does_not_come_again_by_itself(story: Story):
    rejected(story)
    story.handled("m0")
    assert found(story)[0] == [DUPLICATES]


def test_a_redrive_that_was_told_to_have_failed_explains_nothing(story: Story):
    rejected(story)
    redriven(story, "failed")
    story.handled("m0")
    assert found(story)[0] == [DUPLICATES]


def test_what_is_redriven_once_does_not_come_twice(story: Story):
    rejected(story)
    redriven(story)
    story.handled("m0")
    story.handled("m0")
    assert found(story)[0] == [DUPLICATES]


def test_what_is_redriven_again_after_an_unknown_fate_may_come_twice_and_one_of_them_is_a_duplicate(
    story: Story,
):
    rejected(story)
    redriven(story, "uncertain")
    redriven(story)
    story.handled("m0")
    story.handled("m0")
    assert found(story) == ([], 1)


def test_what_is_rejected_and_redriven_again_is_no_duplicate(story: Story):
    rejected(story)
    redriven(story)
    story.handled("m0", "rejected")
    redriven(story)
    story.handled("m0")
    assert found(story) == ([], 0)


def test_what_is_redriven_runs_beside_nothing_of_its_key(story: Story):
    rejected(story)
    story.published("m1", sequence=1)
    redriven(story)
    first, second = story.begun("m0"), story.begun("m1", member="b", sequence=1)
    story.ended(first)
    story.ended(second)
    assert "overlaps" in found(story)[0]


def test_a_letter_that_was_redriven_tells_of_the_attempts_of_all_its_lives(story: Story):
    rejected(story)
    for _ in range(2):
        redriven(story)
        story.handled("m0", "rejected")
    story.buried("m0", attempts=3)
    assert found(story)[0] == []
    story.buried("m0", attempts=4, look=2)
    assert found(story)[0] == ["miscounted_dead_letters"]
