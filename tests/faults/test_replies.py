"""The checker sees what must not become of a request, in made-up histories."""

from __future__ import annotations

import pytest

from messaging_contracts.faults import Answered, Asked, Begun, Ended, Event, Published, Struck, check

UNANSWERED, FOREIGN, UNDOCUMENTED = "unanswered", "foreign_replies", "undocumented_errors"
WITHOUT_CAUSE = "errors_without_cause"


class Requests:
    """What happens to requests; a second passes with each step."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @property
    def at(self) -> float:
        return float(len(self.events))

    def asked(self, id: str, within: float = 10.0) -> None:
        self.events.append(Published(at=self.at, fate="sent", id=id))
        self.events.append(Asked(at=self.at, id=id, within=within, member="r"))

    def handled(self, id: str, handling: str = "a/1") -> None:
        self.events.append(Begun(at=self.at, handling=handling, id=id, group="responders", member="a"))
        self.events.append(Ended(at=self.at, handling=handling, how="succeeded"))

    def ended(self, id: str, error: str = "", replied_to: str = "", handling: str = "") -> None:
        self.events.append(Answered(at=self.at, id=id, error=error, replied_to=replied_to, handling=handling))

    def found(self) -> set[str]:
        return set(check(self.events, ordered=False).violations)


@pytest.fixture
def requests() -> Requests:
    return Requests()


def test_a_request_with_a_reply_of_its_own_is_as_it_should_be(requests: Requests):
    requests.asked("r1")
    requests.handled("r1")
    requests.ended("r1", replied_to="r1", handling="a/1")
    assert requests.found() == set()
    assert check(requests.events, ordered=False).requests == 1


def test_a_documented_error_ends_a_request_too(requests: Requests):
    requests.asked("r1")
    requests.ended("r1", error="RequestTimeout")
    assert requests.found() == set()


def test_a_request_has_to_end(requests: Requests):
    requests.asked("r1")
    assert requests.found() == {UNANSWERED}


def test_a_request_has_to_end_in_time(requests: Requests):
    requests.asked("r1", within=1.0)
    requests.handled("r1")
    requests.ended("r1", error="RequestTimeout")
    assert requests.found() == {UNANSWERED}


def test_a_request_ends_once(requests: Requests):
    requests.asked("r1")
    requests.ended("r1", error="RequestTimeout")
    requests.ended("r1", error="RequestTimeout")
    assert requests.found() == {"impossible"}


def test_the_reply_to_another_request_is_seen(requests: Requests):
    requests.asked("r1")
    requests.asked("r2")
    requests.handled("r1")
    requests.ended("r2", replied_to="r1", handling="a/1")
    requests.ended("r1", error="RequestTimeout")
    assert requests.found() == {FOREIGN}


def test_an_error_of_another_request_is_seen(requests: Requests):
    requests.asked("r1")
    requests.asked("r2")
    requests.handled("r1")
    requests.ended("r2", error="RemoteError", replied_to="r1", handling="a/1")
    requests.ended("r1", error="RequestTimeout")
    assert requests.found() == {FOREIGN}


def test_a_reply_that_no_handling_of_the_request_made_is_seen(requests: Requests):
    requests.asked("r1")
    requests.ended("r1", replied_to="r1", handling="a/1")
    assert requests.found() == {FOREIGN}


def test_an_error_that_nothing_documents_is_seen(requests: Requests):
    requests.asked("r1")
    requests.ended("r1", error="KeyError")
    assert requests.found() == {UNDOCUMENTED}


def test_a_responder_that_runs_twice_is_seen_as_for_any_message(requests: Requests):
    requests.asked("r1")
    requests.handled("r1", "a/1")
    requests.handled("r1", "a/2")
    requests.ended("r1", replied_to="r1", handling="a/1")
    assert requests.found() == {"duplicates_without_cause"}


@pytest.mark.parametrize(
    ("struck", "found"), [([], {WITHOUT_CAUSE}), ([1.0], set()), ([9.0], {WITHOUT_CAUSE})]
)
def test_an_error_that_no_fault_explains_is_seen_where_each_request_is_to_be_answered(
    requests: Requests, struck: list[float], found: set[str]
):
    requests.events += [Struck(at=at, kind="cut", until=at + 1) for at in struck]
    requests.asked("r1")
    requests.ended("r1", error="RequestTimeout")
    assert set(check(requests.events, ordered=False, answered=True).violations) == found
    assert requests.found() == set()


def test_a_request_whose_publish_was_told_to_have_failed_must_not_be_handled(requests: Requests):
    requests.asked("r1")
    requests.events.append(Published(at=requests.at, fate="failed", id="r1"))
    requests.handled("r1")
    requests.ended("r1", error="PublishError")
    assert requests.found() == {"phantoms"}
