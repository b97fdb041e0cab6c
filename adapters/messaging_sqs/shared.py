"""Members that share a standard queue: what must wait is a delayed copy, for whoever gets it then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from messaging.adapter import SUSPECT_AFTER, Hold
from messaging.message import Reject, Release
from messaging_sqs import copies
from messaging_sqs.consumer import HELD_HERE, Member
from messaging_sqs.settings import LONGEST_HOLD

if TYPE_CHECKING:
    from messaging.adapter import RawDelivery, Settlement


class SharedConsumer(Member):
    """A member that shares a standard queue with the others of its group, in no order."""

    async def plan(self, settlement: Settlement) -> Hold | float | tuple[str, copies.Copy]:
        """Copies wait in the queue; what is too large for one, or may have one, is held here while SQS lends it."""
        delivery, outcome, after = settlement.delivery, settlement.outcome, settlement.after
        if isinstance(outcome, Reject):
            return await self.letter(settlement)
        left: float = delivery.token.received + LONGEST_HOLD - time.monotonic()
        another = not delivery.token.doubtful or after > left
        if isinstance(outcome, Release):
            if 0 < after <= HELD_HERE:
                return await self._hold(delivery, after)
            if self.worn(delivery) or after > left:
                copy = copies.released(delivery, after, self.bounds.step)
                if another and copies.fits(delivery, copy):
                    return self.url, copy
            return max(min(after, left), 0.0)
        copy = copies.failed(delivery, after, settlement.failure, self.bounds.step)
        if another and copies.fits(delivery, copy):
            return self.url, copy
        if after > left:
            return await self.letter(settlement)
        return await self._hold(delivery, after)

    async def _hold(self, delivery: RawDelivery, after: float) -> Hold:
        await self.unmark(delivery)
        return Hold(time.monotonic() + after)

    async def leave_behind(self, deliveries: list[RawDelivery]) -> None:
        worn = [delivery for delivery in deliveries if self.worn(delivery)]
        left = await self.replace(worn, [copies.released(delivery, 0, self.bounds.step) for delivery in worn])
        await self.give_back([*left, *(one for one in deliveries if not self.worn(one))], 0)

    def worn(self, delivery: RawDelivery) -> bool:
        """Whether a release would make a suspect of it, or bring it near the service's own bound, which count releases.

        A copy starts a new count.
        """
        return delivery.returns == SUSPECT_AFTER - 1 or delivery.token.count > self.bounds.receives // 2
