"""Dead letters that the service's own redrive moved back, as the AWS console offers it, and not ours.

They come as they lay there: at their last attempt, and each in a message group of its own, so that a key's would be
handled side by side. They get what a redrive of ours gives: a new life, behind what their key has by now (11).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from messaging.failure import redriven
from messaging_sqs import copies
from messaging_sqs.entries import message_group

if TYPE_CHECKING:
    from messaging.adapter import RawDelivery
    from messaging_sqs.consumer import Member
    from messaging_sqs.entries import Token


async def renewed(member: Member, deliveries: list[RawDelivery]) -> list[RawDelivery]:
    """These, with new lives for those that were moved back; without what goes to the message group of its key."""
    moved = [delivery for delivery in deliveries if _was_dead(delivery)]
    if not moved:
        return deliveries
    now = datetime.fromtimestamp(member.connection.time.now(), UTC)
    for delivery in moved:
        delivery.deliveries -= delivery.attempt - 1
        delivery.attempt, delivery.failure = 1, redriven(delivery.failure, now)
    if not member.group.ordered:
        return deliveries
    astray = [one for one in moved if one.token.group_id != message_group(one.message.key)]
    # What cannot be stored now comes again with the end of its lease.
    await member.replace(astray, [copies.redriven(one.message, member.url, one.failure) for one in astray])
    return [one for one in deliveries if one not in astray]


def _was_dead(delivery: RawDelivery) -> bool:
    token: Token = delivery.token
    return token.origin != token.message_id
