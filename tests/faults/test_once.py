"""The checker sees what an idempotent group must not do, in made-up histories, and what excuses it."""

from __future__ import annotations

import pytest

from messaging_contracts.faults import Begun, Ended, Event, Kept, Struck, check
from messaging_contracts.faults.history import End, Keeping

HANDLED_TWICE, STALE, GIVEN_UP = "handled_twice", "stale_owners", "keys_given_up"


class Story:
    """What happens to one message; a second passes with each step."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @property
    def at(self) -> float:
        return float(len(self.events))

    def kept(self, how: Keeping, token: int = 0, member: str = "a") -> None:
        self.events.append(Kept(at=self.at, how=how, id="m0", group="billing", member=member, token=token))

    def begun(self, token: int, member: str = "a") -> None:
        self.kept("taken", token, member)
        self.begun_late(token, member)

    def begun_late(self, token: int, member: str = "a") -> None:
        self.events.append(
            Begun(
                at=self.at, handling=f"{member}{token}", id="m0", group="billing", member=member, token=token
            )
        )

    def ended(self, token: int, member: str = "a", how: End = "succeeded") -> None:
        self.events.append(Ended(at=self.at, handling=f"{member}{token}", how=how))

    def crashed(self, member: str = "a") -> None:
        self.events.append(Struck(at=self.at, kind="crash", member=member, fatal=True))

    def found(self) -> set[str]:
        return set(check(self.events, ordered=False).violations) & {HANDLED_TWICE, STALE, GIVEN_UP}


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_message_that_is_handled_once_is_as_it_should_be(story: Story):
    story.begun(1)
    story.ended(1)
    story.kept("done", 1)
    assert story.found() == set()


def test_what_is_begun_after_it_was_stored_as_done_is_handled_twice(story: Story):
    story.begun(1)
    story.ended(1)
    story.kept("done", 1)
    story.begun(2, "b")
    assert story.found() == {HANDLED_TWICE}


def test_a_success_that_is_not_stored_although_the_store_was_there_is_handled_twice(story: Story):
    story.begun(1)
    story.ended(1)
    story.begun(2, "b")
    assert story.found() == {HANDLED_TWICE}


def test_a_success_that_could_not_be_stored_may_be_repeated(story: Story):
    story.begun(1)
    story.ended(1)
    story.kept("missed")
    story.begun(2, "b")
    assert story.found() == set()


def test_a_success_whose_owner_died_before_it_was_stored_may_be_repeated(story: Story):
    story.begun(1)
    story.ended(1)
    story.crashed()
    story.begun(2, "b")
    assert story.found() == set()


def test_a_failure_is_repeated(story: Story):
    story.begun(1)
    story.ended(1, how="failed")
    story.begun(2, "b")
    assert story.found() == set()


def test_a_key_that_is_taken_over_while_its_owner_could_reach_the_store_was_given_up(story: Story):
    story.begun(1)
    story.begun(2, "b")
    assert story.found() == {GIVEN_UP}


def test_a_key_whose_owner_could_not_extend_its_lease_is_taken_over(story: Story):
    story.begun(1)
    story.kept("missed")
    story.begun(2, "b")
    story.ended(1)
    story.ended(2, "b")
    story.kept("done", 2, "b")
    assert story.found() == set()


def test_an_owner_that_was_overtaken_must_not_store_its_result(story: Story):
    story.begun(1)
    story.kept("missed")
    story.begun(2, "b")
    story.kept("done", 1)
    assert story.found() == {STALE}


def test_an_owner_that_was_overtaken_must_not_begin(story: Story):
    story.kept("taken", 1)
    story.kept("missed")
    story.begun(2, "b")
    story.begun_late(1)
    assert STALE in story.found()


def test_one_token_is_for_one_handling(story: Story):
    story.begun(1)
    story.ended(1, how="failed")
    story.begun_late(1, "b")
    assert story.found() == {STALE}
