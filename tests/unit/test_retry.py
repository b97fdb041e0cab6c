from __future__ import annotations

import asyncio
from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.errors import ConfigurationError
from messaging.message import Ack, Delivery, Message, Reject, Release, Retry
from messaging.middleware import Delay, RetryPolicy, exponential, fixed, retrying

POLICY = RetryPolicy(3, exponential(1, maximum=60, jitter=0))
anything: Any = RetryPolicy


def delivery(attempt=1):
    return Delivery({}, message=Message(id="m1", topic="orders", body=b""), attempt=attempt)


async def run(result, attempt=1, policy=POLICY, **options) -> Any:
    async def handler(delivery) -> Any:
        if isinstance(result, BaseException) and not getattr(result, "returned", False):
            raise result
        return result

    return await retrying(policy, **options)(handler)(delivery(attempt))


def returned(outcome):
    outcome.returned = True
    return outcome


# delays

delays = st.builds(
    lambda initial, multiplier, more, jitter: exponential(
        initial, multiplier=multiplier, maximum=initial + more, jitter=jitter
    ),
    st.floats(0, 1e6),
    st.floats(1, 1e3),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
chances = st.floats(0, 1, exclude_max=True)


@given(delays, st.integers(-5, 100_000), chances)
def test_a_delay_is_never_negative_and_never_longer_than_the_longest(delay, attempt, chance):
    assert 0 <= delay.of(attempt, lambda: chance) <= delay.longest


@given(delays, st.integers(1, 10_000))
def test_without_jitter_delays_never_fall(delay, attempt):
    assert delay.of(attempt, lambda: 0.0) <= delay.of(attempt + 1, lambda: 0.0)


@given(delays, st.integers(1, 100), chances)
def test_jitter_takes_away_at_most_its_share(delay, attempt, chance):
    whole = delay.of(attempt, lambda: 0.0)

    assert delay.of(attempt, lambda: chance) >= whole * (1 - delay.jitter) - 1e-9


@given(st.floats(0, 1e6), st.integers(1, 10_000))
def test_a_fixed_delay_is_always_the_same(seconds, attempt):
    assert fixed(seconds).of(attempt) == seconds == fixed(seconds).longest


def test_an_exponential_delay_doubles_up_to_its_maximum():
    delay = exponential(0.5, maximum=3, jitter=0)

    assert [delay.of(attempt) for attempt in range(1, 6)] == [0.5, 1, 2, 3, 3]


def test_durations_may_be_timedeltas():
    assert fixed(timedelta(minutes=1)) == fixed(60)
    assert exponential(timedelta(seconds=1), maximum=timedelta(hours=1)).longest == 3600


def test_a_delay_of_zero_stays_zero_at_any_attempt():
    assert exponential(0, maximum=5).of(100_000) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: fixed(-1),
        lambda: fixed(inf),
        lambda: fixed(nan),
        lambda: exponential(10, maximum=5),
        lambda: exponential(1, multiplier=0.5),
        lambda: exponential(1, jitter=-0.1),
        lambda: exponential(1, jitter=1.1),
        lambda: exponential(1, jitter="half"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: RetryPolicy(0),
        lambda: anything(retry_on=(KeyboardInterrupt,)),
        lambda: anything(reject_on=("ValueError",)),
        lambda: anything(reject_on=3),
    ],
)
def test_an_impossible_policy_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigurationError):
        make()


# the policy


@pytest.mark.parametrize("attempts", [0, -1, 2.5, float("inf"), float("nan"), "3"])
def test_attempts_that_are_no_count_are_refused(attempts):
    with pytest.raises(ConfigurationError, match="attempts is"):
        RetryPolicy(attempts)


def test_a_policy_has_three_attempts_by_default_and_takes_its_arguments_by_position():
    assert RetryPolicy() == RetryPolicy(3, exponential(0.2, maximum=30))


def test_a_single_class_or_a_list_will_do():
    assert anything(retry_on=OSError).retry_on == (OSError,)
    assert anything(reject_on=[OSError, KeyError]).reject_on == (OSError, KeyError)


@given(delays, st.integers(1, 50), chances)
def test_no_retry_before_exhaustion_waits_longer_than_the_policy_says(delay, attempts, chance):
    policy = RetryPolicy(attempts, delay)

    assert all(delay.of(attempt, lambda: chance) <= policy.longest for attempt in range(1, attempts))
    assert policy.longest <= delay.longest


# outcomes


@pytest.mark.parametrize("outcome", [Ack(), Ack("reply"), Release(), Release(5)])
async def test_what_is_no_failure_passes(outcome):
    assert await run(outcome) is outcome


async def test_an_exception_becomes_a_retry_after_the_policys_delay():
    error = ValueError("x")
    outcomes = [await run(error, attempt) for attempt in (1, 2)]

    assert [(type(outcome), outcome.after) for outcome in outcomes] == [(Retry, 1.0), (Retry, 2.0)]
    assert outcomes[0].reason == "ValueError: x"
    assert outcomes[0].__cause__ is error


async def test_the_last_attempts_failure_is_a_dead_letter():
    error = ValueError("x")
    for attempt in (3, 4, 1000):
        outcome = await run(error, attempt)

        assert isinstance(outcome, Reject)
        assert outcome.cause == "max_attempts"
        assert outcome.reason == f"ValueError: x (attempt {attempt} of 3)"
        assert outcome.__cause__ is error


async def test_with_one_attempt_nothing_is_retried():
    assert isinstance(await run(ValueError(), policy=RetryPolicy(1)), Reject)


async def test_a_held_key_is_retried_for_ever_with_the_longest_delay():
    outcomes = [await run(ValueError("x"), attempt, on_exhausted="hold_key") for attempt in (2, 3, 10_000)]

    assert [(type(outcome), outcome.after) for outcome in outcomes] == [
        (Retry, 2.0),
        (Retry, 60.0),
        (Retry, 60.0),
    ]


@pytest.mark.parametrize("wrap", [returned, lambda outcome: outcome], ids=["returned", "raised"])
class TestRetryAndReject:
    async def test_a_retry_chooses_its_own_delay(self, wrap):
        outcome = await run(wrap(Retry("busy", after=timedelta(minutes=2))))

        assert isinstance(outcome, Retry)
        assert (outcome.reason, outcome.after) == ("busy", 120.0)

    async def test_a_retry_without_a_delay_gets_the_policys(self, wrap):
        outcome = await run(wrap(Retry("busy")), attempt=2)

        assert isinstance(outcome, Retry)
        assert outcome.after == 2.0

    async def test_a_retry_now_is_a_retry_now(self, wrap):
        assert (await run(wrap(Retry(after=0)))).after == 0.0
        assert (await run(wrap(Retry(after=-3)))).after == 0.0

    async def test_a_retry_counts_as_an_attempt(self, wrap):
        outcome = await run(wrap(Retry("busy", after=5)), attempt=3)

        assert isinstance(outcome, Reject)
        assert (outcome.cause, outcome.reason) == ("max_attempts", "busy (attempt 3 of 3)")

    @pytest.mark.parametrize("after", [inf, nan, "soon", object(), 10**400])
    async def test_a_delay_that_is_none_is_a_dead_letter_and_never_shortened(self, wrap, after):
        outcome = await run(wrap(Retry("busy", after=after)))

        assert isinstance(outcome, Reject)
        assert outcome.cause == "delay_unsupported"
        assert "busy" in outcome.reason

    async def test_a_reject_is_final_at_any_attempt(self, wrap):
        outcome = await run(wrap(Reject("no customer")), on_exhausted="hold_key")

        assert isinstance(outcome, Reject)
        assert (outcome.reason, outcome.cause) == ("no customer", "rejected")


async def test_an_outcome_raised_because_of_an_exception_shows_that_exception():
    async def handler(delivery):
        try:
            raise OSError("disk")
        except OSError as error:
            raise Reject("cannot store") from error

    outcome: Any = await retrying(RetryPolicy())(handler)(delivery())

    assert isinstance(outcome.__cause__, OSError)


async def test_an_outcome_raised_while_handling_an_exception_shows_that_exception():
    async def handler(delivery):
        try:
            raise OSError("disk")
        except OSError:
            raise Retry("later")  # noqa: B904  without `from`

    outcome: Any = await retrying(RetryPolicy())(handler)(delivery())

    assert isinstance(outcome.__cause__, OSError)


async def test_an_outcome_raised_by_itself_shows_where():
    error = Reject("no customer")

    assert (await run(error)).__cause__ is error


async def test_the_handlers_own_outcome_object_is_not_changed():
    shared = Retry("busy")

    await run(returned(shared))

    assert shared.after is None


# which errors


async def test_an_error_that_is_not_to_be_retried_is_a_dead_letter_at_once():
    policy = RetryPolicy(retry_on=(OSError,), reject_on=(FileNotFoundError,))
    retried = await run(ConnectionError("x"), policy=policy)
    others = [await run(error, policy=policy) for error in (ValueError("y"), FileNotFoundError("z"))]

    assert isinstance(retried, Retry)
    assert [(outcome.cause, outcome.reason) for outcome in others] == [
        ("exception", "ValueError: y"),
        ("exception", "FileNotFoundError: z"),
    ]
    assert isinstance(others[0].__cause__, ValueError)


async def test_reject_on_wins_over_hold_key():
    outcome = await run(ValueError(), policy=RetryPolicy(reject_on=(ValueError,)), on_exhausted="hold_key")

    assert isinstance(outcome, Reject)


# groups


async def test_a_group_of_failures_is_retried_after_the_longest_wish():
    leaves = [ValueError("a"), Retry(after=7), ExceptionGroup("in", [Retry("b", after=timedelta(seconds=9))])]
    group = ExceptionGroup("g", leaves)
    outcome = await run(group)

    assert isinstance(outcome, Retry)
    assert (outcome.after, outcome.reason) == (9.0, "ValueError: a")
    assert outcome.__cause__ is group


async def test_a_group_without_wishes_gets_the_policys_delay():
    assert (await run(ExceptionGroup("g", [ValueError(), Retry()]), attempt=2)).after == 2.0


async def test_a_reject_anywhere_in_a_group_rejects():
    group = ExceptionGroup("g", [ValueError(), ExceptionGroup("in", [Reject("poison", cause="oversize")])])
    outcome = await run(group)

    assert isinstance(outcome, Reject)
    assert (outcome.reason, outcome.cause) == ("poison", "oversize")
    assert outcome.__cause__ is group


@pytest.mark.parametrize("policy", [RetryPolicy(reject_on=(KeyError,)), RetryPolicy(retry_on=(OSError,))])
async def test_a_leaf_that_must_not_be_retried_rejects_the_group(policy):
    outcome = await run(ExceptionGroup("g", [OSError(), KeyError("k")]), policy=policy)

    assert isinstance(outcome, Reject)
    assert (outcome.cause, outcome.reason) == ("exception", "KeyError: 'k'")


async def test_an_exhausted_group_is_a_dead_letter():
    outcome = await run(ExceptionGroup("g", [ValueError("a")]), attempt=3)

    assert (type(outcome), outcome.cause) == (Reject, "max_attempts")


async def test_a_wish_that_is_no_delay_in_a_group_is_a_dead_letter():
    not_a_delay: Any = "soon"
    outcome = await run(ExceptionGroup("g", [Retry(after=5), Retry(after=not_a_delay)]))

    assert (type(outcome), outcome.cause) == (Reject, "delay_unsupported")


# what is not ours


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        BaseExceptionGroup("g", [ValueError(), KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_cancellation_and_the_like_pass_untouched(error):
    async def handler(delivery):
        raise error

    with pytest.raises(BaseException) as caught:  # noqa: B017
        await retrying(RetryPolicy())(handler)(delivery())

    assert caught.value is error


def test_a_delay_can_be_made_by_hand():
    assert Delay(1, maximum=1) == fixed(1)
