from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import TYPE_CHECKING, Any

import pytest

from messaging import (
    ConfigurationError,
    Delivery,
    Endpoint,
    Reject,
    Release,
    Retry,
    Topic,
    exponential,
    fixed,
)
from messaging.clock import SystemClock
from messaging.message import seconds
from messaging.middleware import timing_out

if TYPE_CHECKING:
    from collections.abc import Callable

jobs = Topic("jobs", str)


def test_a_duration_is_seconds_or_a_timedelta():
    assert seconds(3) == seconds(timedelta(seconds=3)) == 3.0
    assert Topic("kept", retention=timedelta(hours=1)).retention == 3600.0


NO_DURATION: list[Any] = ["PT10S", [1], 10**400]


@pytest.mark.parametrize("given", NO_DURATION)
@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("retention of topic jobs", lambda given: Topic("jobs", str, retention=given)),
        ("delay of fixed", fixed),
        ("initial of exponential", exponential),
        ("maximum of exponential", lambda given: exponential(1, maximum=given)),
        ("timeout", lambda given: timing_out(given, clock=SystemClock())),
    ],
)
def test_what_is_no_duration_is_refused_by_name_with_what_it_takes(
    named: str, make: Callable[[Any], object], given: Any
):
    with pytest.raises(
        ConfigurationError, match=f"{named} is .* it takes a number of seconds, or a timedelta"
    ):
        make(given)


def test_topics_and_endpoints_show_their_names():
    endpoint = Endpoint("prices", str, int)

    assert repr(jobs) == "Topic('jobs')"
    assert repr(endpoint) == "Endpoint('prices')"
    assert endpoint.name == endpoint.topic.name == "prices"


@pytest.mark.parametrize("name", ["", "two words", "a/b", "é"])
def test_a_name_that_no_broker_carries_is_refused_where_it_is_given(name):
    with pytest.raises(ConfigurationError):
        Topic(name)
    with pytest.raises(ConfigurationError):
        Endpoint(name, str, int)


@pytest.mark.parametrize("after", [-1, inf, nan, timedelta(seconds=-1), "PT10S", [1], 10**400])
def test_a_release_waits_for_a_time_that_comes(after):
    with pytest.raises(ValueError, match="a finite number of seconds, 0 or more"):
        Release(after=after)


def test_outcomes_that_are_raised_say_why():
    with pytest.raises(Retry, match="busy"):
        raise Retry("busy", after=3)
    with pytest.raises(Reject, match="spoiled"):
        raise Reject("spoiled")


def test_a_handler_can_be_called_with_a_delivery_of_a_payload_alone():
    delivery = Delivery("x", attempt=2)

    assert (delivery.payload, delivery.attempt, delivery.group, delivery.headers) == ("x", 2, "", {})
    assert delivery.message.time is not None
    assert delivery.headers is not Delivery("x").headers
