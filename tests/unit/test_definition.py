"""What code says of a subscription wrongly is told where it stands, before anything runs."""

from datetime import timedelta
from typing import Any

import pytest

from messaging import App, ConfigurationError, RetryPolicy, Topic, connect
from tests.unit.topics import jobs, prices

app: Any = App("billing")


def handle(job: str) -> None: ...


@pytest.mark.parametrize("wrong", ["jobs", handle, prices])
def test_subscribing_to_what_is_no_topic_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"subscribe\(\) takes a Topic"):
        app.subscribe(wrong)


@pytest.mark.parametrize("wrong", ["prices", handle, jobs])
def test_answering_what_is_no_endpoint_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"respond\(\) takes an Endpoint"):
        app.respond(wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("on_exhausted", "hold", '"dead_letter" or "hold_key"'),
        ("on_expired", "deadletter", '"drop" or "dead_letter"'),
        ("topology", "verfy", '"declare", "verify" or "off"'),
    ],
)
def test_an_argument_that_means_nothing_is_refused_with_what_it_takes(name, wrong, told):
    with pytest.raises(ConfigurationError) as refused:
        app.subscribe(jobs, **{name: wrong})(handle)

    assert str(refused.value) == f"{name}={wrong!r} of jobs/billing: it takes {told}"


class Charging:
    async def __call__(self, job: str) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Charging, "is the class Charging: it takes a function"),
        (handle(""), "is None, which is no function"),
    ],
)
def test_what_can_handle_nothing_is_refused(wrong, told):
    with pytest.raises(ConfigurationError, match=f"the handler of jobs/billing {told}"):
        app.subscribe(jobs)(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(len, "takes a list of functions, not <built-in function len>"), ([3], "holds 3, which is no function")],
)
def test_middleware_that_can_do_nothing_is_refused(wrong, told):
    made: Any = App

    with pytest.raises(ConfigurationError, match=f"middleware of jobs/billing {told}"):
        app.subscribe(jobs, middleware=wrong)(handle)
    with pytest.raises(ConfigurationError, match=f"middleware of app billing {told}"):
        made("billing", middleware=wrong)


def test_a_key_that_is_no_function_is_refused():
    made: Any = Topic

    with pytest.raises(ConfigurationError, match="key of topic orders is 'customer'; it takes a function"):
        made("orders", key="customer")


def test_a_number_of_attempts_is_no_retry_policy():
    made: Any = App

    with pytest.raises(ConfigurationError, match="retry of app billing takes a RetryPolicy, not 3"):
        made("billing", retry=3)
    with pytest.raises(ConfigurationError, match="retry of jobs/billing takes a RetryPolicy, not 3"):
        app.subscribe(jobs, retry=3)(handle)


@pytest.mark.parametrize("wrong", [0.5, timedelta(seconds=1)])
def test_a_retry_policy_says_how_a_number_becomes_a_delay(wrong):
    policy: Any = RetryPolicy

    with pytest.raises(ConfigurationError, match=r"say fixed\(.*\) or exponential\(.*\)"):
        policy(3, wrong)


async def test_what_is_right_runs():
    whole = App("whole", timeout=30, retry=RetryPolicy(2))
    whole.subscribe(
        jobs, timeout=timedelta(seconds=1), on_expired="drop", on_exhausted="dead_letter", topology="declare"
    )(handle)

    async with connect("memory://") as bus, whole.running(bus):
        assert (await bus.health()).status != "red"
