"""Members of an ordered group: a FIFO queue, of which SQS hands a key's messages to one member at a time.

While one message of a key is ours, the service gives no other of it to anybody; so what must wait is held here, with
its successors. The deliveries of a key that came together have one lease and one
fence: where one is lost, all are.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from messaging.adapter import Hold, Lease, RawDelivery, SettleError
from messaging.message import Reject
from messaging_sqs.consumer import Member
from messaging_sqs.entries import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Settlement
    from messaging_sqs.copies import Copy


class OrderedConsumer(Member):
    """A member that handles the messages of a key in their order."""

    def unpacked(self, messages: Sequence[dict[str, Any]], until: float, now: float) -> list[RawDelivery]:
        first: dict[str | None, RawDelivery] = {}
        deliveries: list[RawDelivery] = []
        for raw in messages:
            delivery = unpack(raw, self.group, Lease(until), now)
            leader = first.setdefault(delivery.token.group_id, delivery)
            delivery.lease, delivery.fence = leader.lease, leader.fence
            deliveries.append(delivery)
        return deliveries

    async def plan(self, settlement: Settlement) -> Hold | float | tuple[str, Copy]:
        """Only a dead letter leaves its place; all else is held here, so that its key waits."""
        if isinstance(settlement.outcome, Reject):
            return await self.letter(settlement)
        await self.unmark(settlement.delivery)
        return Hold(time.monotonic() + settlement.after)

    async def leave_behind(self, deliveries: list[RawDelivery]) -> None:
        await self.marks.keep_returns(self.url, deliveries)
        await self.give_back(deliveries, 0)

    def lost(self, delivery: RawDelivery) -> SettleError:
        error = super().lost(delivery)
        lease = delivery.lease
        lease.deadline = min(lease.deadline, time.monotonic())
        successors = [other for other in self._held if other.lease is lease]
        for other in successors:
            self.forget(other)
        if successors:
            self.ownership.on_lost(successors, "an earlier message of the key was lost")
        return error

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        kept = await super().extend(deliveries, seconds)
        lost = {id(delivery.lease) for delivery, ours in zip(deliveries, kept, strict=True) if not ours}
        now = time.monotonic()
        for delivery in deliveries:
            if id(delivery.lease) in lost:
                delivery.lease.deadline = min(delivery.lease.deadline, now)
        return [id(delivery.lease) not in lost for delivery in deliveries]
