"""The retry policy: what becomes of a failure, and when it is tried again."""

from __future__ import annotations

import random as _random
from asyncio import CancelledError
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from math import inf, isfinite, isnan
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging.errors import ConfigurationError
from messaging.lasting import this_task
from messaging.message import OUTCOMES, Ack, Duration, Reject, Release, Retry, checked_seconds, seconds
from messaging.middleware.expiry import Expired
from messaging.texts import leaves_of, reason_of, summary

if TYPE_CHECKING:
    from messaging.message import Delivery, Handler, Middleware, Outcome

OnExhausted: TypeAlias = Literal["dead_letter", "hold_key"]
Random: TypeAlias = Callable[[], float]
"""A number in [0, 1)."""

_WISH_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Delay:
    """How long to wait before a retry; made by `fixed` or `exponential`. Durations in seconds.

    `jitter` is the share of a delay that chance may take away: never longer than said, never negative.
    """

    initial: float
    multiplier: float = 1.0
    maximum: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("initial", self.initial, 0.0),
            ("multiplier", self.multiplier, 1.0),
            ("maximum", self.maximum, self.initial),
            ("jitter", self.jitter, 0.0),
        ):
            if not (is_finite(value) and value >= least):
                raise ConfigurationError(
                    f"the {name} of a retry delay is {value!r}; it must be {least:g} or more"
                )
        if self.jitter > 1:
            raise ConfigurationError(f"the jitter of a retry delay is {self.jitter!r}; it must be 1 or less")

    @property
    def longest(self) -> float:
        """No delay is longer."""
        return self.maximum

    def of(self, attempt: int, random: Random = _random.random) -> float:
        """The delay after the failure of this attempt (1 is the first), in seconds."""
        return self.before_jitter(attempt) * (1.0 - self.jitter * random())

    def before_jitter(self, attempt: int) -> float:
        """The delay that jitter is taken from; it never falls from one attempt to the next."""
        try:
            return min(self.initial * self.multiplier ** (max(attempt, 1) - 1), self.maximum)
        except OverflowError:
            return self.maximum if self.initial else 0.0


def fixed(delay: Duration) -> Delay:
    """The same delay before each retry."""
    always = checked_seconds(delay, "the delay of fixed")
    return Delay(always, maximum=always)


def exponential(
    initial: Duration, *, multiplier: float = 2.0, maximum: Duration = 60.0, jitter: float = 0.1
) -> Delay:
    """`initial` before the first retry, `multiplier` times as much before each further, up to `maximum`."""
    return Delay(
        checked_seconds(initial, "the initial of exponential"),
        multiplier,
        checked_seconds(maximum, "the maximum of exponential"),
        jitter,
    )


def is_finite(value: Any) -> bool:
    """Whether it is a finite number."""
    try:
        return isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def is_count(value: object) -> bool:
    """Whether it is a whole number: untyped code brings texts and fractions."""
    return isinstance(value, int)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a message is tried, counting the first time, how long between, and which errors deserve it.

    An exception is retried when it is one of `retry_on` and none of `reject_on`; any other makes a dead
    letter at once. A `Retry` or `Reject`, returned or raised, says itself what it wants; a `Retry` counts as
    an attempt.
    """

    attempts: int = 3
    delay: Delay = field(default_factory=lambda: exponential(0.2, maximum=30))
    _: KW_ONLY
    retry_on: tuple[type[Exception], ...] = (Exception,)
    reject_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if not (is_count(self.attempts) and self.attempts >= 1):
            raise ConfigurationError(
                f"attempts is {self.attempts!r}; a message is tried a whole number of times, once at least"
            )
        _check_delay(self.delay)
        for name in ("retry_on", "reject_on"):
            object.__setattr__(self, name, _classes(name, getattr(self, name)))

    @property
    def longest(self) -> float:
        """The longest delay that this policy asks for before it is exhausted, in seconds."""
        return self.delay.before_jitter(self.attempts - 1) if self.attempts > 1 else 0.0

    @property
    def total(self) -> float:
        """All delays of this policy together, without jitter, in seconds."""
        total, longest = 0.0, self.longest
        for attempt in range(1, self.attempts):
            delay = self.delay.before_jitter(attempt)
            if delay >= longest:  # it never falls
                return total + delay * (self.attempts - attempt)
            total += delay
        return total

    def retries(self, error: BaseException) -> bool:
        """Whether this exception, no group, deserves another attempt. One beside Exception is judged as one."""
        if not isinstance(error, Exception):
            return Exception in self.retry_on
        return isinstance(error, self.retry_on) and not isinstance(error, self.reject_on)


def retrying(
    policy: RetryPolicy, *, on_exhausted: OnExhausted = "dead_letter", random: Random = _random.random
) -> Middleware:
    """The outermost middleware: whatever comes out of the inner ones is now a final outcome.

    A Retry that leaves here has its `after` in seconds; a Retry or Reject has as `__cause__` the exception
    that it comes from, where there was one. An exception group is judged by its leaves: one that must not be
    retried rejects the message; else it is retried, after the longest `after` of its leaves.
    `on_exhausted="hold_key"` goes on retrying for ever, with the policy's longest delay, instead of skipping
    the message (11). Anything else that is raised or returned is a failure: one message never ends its subscription.
    Only cancellation and the end of the process (KeyboardInterrupt, SystemExit, GeneratorExit) pass untouched. A
    group with a cancellation in it is one where somebody cancels the task, else a failure like any other.
    """
    failures = _Failures(policy, on_exhausted, random)

    def middleware(next: Handler) -> Handler:
        async def handle(delivery: Delivery[Any]) -> Outcome:
            try:
                outcome = await next(delivery)
            except BaseException as error:  # a handler may raise any, and groups of them
                if _ends_more_than_the_handler(error):
                    raise
                if _cancelled_with_others(error):
                    raise CancelledError from error
                return failures.judge(delivery, error)
            if isinstance(outcome, Ack):
                return outcome
            if isinstance(outcome, Retry):
                return failures.conclude(delivery, _retried(outcome), outcome.__cause__)
            if isinstance(outcome, Reject):
                return _from(outcome.__cause__, _rejected(outcome))
            if not isinstance(outcome, OUTCOMES):  # pyright: ignore[reportUnnecessaryIsInstance]  a forgotten return
                said = f"middleware returned {type(outcome).__name__}, which is no outcome: return what `next` returned"
                return failures.judge(delivery, TypeError(said))
            if type(outcome) is not Release and not isfinite(_wish(outcome)):
                said = f"{type(outcome).__name__} asks for no delay that can be kept"
                return failures.judge(delivery, ValueError(said))
            return outcome

        return handle

    return middleware


class _Failures:
    """What becomes of a failure by a policy."""

    def __init__(self, policy: RetryPolicy, on_exhausted: OnExhausted, random: Random) -> None:
        self._policy = policy
        self._on_exhausted = on_exhausted
        self._random = random

    def judge(self, delivery: Delivery[Any], error: BaseException) -> Outcome:
        """The outcome that an exception comes to, a group of them by its leaves."""
        leaves = list(leaves_of(error))
        for leaf in leaves:
            if isinstance(leaf, Reject):
                return _from(_origin(error, leaf), _rejected(leaf))
        for leaf in leaves:
            if not isinstance(leaf, Retry) and not self._policy.retries(leaf):
                return _from(error, Reject(summary(leaf), cause="exception"))
        first = leaves[0]
        reason = _retried(first).reason if isinstance(first, Retry) else summary(first)
        retries = [_retried(leaf) for leaf in leaves if isinstance(leaf, Retry)]
        wishes = [retry for retry in retries if retry.after is not None]
        after = max(wishes, key=_wish).after if wishes else None
        return self.conclude(delivery, Retry(reason, after=after), _origin(error, first))

    def conclude(self, delivery: Delivery[Any], outcome: Retry, origin: BaseException | None) -> Outcome:
        """A Retry with its delay in seconds; a Reject where no attempt is left, or the delay cannot be kept."""
        policy = self._policy
        reason = outcome.reason or "a Retry without a reason"
        exhausted = delivery.attempt >= policy.attempts
        if exhausted and self._on_exhausted == "dead_letter":
            tried = f"attempt {delivery.attempt} of {policy.attempts}"
            return _from(origin, Reject(f"{reason} ({tried})", cause="max_attempts"))
        if outcome.after is None:
            after = policy.delay.longest if exhausted else policy.delay.of(delivery.attempt, self._random)
        else:
            after = _wish(outcome)
        if not isfinite(after):
            wish = reason_of(outcome.after)[:_WISH_CHARACTERS]
            text = f"{reason} (Retry(after={wish}) asks for no delay that can be kept)"
            return _from(origin, Reject(text, cause="delay_unsupported"))
        return _from(origin, Retry(reason, after=after))


def _ends_more_than_the_handler(error: BaseException) -> bool:
    return isinstance(error, CancelledError) or _holds(error, KeyboardInterrupt, SystemExit, GeneratorExit)


def _cancelled_with_others(error: BaseException) -> bool:
    """Whether it is a group with this task's cancellation in it; one that nobody asked for is a failure."""
    return _holds(error, CancelledError) and this_task().cancelling() > 0


def _holds(error: BaseException, *kinds: type[BaseException]) -> bool:
    return not isinstance(error, Exception) and any(isinstance(leaf, kinds) for leaf in leaves_of(error))


def _origin(raised: BaseException, leaf: BaseException) -> BaseException:
    """What to show as the reason: of an outcome that was raised because of another exception, the other
    one.
    """
    if raised is leaf and isinstance(leaf, Retry | Reject):
        return leaf.__cause__ or (None if leaf.__suppress_context__ else leaf.__context__) or leaf
    return raised


def _retried(outcome: Retry) -> Retry:
    """The same without what a subclass has made of it: attributes of other types, or that cannot be read."""
    return Retry(reason_of(_read(outcome, "reason")), after=_read(outcome, "after"))


def _rejected(outcome: Reject) -> Reject:
    if type(outcome) is Expired:
        return outcome
    return Reject(reason_of(_read(outcome, "reason")), cause=reason_of(_read(outcome, "cause")))


def _read(outcome: Outcome, name: str) -> Any:
    try:
        return getattr(outcome, name)
    except Exception as error:  # a property of a subclass; what stands in its place tells so
        return error


def _wish(outcome: Retry | Release) -> float:
    """The delay that is asked for, in seconds; infinite where it is no number."""
    try:
        after = float(seconds(outcome.after or 0.0))
    except Exception:  # a number too large, or of a type that can do anything
        return inf
    return inf if isnan(after) else max(after, 0.0)


def _from(origin: BaseException | None, outcome: Outcome) -> Outcome:
    if isinstance(outcome, BaseException):
        outcome.__cause__ = origin
    return outcome


def _check_delay(given: object) -> None:
    if not isinstance(given, Delay):
        raise ConfigurationError(
            f"the delay of a retry policy is {given!r}; say fixed({given!r}) or exponential({given!r})"
        )


def _classes(name: str, value: object) -> tuple[type[Exception], ...]:
    listed: tuple[object, ...] = tuple(value) if isinstance(value, Iterable) else (value,)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for item in listed:
        if not (isinstance(item, type) and issubclass(item, Exception)):
            raise ConfigurationError(f"{name} of a retry policy holds {item!r}, which is no exception class")
    return listed  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  checked above
