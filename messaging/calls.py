"""Calls of `publish` on their way: where each message is, and what is said of one that was not published."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from messaging.errors import PublishError, PublishUncertain

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from messaging.adapter import Outgoing
    from messaging.exchanges import Exchanges
    from messaging.message import Message, Receipt

Lane: TypeAlias = "tuple[str, int]"
Result: TypeAlias = "Receipt | PublishError"
Failed: TypeAlias = "tuple[Message, Exception]"
"""A message that was not published, and why: what is behind it of its key fails with it."""
Place: TypeAlias = "tuple[Call, int]"
"""Where a message is: its call and its number in it."""

UNDER_WAY = PublishUncertain("it is under way")
"""In the results of a call: handed to the adapter, not confirmed yet."""
ABANDONED = PublishError("nobody waits for it any more")
ONLY = (0,)
"""The places of a call with one message, of a topic without order."""


def nobody_waits(_topic: str, _former: Message, _error: Exception) -> None:
    """Behind a message that failed, where no calls wait before they publish."""


class Call:
    """One `publish` or `publish_many`, of one topic: its results come together."""

    __slots__ = (
        "done",
        "exchanges",
        "messages",
        "missing",
        "next",
        "number",
        "once",
        "ordered",
        "results",
        "waited",
        "within",
    )

    def __init__(
        self, messages: Sequence[Outgoing], number: int, within: float | None, done: asyncio.Future[None]
    ) -> None:
        self.messages = messages
        self.within = within
        self.number = number
        """Grows in the order of the calls."""
        first = messages[0]
        self.ordered = first.topic.name if first.topic.ordered else None
        self.once = first.once is not None
        """Whether its messages are stored once (`Outgoing.once`), as those of one call all are, or none."""
        self.missing = len(messages)
        self.results: list[Result | None] = [None] * self.missing
        """None: it waits to be sent."""
        self.next = 0
        """Without order, messages are sent in their sequence: the first that waits."""
        self.exchanges: Exchanges | None = None
        """Where it was taken in: until then, it waits for room."""
        self.waited = True
        """Until its caller goes on."""
        self.done = done

    @property
    def topic(self) -> str:
        return self.messages[0].topic.name

    @property
    def open(self) -> list[int]:
        """The places of the messages that have no result yet."""
        return [at for at, result in enumerate(self.results) if result is None or result is UNDER_WAY]

    def end(self) -> None:
        """Let the caller go on."""
        if not self.done.done():
            self.done.set_result(None)


class Batch:
    """What goes in one exchange: places in calls, in the order of the messages."""

    __slots__ = ("exchanges", "gathering", "lanes", "messages", "once", "parts")

    def __init__(self, exchanges: Exchanges) -> None:
        self.exchanges = exchanges
        self.messages: list[Outgoing] = []
        self.parts: list[tuple[Call, Sequence[int]]] = []
        self.lanes: list[Lane] = []
        self.gathering = 0
        """While it is under way, and not slow: the messages of it behind which others gather."""
        self.once = False
        """Whether any of them is stored once."""


def too_late(message: Message, within: float | None, *, sent: bool) -> PublishError:
    """The time of its caller is over."""
    if sent:
        return PublishUncertain(
            f"Message {message.id} for {message.topic} was not confirmed within {within:g} s: "
            "the broker may have it; publish it again with the same id if handlers are idempotent"
        )
    return unsent(message, f"{within:g} s were over before its turn came")


def overtaking(message: Message, former: Message, error: Exception) -> PublishError:
    """Sending it would break the order: one before it failed (7)."""
    return unsent(message, f"message {former.id}, published before it with the same key, failed: {error}")


def unsent(message: Message, reason: str) -> PublishError:
    """The broker does not have it."""
    return PublishError(f"Message {message.id} for {message.topic} was not sent: {reason}")


def uncertain(outgoing: Outgoing, error: BaseException) -> PublishUncertain:
    """The broker may have it."""
    message = outgoing.message
    return PublishUncertain(f"The fate of message {message.id} for {message.topic} is unknown: {error!r}")
