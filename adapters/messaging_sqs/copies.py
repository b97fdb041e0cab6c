"""Copies of a received message: delayed, or as a dead letter. Stored before the original goes (1)."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from messaging.envelope import ATTEMPT, FAILURE, NOT_BEFORE
from messaging.errors import MessagingError
from messaging_sqs.batches import in_batches
from messaging_sqs.entries import (
    LARGEST,
    MOST_RETURNS,
    ORIGIN,
    RETURNS,
    Entry,
    control_headers,
    message_group,
    pack,
    unique,
)
from messaging_sqs.names import is_fifo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging.adapter import RawDelivery
    from messaging.message import Message
    from messaging_sqs.connection import Connection

logger = logging.getLogger("messaging")

LONGEST_DELAY = 900
"""Amazon SQS quotas, "Message delay": longer ones take several steps."""


async def store(
    connection: Connection, url: str, entries: Sequence[tuple[Entry, dict[str, Any]]]
) -> list[MessagingError | None]:
    """Send these to one queue, confirmed; what went wrong with each, or None."""
    fates = await in_batches(
        connection,
        "sqs",
        "send_message_batch",
        [entry.to_queue(**more) for entry, more in entries],
        sizes=[entry.size for entry, _ in entries],
        most_bytes=LARGEST,
        QueueUrl=url,
    )
    return [fate if isinstance(fate, MessagingError) else None for fate in fates]


def failed(delivery: RawDelivery, after: float, failure: str | None) -> tuple[Entry, dict[str, Any]]:
    """Handled again after so many seconds, one attempt later."""
    control = {**control_headers(delivery), ATTEMPT: str(delivery.attempt + 1)}
    if failure is not None:
        control[FAILURE] = failure
    return delayed(delivery, time.time() + after if after > 0 else 0.0, control)


def released(delivery: RawDelivery, after: float) -> tuple[Entry, dict[str, Any]]:
    """Handled again after so many seconds, uncounted, and with a new count of the service."""
    control = control_headers(delivery)
    if delivery.returns:
        control[RETURNS] = str(min(delivery.returns, MOST_RETURNS))
    return delayed(delivery, time.time() + after if after > 0 else 0.0, control)


def delayed(delivery: RawDelivery, due: float, control: Mapping[str, str]) -> tuple[Entry, dict[str, Any]]:
    """A copy that waits until `due`, or for the longest step towards it; the last part of a second is waited for by
    whoever gets it.
    """
    if not due:
        return copy_of(delivery.message, control), {}
    wait = min(max(math.floor(due - time.time()), 0), LONGEST_DELAY)
    return copy_of(delivery.message, {**control, NOT_BEFORE: repr(due)}), {"DelaySeconds": wait}


def dead(delivery: RawDelivery, url: str, failure: str | None) -> tuple[Entry, dict[str, Any]]:
    """A dead letter. Each is a message group of its own, so that none hides those behind it."""
    origin: str = delivery.token.message_id
    control = {**control_headers(delivery), ATTEMPT: str(delivery.attempt), ORIGIN: origin}
    if failure is not None:
        control[FAILURE] = failure
    more = {"MessageGroupId": unique(), "MessageDeduplicationId": f"dead-{origin}"} if is_fifo(url) else {}
    return copy_of(delivery.message, control), more


def redriven(message: Message, url: str, failure: str | None) -> tuple[Entry, dict[str, Any]]:
    """A dead letter on its way back: at attempt 1, behind what its key has by now (11)."""
    more: dict[str, Any] = {}
    if is_fifo(url):
        more = {"MessageGroupId": message_group(message.key), "MessageDeduplicationId": unique()}
    return copy_of(message, {} if failure is None else {FAILURE: failure}), more


def copy_of(message: Message, control: Mapping[str, str]) -> Entry:
    """The message with these control headers; without its failure record where that does not fit."""
    entry = pack(message, control)
    if entry.size > LARGEST and FAILURE in control:
        logger.warning(
            "The failure record of message %s is left out of its copy: together they have more than %d bytes",
            message.id,
            LARGEST,
            extra={"message_id": message.id},
        )
        entry = pack(message, {name: value for name, value in control.items() if name != FAILURE})
    return entry
