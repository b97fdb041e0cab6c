"""The publish delay: when a message may first be handled, and what becomes of one that arrives earlier (5).

It travels as an attribute of the message, and the topic takes it as any other. Each group puts what comes too early
into its own ladder of delays, as it does with retries, but uncounted. So it costs no queue and no topic. What no broker
could wait for ends as a dead letter, here as with retries.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING

from messaging.errors import InvalidMessage, UnsupportedCapability
from messaging.message import Reject, Release, Unbegun, seconds_if_any

if TYPE_CHECKING:
    from datetime import datetime

    from messaging.adapter import Capabilities, TopicSpec
    from messaging.message import Duration, Message, Retry

LONGEST = 365 * 86_400.0
"""Seconds, where the broker has no bound of its own: what another program writes must not be kept for ever (19)."""
CLOCKS = 3600.0
"""Seconds by which a publisher's clock may be ahead: its longest delay is kept all the same."""
REMEMBERED = 10_000
"""Early messages of which a member knows when it first had them."""


def due_after(delay: Duration, now: datetime) -> datetime | None:
    """When a message published now is due; None without a delay. Raises InvalidMessage for what is no delay."""
    after = seconds_if_any(delay)
    if after is None or not 0 <= after < inf:
        raise InvalidMessage(f"delay={delay!r}: it takes a number of seconds, 0 or more, or a timedelta")
    try:
        return now + timedelta(seconds=after) if after else None
    except OverflowError:
        raise InvalidMessage(f"delay={delay!r} is no time that can be reached") from None


def check_delay(message: Message, topic: TopicSpec, capabilities: Capabilities, now: float) -> None:
    """Raises InvalidMessage for a delay that would not be kept, UnsupportedCapability where none can be."""
    assert message.not_before is not None
    described = f"Message {message.id} for {topic.name} cannot be delayed"
    if topic.ordered:
        raise InvalidMessage(
            f"{described}: the topic is ordered, and the messages of its key would have to wait with it. "
            "Publish it to a topic that is not ordered"
        )
    if capabilities.delayed_retry.level == "unsupported":
        raise UnsupportedCapability(
            f"{described}: {capabilities.broker} cannot delay: {capabilities.delayed_retry.reason}"
        )
    longest = min(capabilities.max_delay, LONGEST)
    after = message.not_before.timestamp() - now
    if after > longest:
        raise InvalidMessage(
            f"{described} by {after:g} s: on {capabilities.broker} the longest delay is {longest:g} s. "
            "Keep it in a database until it is due"
        )
    if message.expires_at is not None and message.expires_at <= message.not_before:
        raise InvalidMessage(
            f"{described} until {message.not_before.isoformat()}: it expires before, at "
            f"{message.expires_at.isoformat()}. Both count from the publish"
        )


def judge_early(message: Message, now: float, longest: float) -> Release | Unbegun | None:
    """What to do with a message of an unordered group now; None: handle it.

    What may wait goes back, uncounted, for what is left: of the delay that its publisher asked for, however wrong our
    clock is. What asks for more than anybody could have published is a dead letter.
    """
    not_before, published = message.not_before, message.time
    assert not_before is not None
    after = not_before.timestamp() - now
    if after <= 0:
        return None
    if published is not None and published < not_before:
        after = min(after, (not_before - published).total_seconds())
    bound = min(longest, LONGEST)
    if after > bound + CLOCKS:
        return Unbegun(
            f"not to be handled before {not_before.isoformat()}, in {after:g} s; the longest delay is {bound:g} s",
            cause="delay_unsupported",
        )
    return Release(after=min(after, bound))


class FirstSeen:
    """When this member first had each message that came early: no clock makes it wait for longer than its delay.

    Where its publisher's clock is ahead by an hour, or ours behind, the message seems to be due an hour later.
    """

    def __init__(self) -> None:
        self._over: OrderedDict[tuple[str, datetime], float] = OrderedDict()
        """Until when each waits at the most, monotonic seconds: the oldest is forgotten first."""

    def left(self, message: Message, after: float, now: float) -> float:
        """Of these `after` seconds, those that it must still wait for; `now` is monotonic."""
        assert message.not_before is not None
        if message.time is None or message.time >= message.not_before:
            return after  # another program's, which does not tell when it was published
        place = message.id, message.not_before
        over = self._over.get(place)
        if over is None:
            over = now + (message.not_before - message.time).total_seconds()
            self._over[place] = over
            if len(self._over) > REMEMBERED:
                self._over.popitem(last=False)
        return min(after, over - now)


def bounded(outcome: Retry, after: float, longest: float) -> Retry | Reject:
    """A retry that the broker can wait for; else a dead letter, with the retry's cause."""
    if after <= longest:
        return outcome
    reason = (
        f"{outcome.reason or 'failed'}; a retry after {after:g} s is beyond the broker's longest, "
        f"{max(0.0, longest):g} s"
    )
    rejected = Reject(reason, cause="delay_unsupported")
    rejected.__cause__ = outcome.__cause__ or outcome
    return rejected
