"""What a member does about its leases beside receiving and settling: keeps those of what waits, and sees them end.

A lease ends by this member's own clock, whatever an extension does meanwhile: one that hangs, or is refused, must not
let a handler run beside that of whoever gets the message next (9).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from messaging.errors import MessagingError
from messaging_sqs.batches import Refused, is_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from messaging.adapter import RawDelivery


async def tend(
    lease: float,
    *,
    held: Collection[RawDelivery],
    leaving: Collection[RawDelivery],
    ended: Callable[[list[RawDelivery]], None],
    extend: Callable[[], Awaitable[object]],
) -> None:
    """Until cancelled: `extend` at each third of a lease, and `ended` with those that are `held` no longer.

    What is `leaving` is left alone: its settlement tells.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep(lease / 3, extend), name="messaging-sqs-keep")
        tasks.create_task(_watch(lease / 3, held, leaving, ended), name="messaging-sqs-watch")


async def _keep(every: float, extend: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            await extend()
        except MessagingError:
            continue  # what cannot be extended ends with its lease


async def _watch(
    every: float,
    held: Collection[RawDelivery],
    leaving: Collection[RawDelivery],
    ended: Callable[[list[RawDelivery]], None],
) -> None:
    """What comes meanwhile has more than a third of a lease left, or is not started."""
    while True:
        now = time.monotonic()
        over = [one for one in held if one.lease.deadline <= now and one not in leaving]
        if over:
            ended(over)
        ends = (one.lease.deadline for one in held if one not in leaving)
        await asyncio.sleep(min(min(ends, default=now + every) - now, every))


def judged(
    asked: Sequence[RawDelivery], fates: Sequence[object], settled: Collection[RawDelivery]
) -> tuple[set[RawDelivery], set[int], MessagingError | None]:
    """What an extension of these was answered: those that are gone, the ids of the leases that were not extended, and
    why whole calls failed. Those that are gone have no lease then; what is `settled` meanwhile counts for nothing.
    """
    gone: set[RawDelivery] = set()
    failed: set[int] = set()
    reason: MessagingError | None = None
    for delivery, fate in zip(asked, fates, strict=True):
        if not isinstance(fate, MessagingError) or delivery in settled:
            continue
        failed.add(id(delivery.lease))
        if is_gone(fate):
            gone.add(delivery)
        elif not isinstance(fate, Refused):  # of one message, as after its 12 hours
            reason = fate
    if reason is not None:
        for delivery in gone:
            delivery.lease.deadline = min(delivery.lease.deadline, time.monotonic())
    return gone, failed, reason
