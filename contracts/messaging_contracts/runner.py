"""Running one case on one broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, TypeAlias

from messaging import UnsupportedCapability, connect
from messaging_contracts.case import CAPABILITIES
from messaging_contracts.under_test import BrokerUnderTest

if TYPE_CHECKING:
    from messaging_contracts.case import Case
    from messaging_contracts.under_test import Target

Kept: TypeAlias = Literal["kept", "refused"]


async def run(case: Case, target: Target) -> Kept:
    """Run one case and clean up after it.

    Returns `kept` when the promise holds. Where the broker declares the promise unsupported, the same case must
    be refused with UnsupportedCapability, and `refused` is returned: what is unsupported raises, it never
    degrades in silence. Raises whatever shows that neither is so.
    """
    async with asyncio.timeout(case.limit), connect(target.url, store=target.store) as bus:
        broker = BrokerUnderTest(target, case.name)
        broker.bus = bus
        try:
            if (
                case.promise in CAPABILITIES
                and getattr(bus.capabilities, case.promise).level == "unsupported"
            ):
                await _refused(case, broker)
                return "refused"
            await case.check(broker)
            return "kept"
        finally:
            await broker.clean()


async def _refused(case: Case, broker: BrokerUnderTest) -> None:
    refused = False
    try:
        await case.check(broker)
    except* UnsupportedCapability:
        refused = True
    assert refused, (
        f"{broker.capabilities.broker} declares {case.promise!r} unsupported, yet nothing was refused"
    )
