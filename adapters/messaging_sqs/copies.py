"""Copies of a received message: delayed, or as a dead letter. Stored before the original goes (1)."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging import oversize
from messaging.adapter import SUSPECT_AFTER
from messaging.envelope import ATTEMPT, FAILURE, NOT_BEFORE
from messaging.errors import MessagingError, PublishError, PublishUncertain
from messaging_sqs.batches import in_batches
from messaging_sqs.connection import Interrupted
from messaging_sqs.entries import (
    DELAY,
    LARGEST,
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

    from messaging.adapter import RawDelivery, Settlement
    from messaging.message import Message
    from messaging.slots import Slots
    from messaging_sqs.connection import Connection

logger = logging.getLogger("messaging")

Copy: TypeAlias = "tuple[Entry, dict[str, Any]]"
"""What is sent, and the parameters beside it."""

LONGEST_STEP = 900
"""Amazon SQS quotas, "Message delay", seconds: longer delays take several steps."""


async def send(
    connection: Connection, url: str, copies: Sequence[Copy], slots: Slots | None = None
) -> list[MessagingError | None]:
    """Send these to one queue, confirmed; what went wrong with each, or None. Each request takes one of `slots`."""
    fates = await in_batches(
        connection,
        "sqs",
        "send_message_batch",
        [entry.to_queue(**more) for entry, more in copies],
        sizes=[entry.size for entry, _ in copies],
        most_bytes=connection.settings.batch_bytes,
        once=not is_fifo(url),
        slots=slots,
        QueueUrl=url,
    )
    return [fate if isinstance(fate, MessagingError) else None for fate in fates]


async def store(connection: Connection, url: str, copies: Sequence[Copy]) -> list[MessagingError | None]:
    """As `send`; what is refused for the size of its batch goes alone."""
    errors = await send(connection, url, copies)
    if len(copies) > 1:
        for at, error in enumerate(errors):
            if error is not None and refused_for_size(error):  # of the batch, or of this one alone
                (errors[at],) = await send(connection, url, [copies[at]])
    return errors


def unstored(what: str, error: MessagingError) -> PublishError:
    """What is told of a copy that was not stored, or may have been."""
    kind = PublishUncertain if isinstance(error, Interrupted) else PublishError
    failure = kind(f"{what}: {error}")
    failure.__cause__ = error
    return failure


def refused_for_size(error: MessagingError) -> bool:
    """Whether the queue takes less than SQS does, and the copy is larger than that."""
    return any(reason in str(error) for reason in ("BatchRequestTooLong", "MessageTooLong", "shorter than"))


def fits(delivery: RawDelivery, copy: Copy) -> bool:
    """Whether the queue takes it, as far as is known."""
    return copy[0].size <= LARGEST and not delivery.token.too_large


def failed(delivery: RawDelivery, after: float, failure: str | None, longest: int) -> Copy:
    """Handled again after so many seconds, one attempt later."""
    control = {**control_headers(delivery), ATTEMPT: str(delivery.attempt + 1)}
    if failure is not None:
        control[FAILURE] = failure
    return _waiting(delivery, after, control, longest)


def released(delivery: RawDelivery, after: float, longest: int) -> Copy:
    """Handled again after so many seconds, uncounted, and with a new count of the service."""
    control = control_headers(delivery)
    if delivery.returns:
        control[RETURNS] = str(min(delivery.returns, SUSPECT_AFTER))
    return _waiting(delivery, after, control, longest)


def _waiting(delivery: RawDelivery, after: float, control: Mapping[str, str], longest: int) -> Copy:
    """A copy that waits for so long from when the service has it, or for the first step of that; the last part of a
    second is waited for by whoever gets it.
    """
    if after <= 0:
        return copy_of(delivery.message, control), {}
    return copy_of(delivery.message, {**control, DELAY: repr(after)}), {"DelaySeconds": step(after, longest)}


def next_step(delivery: RawDelivery, left: float, longest: int) -> Copy:
    """A copy that takes the next step towards its time by the service's clock, in `left` seconds."""
    control = {**control_headers(delivery), NOT_BEFORE: repr(delivery.token.due)}
    return copy_of(delivery.message, control), {"DelaySeconds": step(left, longest)}


def step(left: float, longest: int) -> int:
    """The whole seconds for which a standard queue hides what is due in so many, `longest` at once."""
    return min(max(math.floor(left), 0), longest, LONGEST_STEP)


def dead(delivery: RawDelivery, url: str, failure: str | None, message: Message | None = None) -> Copy:
    """A dead letter, of this message instead where one is given."""
    origin: str = delivery.token.message_id
    control = {**control_headers(delivery), ATTEMPT: str(delivery.attempt), ORIGIN: origin}
    if failure is not None:
        control[FAILURE] = failure
    # Each is a message group of its own, so that none hides those behind it.
    more = {"MessageGroupId": unique(), "MessageDeduplicationId": f"dead-{origin}"} if is_fifo(url) else {}
    return copy_of(message or delivery.message, control), more


def cut(settlement: Settlement, url: str, group: str, size: int) -> Copy:
    """A dead letter of a message that is too large for a whole one; `size` is what that would have."""
    now = datetime.now(UTC)
    message, failure = oversize.cut(settlement, group=group, size=size, most=LARGEST, now=now)
    return dead(settlement.delivery, url, failure, message)


def redriven(message: Message, url: str, failure: str | None) -> Copy:
    """A dead letter on its way back: at attempt 1, behind what its key has by now (11)."""
    more: dict[str, Any] = {}
    if is_fifo(url):
        more = {"MessageGroupId": message_group(message.key), "MessageDeduplicationId": unique()}
    return copy_of(message, {} if failure is None else {FAILURE: failure}), more


def copy_of(message: Message, control: Mapping[str, str]) -> Entry:
    """The message with these control headers: compressed, or without its failure record, where it does not fit."""
    entry = pack(message, control)
    if entry.size <= LARGEST:
        return entry
    compressed = pack(message, control, compressed=True)
    if compressed.size <= LARGEST or FAILURE not in control:
        return compressed
    logger.warning(
        "The failure record of message %s is left out of its copy: together they have more than %d bytes",
        message.id,
        LARGEST,
        extra={"message_id": message.id},
    )
    control = {name: value for name, value in control.items() if name != FAILURE}
    entry = pack(message, control)
    return entry if entry.size <= LARGEST else pack(message, control, compressed=True)
