"""The durable marks of the crash guard (3): tags of the group's queue.

A tag names the message that a process runs alone. It is removed when that message is settled or given back; so a
message that comes back with its mark has ended a process, or was ended with it. Setting a tag takes long enough for
a process to be killed just then for another reason; so it takes two such ends. Tags are slow and few, as suspects are.
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import TYPE_CHECKING, NamedTuple

from messaging.adapter import SUSPECT_AFTER
from messaging.errors import ConfigurationError, MessagingError
from messaging_sqs import releases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import RawDelivery
    from messaging_sqs.connection import Connection

logger = logging.getLogger("messaging")

_PREFIX = "messaging-guard-"
_ENDS = 2
"""Processes that a message must have ended while it ran alone."""
_MOST = 30
"""A queue has 50 tags at most; what crashed processes left is removed before they are full."""
_ILLEGAL = re.compile(r"[^A-Za-z0-9_.:/=+@ -]")


class _Mark(NamedTuple):
    set_at: int
    times: int
    member: str

    def __str__(self) -> str:
        return f"{self.set_at}/{self.times}/{self.member}"

    @classmethod
    def of(cls, value: str) -> _Mark:
        set_at, _, rest = value.partition("/")
        times, _, member = rest.partition("/")
        return cls(int(set_at) if set_at.isdecimal() else 0, int(times) if times.isdecimal() else 1, member)


class Marks:
    """The marks of one queue."""

    def __init__(self, connection: Connection, member: str) -> None:
        self._connection = connection
        self._member = _ILLEGAL.sub("_", member)[:200]
        self._denied = False

    async def judge(self, url: str, suspects: list[RawDelivery]) -> None:
        """Say of messages that came back often what the tags say: how often in peace, and what their marks are."""
        try:
            tags = await self._tags(url)
        except MessagingError as error:
            logger.warning("The marks of the crash guard could not be read: %s", error)
            return
        marks, uncounted = _marks(tags), releases.read(tags)
        for delivery in suspects:
            if number := uncounted.get(releases.hash_of(delivery.token.message_id)):
                delivery.token.uncounted = number
                delivery.returns = max(delivery.returns - number, 0)
            # A mark of this process ended nothing: only the lease was lost.
            if (mark := marks.get(delivery.token.message_id)) and mark.member != self._member:
                delivery.guard = "tripped" if mark.times >= _ENDS else "none"

    async def add(self, url: str, delivery: RawDelivery) -> None:
        """Store the mark. Raises ConnectionFailed; without the permission, the message runs alone unmarked."""
        if self._denied:
            return
        message_id = delivery.token.message_id
        try:
            marks = _marks(await self._tags(url))
            if len(marks) >= _MOST:
                oldest = sorted(marks, key=lambda name: marks[name].set_at)
                await self._untag(url, oldest[: len(marks) - _MOST + 1])
            former = marks.get(message_id)
            times = 1 if former is None else former.times + (former.member != self._member)
            value = str(_Mark(int(self._connection.time.now()), times, self._member))
            await self._connection.call("sqs", "tag_queue", QueueUrl=url, Tags={_PREFIX + message_id: value})
        except ConfigurationError as error:
            self._denied = True
            logger.warning("A message that may kill its process runs unmarked: %s", error)
            return

    async def remove(self, url: str, delivery: RawDelivery) -> None:
        """The message is settled, or given back by a process that lives."""
        if not self._denied:
            await self._untag(url, [delivery.token.message_id])

    async def keep_returns(self, url: str, deliveries: Sequence[RawDelivery]) -> None:
        """These are about to go back in peace: let none become a suspect by it. Else they run alone, which is slow."""
        uncounted = {
            delivery.token.message_id: delivery.token.count - delivery.returns
            for delivery in deliveries
            if delivery.returns < SUSPECT_AFTER <= delivery.token.count - delivery.token.uncounted
        }
        if not uncounted or self._denied:
            return
        try:
            new = releases.written(uncounted, self._connection.time.now(), secrets.token_hex(3))
            if old := releases.surplus(await self._tags(url), len(new)):
                await self._connection.call("sqs", "untag_queue", QueueUrl=url, TagKeys=old)
            await self._connection.call("sqs", "tag_queue", QueueUrl=url, Tags=new)
        except MessagingError as error:
            logger.warning("%d messages that go back will run alone: %s", len(uncounted), error)

    async def _tags(self, url: str) -> dict[str, str]:
        answer = await self._connection.call("sqs", "list_queue_tags", QueueUrl=url)
        return answer.get("Tags") or {}

    async def _untag(self, url: str, message_ids: list[str]) -> None:
        keys = [_PREFIX + message_id for message_id in message_ids]
        await self._connection.call("sqs", "untag_queue", QueueUrl=url, TagKeys=keys)


def suspects_of(deliveries: Sequence[RawDelivery]) -> list[RawDelivery]:
    """Those that came back so often that their marks are worth a call."""
    return [delivery for delivery in deliveries if delivery.returns >= SUSPECT_AFTER]


def _marks(tags: dict[str, str]) -> dict[str, _Mark]:
    return {
        tag.removeprefix(_PREFIX): _Mark.of(value) for tag, value in tags.items() if tag.startswith(_PREFIX)
    }
