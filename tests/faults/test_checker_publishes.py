"""The checker asks for the order of the calls also of what was under way at once, and for one fate of each publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from messaging_contracts.faults import Settled

if TYPE_CHECKING:
    from messaging_contracts.faults.history import Fate
    from tests.faults.stories import Story


def sent_at_once(story: Story, *fates: Fate) -> None:
    """Messages m0, m1 and so on of one key: all are sent before the first fate is told."""
    for number in range(len(fates)):
        story.told(f"m{number}", "sent", sequence=number)
    for number, fate in enumerate(fates):
        story.told(f"m{number}", fate, sequence=number)


def test_what_was_confirmed_of_one_key_is_handled_in_the_order_of_the_calls(story: Story):
    sent_at_once(story, "confirmed", "uncertain", "confirmed")
    story.handled("m0", sequence=0)
    story.handled("m2", sequence=2)
    assert story.verdict().violations == {}


def test_what_was_under_way_at_once_and_is_handled_in_another_order_is_seen(story: Story):
    sent_at_once(story, "confirmed", "confirmed")
    story.handled("m1", sequence=1)
    story.handled("m0", sequence=0)
    assert set(story.verdict().violations) == {"disorder", "successes_out_of_order"}


def test_what_fails_takes_those_behind_it_with_it(story: Story):
    sent_at_once(story, "confirmed", "failed", "failed")
    story.handled("m0", sequence=0)
    assert story.verdict().violations == {}


@pytest.mark.parametrize("first", ["m0", "m1"])
def test_what_is_confirmed_behind_a_failed_one_has_overtaken_it(story: Story, first: str):
    for number in range(2):
        story.told(f"m{number}", "sent", sequence=number)
    fates: dict[str, Fate] = {"m0": "failed", "m1": "confirmed"}
    for id in sorted(fates, key=lambda name: name != first):
        story.told(id, fates[id], sequence=int(id[1:]))
    story.handled("m1", sequence=1)
    assert list(story.verdict().violations) == ["overtook_failed"]
    assert story.verdict(ordered=False).violations == {}


def test_what_is_handled_behind_a_failed_one_has_overtaken_it_whatever_its_publisher_knows(story: Story):
    sent_at_once(story, "failed", "uncertain")
    assert story.verdict().violations == {}
    story.handled("m1", sequence=1)
    assert list(story.verdict().violations) == ["overtook_failed"]


def test_what_is_sent_once_a_failure_is_known_has_overtaken_nothing_nor_has_another_key(story: Story):
    story.published("m0", fate="failed", sequence=0)
    story.published("m1", sequence=1)
    story.told("m2", "sent", sequence=2)
    story.published("n0", key="l")
    story.told("m2", "failed", sequence=2)
    story.published("m2", sequence=2)
    for id, key, sequence in (("m1", "k", 1), ("m2", "k", 2), ("n0", "l", 0)):
        story.handled(id, key=key, sequence=sequence)
    assert story.verdict().violations == {}


@pytest.mark.parametrize("fate", ["failed", "confirmed", "uncertain"])
def test_a_fate_of_what_was_not_sent_is_no_history(story: Story, fate: Fate):
    story.told("m0", fate)
    assert list(story.verdict().violations) == ["impossible"]


@pytest.mark.parametrize("first", ["failed", "confirmed", "uncertain"])
def test_a_second_fate_of_one_publish_is_no_history(story: Story, first: Fate):
    story.published("m0", fate=first)
    if first == "confirmed":
        story.handled("m0")
    story.told("m0", "failed")
    assert list(story.verdict().violations) == ["impossible"]


def test_what_is_settled_before_it_begins_is_no_history(story: Story):
    story.events.append(Settled(at=story.at, handling="nothing"))
    assert list(story.verdict().violations) == ["impossible"]
